"""What a client sees when a part dies, stops or freezes, and when service is back (data.md, "When a part is down")."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import psutil
import psycopg
import pytest

from apps.common.breaker import OPEN_SECONDS
from cloud.environment import database_address
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import DemoError
from tests.system.stack import BUSY, Stack, Stream, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

STREAM = "/api/cameras/0/stream"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    var, ports = tmp_path_factory.mktemp("faults") / "var", (free_port(), free_port(), free_port())
    with run_stack(var, ports, durable=True) as stack:
        yield stack.start_all()


@pytest.fixture
def system(whole: Stack) -> Stack:
    """All of it runs, and a box is online: what the test before left dead is started."""
    for name, part in (("tunnel", plans.tunnel), ("api", plans.api), ("worker", plans.worker)):
        if not whole.runs(name):
            whole.start(part(whole.plan))
    eventually(lambda: logged_in(whole), 30, "a login is taken")
    if not whole.runs("agent"):
        whole.start_agent()
    eventually(lambda: served_at_once(whole), 60, "the box serves, whichever process of the API is asked")
    return whole


@contextmanager
def broken(system: Stack, server: str) -> Iterator[None]:
    """The server breaks within the block; a worker whose queue did is gone after it.

    It ends by itself, with its next look at the queue: until then it seems to run. Who supervises it starts it again.
    """
    try:
        yield
    finally:
        if server == "postgres" and "worker" in system.processes:
            system.kill("worker")


def logged_in(system: Stack) -> bool:
    """Log in anew, if it is taken: for a second each worker process of the API still fails fast."""
    try:
        system.log_in()
    except DemoError:
        return False
    return True


def scan(stack: Stack) -> tuple[int, str]:
    try:
        answer = stack.call("GET", "/api/devices/scan", seconds=15)
    except OSError as error:
        return 0, type(error).__name__
    return answer.status, answer.code if answer.status != 200 else ""


def served(stack: Stack) -> bool:
    return scan(stack)[0] == 200


def served_at_once(stack: Stack) -> bool:
    """So many calls side by side that each process of the API gets some: each has a breaker of its own."""
    with ThreadPoolExecutor(12) as callers:
        return all(callers.map(lambda _: served(stack), range(12)))


def test_agent_killed_during_a_stream(system: Stack) -> None:
    """The stream is cut, never completed; then 503; the box is back after its restart."""
    with system.stream(STREAM) as stream:
        assert stream.answer.status == 200
        assert stream.read()
        system.kill("agent")
        assert stream.ends(30) == "cut"
        eventually(lambda: scan(system) == (503, "TUNNEL_DISCONNECTED"), 30, "scan says that the tunnel is down")
        # The registry hears of it a moment later; until then `start_agent` would take the old tunnel for the new one.
        eventually(lambda: not system.call("GET", "/api/pairing/status").data["connected"], 30, "the box is offline")
        system.start_agent()
        eventually(lambda: served(system), 30, "the box serves again")


def test_daemon_killed_during_a_stream(system: Stack) -> None:
    """The stream is cut; calls answer 503 TUNNEL_UNAVAILABLE; the agent comes back by itself."""
    with system.stream(STREAM) as stream:
        assert stream.read()
        system.kill("tunnel")
        assert stream.ends(30) == "cut"
        eventually(lambda: scan(system) == (503, "TUNNEL_UNAVAILABLE"), 30, "scan says that the daemon is down")
        eventually(lambda: system.call("GET", "/api/devices").status == 200, 30, "all else goes on")
        system.start(plans.tunnel(system.plan))
        eventually(lambda: served(system), 60, "the agent reconnects by itself")


def test_api_killed_during_a_stream(system: Stack) -> None:
    """The client's connection breaks; the tunnel stays up; a new API serves at once."""
    with system.stream(STREAM) as stream:
        assert stream.read()
        before = {one["session"] for one in system.sessions()}
        system.kill("api")
        assert stream.ends(30) == "cut"
        assert {one["session"] for one in system.sessions()} == before
        system.start(plans.api(system.plan))
        eventually(lambda: served(system), 30, "the new API serves")
        assert {one["session"] for one in system.sessions()} == before


def timed_refusal(stack: Stack, method: str, path: str, *, token: str | None = None) -> tuple[int, str, float]:
    start = time.monotonic()
    answer = stack.call(method, path, seconds=30, token=token)
    return answer.status, answer.code, time.monotonic() - start


