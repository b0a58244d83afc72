"""The agent serving over real sockets: a local server that comes and goes, and the log lines that tell of it."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.agent.fake_daemon import FakeDaemon, fake_daemon
from tests.ports import free_port
from tunnel.agent import logs
from tunnel.agent.demo.box import Box
from tunnel.agent.runner import Agent
from tunnel.agent.settings import load
from tunnel.mux.connection import Connection

TOKEN = "vAc_" + "1" * 32


@asynccontextmanager
async def serving(tmp_path: Path, local: str) -> AsyncIterator[tuple[FakeDaemon, Connection]]:
    """An agent that is connected to a daemon and serves `local`."""
    flags: dict[str, str | None] = {"local": local, "pairing_token": TOKEN, "credentials": str(tmp_path / "c")}
    async with fake_daemon() as daemon, trio.open_nursery() as nursery:
        told, _ = load(flags | {"url": daemon.url}, {}, None)
        agent = Agent(told, {})
        nursery.start_soon(agent.run)
        with trio.fail_after(30):
            yield daemon, await daemon.connection()
        agent.stop()


async def ask(connection: Connection, path: str = "/healthz") -> bytes:
    stream = await connection.open_stream(wait_ack=False)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n".encode())
    found = bytearray()
    while data := await stream.receive_some():
        found += data
    await stream.aclose()
    return bytes(found)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_local_server_that_comes_later(tmp_path: Path, host: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    port = free_port()
    async with serving(tmp_path, f"{host}:{port}") as (_, connection):
        for _ in range(3):
            with pytest.raises(trio.BrokenResourceError):
                await ask(connection)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: Box().serve(port=port, task_status=task_status))
            assert (await ask(connection)).startswith(b"HTTP/1.1 200")
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.BrokenResourceError):
            await ask(connection)
        assert connection.end_reason is None
        while len([r for r in caplog.records if r.getMessage() == "stream ended"]) < 5:
            await trio.sleep(0.01)
    ended = [record for record in caplog.records if record.getMessage() == "stream ended"]
    # Told at the start, and when it comes and goes, not with each request
    told = [
        record.getMessage().partition(";")[0] for record in caplog.records if "local address" in record.getMessage()
    ]
    away = "nothing answers at the local address"
    assert told == [away, "the local address answers again", away]
    facts = ended[3].__dict__["facts"]
    assert (facts["outcome"], facts["stream"]) == ("ok", 7)
    assert facts["bytes_out"] > facts["bytes_in"] > 0


async def test_many_streams_beside_an_endless_one(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        port = await nursery.start(lambda task_status: Box().serve(task_status=task_status))
        async with serving(tmp_path, str(port)) as (_, connection):
            video = await connection.open_stream()
            await video.send_all(b"GET /api/cameras/0/stream HTTP/1.1\r\nHost: b\r\n\r\n")
            assert await video.receive_some()
            answers: list[bytes] = []

            async def one() -> None:
                answers.append(await ask(connection, "/api/inference/bytes/50000"))

            async with trio.open_nursery() as many:
                for _ in range(100):
                    many.start_soon(one)
            assert {len(answer) for answer in answers} == {len(answers[0])}
            assert len(answers[0]) > 50000
            assert await video.receive_some()
            video.reset()
        nursery.cancel_scope.cancel()


@pytest.fixture
def _log_as_found() -> Iterator[None]:
    yield
    logs.log.handlers.clear()
    logs.log.propagate = True
    logs.log.setLevel(logging.NOTSET)


@pytest.mark.usefixtures("_log_as_found")
def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("info", "json")
    logs.info("connected", device="d-1", session=None)
    logs.debug("not shown")
    logs.setup("info", "text")
    logs.warning("closed", why="two words\n", attempt=3)
    try:
        raise ValueError("a bug")
    except ValueError:
        logs.log.exception("internal error")
    first, second, *rest = capsys.readouterr().err.splitlines()
    line = json.loads(first)
    assert (line["event"], line["level"], line["device"]) == ("connected", "info", "d-1")
    assert "session" not in line
    assert line["at"].endswith("Z")
    assert second.endswith(r"warning closed why='two words\n' attempt=3")
    assert rest[-1] == "ValueError: a bug"


@pytest.mark.usefixtures("_log_as_found")
def test_an_exception_in_json_stays_on_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    logs.setup("error", "auto")  # no terminal here: JSON
    try:
        raise ValueError("a bug")
    except ValueError:
        logs.log.exception("internal error")
    assert "ValueError: a bug" in json.loads(capsys.readouterr().err)["exception"]


def test_text_that_is_no_utf_8_is_logged_all_the_same() -> None:
    record = logging.LogRecord("visiona-agent", logging.WARNING, "", 0, "refused", (), None)
    record.facts = {"message": "\ud800"}
    assert json.loads(logs.JsonFormatter().format(record))["message"] == "\ud800"
