"""The worker's threads: as many as jobs at once, whatever the machine has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest
from django.conf import settings

from apps.common.limits.places import Places
from cloud.jobs import JOBS_AT_ONCE, counted, own_threads
from cloud.worker_metrics import Server as MetricsServer
from cloud.worker_metrics import answer
from cloud.worker_metrics import server as worker_metrics


def test_jobs_that_hang_take_no_thread_from_the_others() -> None:
    """asyncio's own executor has four threads and one for each core."""
    together = threading.Barrier(JOBS_AT_ONCE, timeout=20)

    async def job() -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, together.wait)

    async def worker() -> list[Any]:
        context, program = cast("Any", None), cast("Any", None)
        return await asyncio.gather(*(own_threads(job, context, program) for _ in range(JOBS_AT_ONCE)))

    assert sorted(asyncio.run(worker())) == list(range(JOBS_AT_ONCE))
    defaults = settings.PROCRASTINATE_WORKER_DEFAULTS
    assert (defaults["concurrency"], defaults["worker_middleware"]) == (JOBS_AT_ONCE, [own_threads, counted])


def test_the_worker_tells_its_figures_while_a_job_hangs(free_port: Callable[[], int], settings: Any) -> None:
    """Who holds the places of deployments and webhooks, and what runs; over a real socket."""
    port = free_port()
    settings.VISIONA = {**settings.VISIONA, "WORKER_METRICS_PORT": port}
    told: list[str] = []

    async def ask() -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n")
        got = (await reader.read()).decode()
        writer.close()
        return got

    async def hangs() -> None:
        told.append(await ask())

    async def fails() -> None:
        raise ValueError

    async def run() -> None:
        context = cast("Any", SimpleNamespace(job=SimpleNamespace(task_name="tests.hangs")))
        places = Places("tests", lambda: 3)
        with places.place("somebody"):
            await counted(hangs, context, cast("Any", None))
        with pytest.raises(ValueError):
            await counted(fails, context, cast("Any", None))
        told.append(await ask())
        await worker_metrics.close()

    asyncio.run(run())
    hanging, after = told
    assert hanging.startswith("HTTP/1.1 200 OK\r\n")
    assert 'visiona_worker_jobs_running{task="tests.hangs"} 1.0' in hanging
    assert 'visiona_api_places{owners="user",pool="tests"} 1.0' in hanging
    assert 'visiona_worker_jobs_running{task="tests.hangs"} 0.0' in after
    for outcome in ("done", "failed"):
        assert f'visiona_worker_jobs_total{{outcome="{outcome}",task="tests.hangs"}} 1.0' in after


def test_a_silent_crowd_keeps_nobody_from_the_figures(free_port: Callable[[], int]) -> None:
    """Whose connections are open and say nothing go first."""
    port = free_port()

    async def run() -> tuple[bytes, bytes]:
        server = MetricsServer()
        await server.start("127.0.0.1", port, ["s"])
        crowd = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: worker\r\n\r\n")
        answered = await asyncio.wait_for(reader.read(), 4)  # less than the silent may stay
        gone = await asyncio.wait_for(crowd[0][0].read(), 4)
        for _, each in [*crowd, (reader, writer)]:
            each.close()
        await server.close()
        return answered, gone

    answered, gone = asyncio.run(run())
    assert answered.startswith(b"HTTP/1.1 200 OK\r\n")
    assert gone == b""


def test_a_peer_that_has_gone_is_answered_like_a_stranger() -> None:
    """The kernel no longer knows its address."""
    reader, writer = asyncio.StreamReader(loop=Mock()), Mock(drain=AsyncMock())
    reader.feed_data(b"GET /metrics HTTP/1.1\r\n\r\n")
    writer.get_extra_info.return_value = None
    asyncio.run(worker_metrics._serve(reader, writer, ["s"]))
    (answered,) = writer.write.call_args.args
    assert answered.startswith(b"HTTP/1.1 401 ")
    writer.close.assert_called_once_with()


@pytest.mark.parametrize(
    ("line", "peer", "secret", "status"),
    [
        ("GET /metrics HTTP/1.1", "127.0.0.1", "", 200),
        ("GET /metrics HTTP/1.1", "::1", "", 200),
        ("GET /metrics HTTP/1.1", "192.0.2.1", "Bearer s", 200),
        ("GET /metrics HTTP/1.1", "192.0.2.1", "", 401),
        ("GET /metrics HTTP/1.1", "192.0.2.1", "Bearer t", 401),
        ("POST /metrics HTTP/1.1", "127.0.0.1", "", 405),
        ("GET /else HTTP/1.1", "127.0.0.1", "", 404),
        ("nonsense", "127.0.0.1", "", 404),
    ],
)
def test_who_may_read_the_worker_s_figures(line: str, peer: str, secret: str, status: int) -> None:
    head = f"{line}\r\nAuthorization: {secret}\r\n\r\n".encode()
    assert answer(head, peer, ["s"]).startswith(f"HTTP/1.1 {status} ".encode())