def assert_down(stack: Stack, code: str, check: str) -> None:
    """Calls are refused with the promised code in under 2.5 s, and the health check tells which part is down."""
    asked = []
    for path in ("/api/devices", "/api/pairing/tokens"):
        times = []
        for _ in range(3):
            status, seen, seconds = timed_refusal(stack, "GET", path)
            assert (status, seen) == (503, code)
            times.append(seconds)
        asked.append(times[0])  # those behind it fail fast, and tell nothing of the deadline
        time.sleep(OPEN_SECONDS + 0.1)  # until the part is asked again
    assert min(asked) < 2.5 * BUSY
    health = stack.call("GET", "/healthz", token="", seconds=30)
    assert (health.status, health.code) == (503, code)
    assert health.json["error"]["details"]["checks"][check] != "ok"
    assert stack.call("GET", "/healthz?live=1", token="").status == 200


def assert_lives(stream: Stream) -> None:
    stream.sock.settimeout(30)
    for _ in range(10):
        assert stream.read()


@pytest.mark.gameday
@pytest.mark.parametrize(
    ("server", "code", "check"),
    [("postgres", "DATABASE_UNAVAILABLE", "postgresql"), ("valkey", "CACHE_UNAVAILABLE", "redis")],
)
def test_server_frozen(system: Stack, server: str, code: str, check: str) -> None:
    """A server that stands still: promised refusals in time, open streams go on, service returns by itself."""
    with broken(system, server), system.stream(STREAM) as stream:
        assert stream.read()
        with system.frozen(server):
            assert_down(system, code, check)
            assert_lives(stream)
        eventually(lambda: served(system), 60, "service is back")
        assert_lives(stream)


@pytest.mark.gameday
@pytest.mark.parametrize(
    ("server", "code", "check"),
    [("postgres", "DATABASE_UNAVAILABLE", "postgresql"), ("valkey", "CACHE_UNAVAILABLE", "redis")],
)
def test_server_stopped(system: Stack, server: str, code: str, check: str) -> None:
    """A server that is gone: the same, and the tunnel is the same one when it is back."""
    with broken(system, server), system.stream(STREAM) as stream:
        assert stream.read()
        before = {one["session"] for one in system.sessions()}
        with system.stopped(server):
            assert_down(system, code, check)
            assert_lives(stream)
        eventually(lambda: system.call("GET", "/healthz", token="").status == 200, 60, "the health check is good")
        if server == "valkey":  # login sessions are gone with it: people log in again, boxes are back with a heartbeat
            eventually(lambda: logged_in(system), 30, "a login is taken")
        eventually(lambda: served(system), 30, "service is back")
        assert {one["session"] for one in system.sessions()} == before


@pytest.mark.gameday
def test_a_restarted_daemon_leaves_no_ghost(system: Stack) -> None:
    """A daemon killed for good: its device is offline at once by the registry's word, in the table within 40 s."""
    device = system.device_id()
    system.kill("agent")
    system.kill("tunnel")
    eventually(lambda: not system.call("GET", "/api/pairing/status").data["connected"], 90, "the box is offline")
    with psycopg.connect(**database_address(system.plan.settings), autocommit=True) as db:

        def status() -> str:
            row = db.execute("SELECT link_status FROM devices WHERE id = %s", [device]).fetchone()
            assert row is not None
            return str(row[0])

        eventually(lambda: status() == "offline", 60, "the table follows the registry")


def test_nothing_leaks_over_many_streams(system: Stack) -> None:
    """Streams that clients leave half-way: file descriptors of api and daemon are as many afterwards as before."""

    def descriptors() -> dict[str, int]:
        return {name: psutil.Process(pid).num_fds() for name, pid in system.pids("tunnel", "api").items()}

    def leave_half_way(count: int) -> None:
        for _ in range(count):
            with system.stream(STREAM) as stream:
                assert stream.read()

    leave_half_way(8)  # what is opened once and kept: pools, log files
    eventually(lambda: all(one["streams"] <= 1 for one in system.sessions()), 30, "streams are gone")
    before = descriptors()
    leave_half_way(40)
    eventually(lambda: all(one["streams"] <= 1 for one in system.sessions()), 30, "streams are gone")
    eventually(
        lambda: all(now <= before[name] + 8 for name, now in descriptors().items()), 60, f"no more than {before}"
    )
