"""How the API's server begins and ends, seen by callers who come just then: nobody waits in a queue for nothing."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from tests.system.gunicorn_worker_kit import HOST, Server, get, read_all, read_answer
from tests.system.stack import BUSY, eventually

pytestmark = [pytest.mark.system, pytest.mark.gameday]
POST = b"POST /read HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello"


@contextmanager
def started(folder: Path, name: str = "log.jsonl", workers: int = 1, **settings: str) -> Iterator[Server]:
    running = Server(folder / name, workers, **settings)
    try:
        yield running
    finally:
        running.stop()


def post(port: int, *, seconds: float = 10.0) -> str:
    """What a POST from a new connection comes to: `refused`, `answered`, or what went wrong after it was connected."""
    try:
        sock = socket.create_connection(("127.0.0.1", port), timeout=seconds)
    except ConnectionRefusedError:
        return "refused"
    try:
        sock.sendall(POST)
        line, _, body = read_answer(sock)
    except (OSError, AssertionError) as error:
        return f"no answer: {type(error).__name__}"
    else:
        return "answered" if (line, body) == (b"HTTP/1.1 200 OK", b"hello") else line.decode()
    finally:
        sock.close()


def callers(port: int, stop: threading.Event, seen: Counter[str], number: int = 8) -> list[threading.Thread]:
    def work() -> None:
        while not stop.is_set():
            told = post(port)
            seen[told] += 1
            if told == "refused":
                stop.wait(0.05)

    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    return threads


def refused_by(port: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=seconds).close()
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            return False
        time.sleep(0.05)
    return False


def test_every_caller_of_a_server_that_stops_is_answered_or_refused(tmp_path: Path) -> None:
    """Though a long exchange goes on: it keeps no port open for callers whom nobody takes."""
    with started(tmp_path, workers=2) as server:
        server.wait_ready()
        seen: Counter[str] = Counter()
        stop = threading.Event()
        with server.connect() as long:
            long.sendall(b"GET /slower HTTP/1.1\r\n" + HOST + b"\r\n")
            threads = callers(server.port, stop, seen)
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            assert refused_by(server.port, 3.0)
            assert server.process.poll() is None
            assert read_all(long).startswith(b"HTTP/1.1 200 OK\r\nConnection: close\r\n")
        stop.set()
        for thread in threads:
            thread.join()
        assert server.process.wait(10) == 0
        assert set(seen) == {"answered", "refused"}, seen


def test_a_worker_that_missed_the_signal_ends_too(tmp_path: Path) -> None:
    """It came while the worker had its master's handlers: others had the kernel drop callers, and it kept the port."""
    gate = tmp_path / "gate"
    with started(tmp_path, workers=2, TEST_OTHERS_WAIT_FOR=str(gate)) as server:
        server.wait_ready()
        workers = psutil.Process(server.process.pid).children
        eventually(lambda: len(workers()) == 2, 10, "both workers are there")
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: len(workers()) == 1, 10, "the first has ended, so that both were told")
        gate.touch()
        assert refused_by(server.port, 3.0 * BUSY)
        assert server.process.wait(5 * BUSY) == 0


def test_it_listens_once_it_can_answer(tmp_path: Path) -> None:
    """Until then callers are refused: a balancer asks another one, where it would wait for seconds."""
    gate = tmp_path / "loaded"
    with started(tmp_path, TEST_LOADS_ONCE_THERE_IS=str(gate)) as server:
        deadline = time.monotonic() + 30
        while "Booting worker" not in server.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert post(server.port, seconds=1.0) == "refused"
        gate.touch()
        server.wait_ready()
        assert post(server.port) == "answered"


def test_a_port_in_use_ends_the_start(tmp_path: Path) -> None:
    with started(tmp_path) as first:
        first.wait_ready()
        with started(tmp_path, "second.jsonl", VISIONA_API_PORT=str(first.port)) as second:
            assert second.process.wait(30) != 0
            assert "cannot be bound: Address already in use" in second.log.read_text()
        assert post(first.port) == "answered"


def test_a_reload_closes_the_port_to_nobody(tmp_path: Path) -> None:
    """Workers are replaced: the old ones leave the listening socket as it is, whose last word is the master's."""
    with started(tmp_path, VISIONA_LAMEDUCK_SECONDS="30") as server:
        server.wait_ready()
        before = server.log.read_text().count("Booting worker")
        seen: Counter[str] = Counter()
        stop = threading.Event()
        threads = callers(server.port, stop, seen, 4)
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while server.log.read_text().count("Booting worker") == before or get(server, "/")[0] != b"HTTP/1.1 200 OK":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        assert set(seen) == {"answered"}, seen
        assert get(server, "/healthz")[0] == b"HTTP/1.1 200 OK"
        server.process.kill()  # and not its lame-duck time


class Balancer:
    """Asks each server's health, acts on what it learnt only `late` seconds later, and sends callers to the well ones.

    It retries nothing: what it passes on is answered, or lost.
    """

    def __init__(self, ports: list[int], late: float) -> None:
        self._late = late
        self._sick_since: dict[int, float | None] = dict.fromkeys(ports)
        self._turn = 0

    def look(self) -> None:
        for port in self._sick_since:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=2) as sock:
                    sock.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
                    well = read_answer(sock)[0] == b"HTTP/1.1 200 OK"
            except (OSError, AssertionError):
                well = False
            if well:
                self._sick_since[port] = None
            elif self._sick_since[port] is None:
                self._sick_since[port] = time.monotonic()

    def choose(self) -> int:
        now = time.monotonic()
        well = [port for port, since in self._sick_since.items() if since is None or now - since < self._late]
        self._turn += 1
        return well[self._turn % len(well)]


def test_behind_a_balancer_that_learns_late_nothing_is_lost(tmp_path: Path) -> None:
    """The lame-duck time: not healthy, and everything is served."""
    with ExitStack() as held:
        settings = {"VISIONA_LAMEDUCK_SECONDS": "4"}
        first, second = (held.enter_context(started(tmp_path, f"{name}.jsonl", **settings)) for name in ("a", "b"))
        first.wait_ready()
        second.wait_ready()
        balancer = Balancer([first.port, second.port], late=3.0)
        seen: Counter[str] = Counter()
        began = time.monotonic()
        first.process.send_signal(signal.SIGTERM)
        while first.process.poll() is None:
            balancer.look()
            seen[post(balancer.choose())] += 1
            assert time.monotonic() < began + 20
            time.sleep(0.01)
        assert time.monotonic() - began >= 4.0
        for _ in range(10):
            seen[post(balancer.choose())] += 1
        assert set(seen) == {"answered"}, seen
