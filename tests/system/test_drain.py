"""SIGTERM for the daemon of a system at work: idle streams hold it up no longer than they must, running ones finish."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.system.stack import Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SCAN = "/api/devices/scan"
GRACE = 250
SECONDS = 120.0
"""Far below the grace: a daemon that waits for the whole of it has not ended by then, however busy the machine is."""


@pytest.fixture
def system(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Stack]:
    ports = free_port(), free_port(), free_port()
    with run_stack(tmp_path / "var", ports, {"VISIONA_TUNNEL_DRAIN_SECONDS": str(GRACE)}) as stack:
        yield stack.start_all()


def test_idle_streams_hold_it_up_for_seconds_only(system: Stack) -> None:
    """Streams that the API keeps for the next request are given up once the daemon says that it drains."""
    device = system.device_id()
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: system.call("GET", SCAN).status, range(32))) == {200}
    (session,) = system.sessions()
    assert session["streams"] > 0, "the API keeps none: this test shows nothing"
    assert system.stop("tunnel", SECONDS) == 0
    assert '"event":"drained","cut":0' in system.log("tunnel")
    system.start(plans.tunnel(system.plan))
    eventually(lambda: system.call("GET", SCAN).status == 200, 60, "the agent is back")
    assert system.device_id() == device


@pytest.mark.gameday
def test_a_stream_in_flight_goes_on_within_the_grace(system: Stack) -> None:
    """It is neither cut nor slowed, and the daemon ends when it has ended."""
    assert system.call("GET", SCAN).status == 200
    with ThreadPoolExecutor(1) as pool, system.stream("/api/cameras/0/stream") as stream:
        assert stream.read()
        ended = pool.submit(system.stop, "tunnel", SECONDS)
        until = time.monotonic() + 5
        got = 0
        while time.monotonic() < until:
            got += len(stream.read())
        assert not ended.done(), "the daemon did not wait for the stream"
        assert got > 10_000
        stream.sock.close()
        stream.answer.close()
        assert ended.result(SECONDS) == 0
