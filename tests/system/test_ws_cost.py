"""What open sockets cost a worker (docs/proxy.md, "What 200 open sockets cost"); the bounds are generous."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack

import psutil
import pytest

from tests.apps.proxy.kit import Peer
from tests.apps.proxy.stack import Lane
from tests.system.ws_kit import WS

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
SOCKETS = 200


def echo(peer: Peer) -> bool:
    peer.sock.settimeout(None)
    peer.sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while data := peer.sock.recv(1 << 16):
        peer.sock.sendall(data)
    return False


def worker_of(pid: int) -> psutil.Process:
    """The one worker of gunicorn's master."""
    (worker,) = psutil.Process(pid).children()
    return worker


def test_two_hundred_open_sockets(lane: Lane) -> None:
    lane.box.on("/ws/echo", echo)
    assert lane.ask("GET", "/healthz?live=1", prefix="").status == 200
    worker = worker_of(lane.api_pid)
    memory, threads = worker.memory_info().rss, worker.num_threads()
    with ExitStack() as stack:
        wires = [stack.enter_context(lane.wire()) for _ in range(SOCKETS)]
        for wire in wires:
            wire.send(lane.head("GET", "/ws/echo", *WS, prefix=""))
            assert wire.read_head().status == 101
        more = worker.memory_info().rss - memory
        spent = sum(worker.cpu_times()[:2])
        rest_began = time.monotonic()
        time.sleep(3)  # the measurement: how much they cost while nothing happens
        idle = (sum(worker.cpu_times()[:2]) - spent) / (time.monotonic() - rest_began)  # a busy machine sleeps longer
        times = []
        for wire in wires:
            started = time.perf_counter()
            wire.send(b"ping")
            assert wire.more()
            times.append((time.perf_counter() - started) * 1000)
        assert lane.ask("GET", "/healthz?live=1", prefix="").status == 200
        print(
            f"{SOCKETS} sockets: {more / SOCKETS / 1024:.0f} KiB and {(worker.num_threads() - threads) / SOCKETS:.2f}"
            f" threads each; {idle:.3f} CPU s a second at rest; echo {statistics.median(times):.1f} ms,"
            f" p99 {sorted(times)[-3]:.1f} ms"
        )
        assert more / SOCKETS < 512 * 1024
        assert idle < 0.5
