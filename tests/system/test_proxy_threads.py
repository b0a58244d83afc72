"""What the DRF lane makes of its daemon's words, of its threads, and of who may no longer: before a stand-in.

The fast lane has no threads, and `runtime/daemon/lane/test_access.py` for its own question of who may. Limits and times
are in `test_proxy_limits` and `test_proxy_slow`, on every lane.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from apps.common import redis
from tests.apps.proxy.kit import WAIT, Peer, Wire, until
from tests.apps.proxy.stack import Lane, Stack, log_in, put_online

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]

HEAD_SECONDS = 2
API_SETTINGS = {
    "API_THREADS": "11",
    "API_LONG_EXCHANGES": "4",
    "PROXY_HEAD_SECONDS": str(HEAD_SECONDS),
    "PROXY_IDLE_SECONDS": "3",
    "PROXY_OPEN_SECONDS": "1",
    "DB_POOL_MIN": "0",
    "DB_POOL_MAX": "2",  # fewer than exchanges that run: none may hold one
}


def healthy(lane: Lane) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{lane.port}/healthz", timeout=2) as answer:
        return bool(answer.status == 200)


# --- what a daemon says, or does not ----------------------------------------------------------------------------------
def test_no_daemon(lane: Lane) -> None:
    lane.daemon.close()
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (503, "TUNNEL_UNAVAILABLE")
    assert int(got.one("retry-after")) >= 1


def test_a_frozen_daemon(lane: Lane) -> None:
    lane.daemon.silent.set()
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (503, "TUNNEL_UNAVAILABLE")


@pytest.mark.parametrize(
    ("said", "status", "code"),
    [
        ((404, "NOT_FOUND"), 503, "TUNNEL_DISCONNECTED"),
        ((503, "OVERLOADED"), 503, "OVERLOADED"),
        ((504, "TUNNEL_TIMEOUT"), 504, "TUNNEL_TIMEOUT"),
    ],
)
def test_a_daemon_that_refuses(lane: Lane, said: tuple[int, str], status: int, code: str) -> None:
    lane.daemon.refuse = said
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (status, code)
    assert bool(got.all("retry-after")) is (status == 503)


def test_a_newer_session_is_found(lane: Lane) -> None:
    lane.daemon.sessions.clear()  # the registry still names the session that the daemon has lost
    lane.daemon.before_answer = lambda: put_online(lane.device_id, lane.user_id, lane.daemon, epoch=2)
    assert lane.ask("POST", "/x", "Content-Length: 0").status == 200
    assert len(lane.daemon.calls) == 2


# --- threads ----------------------------------------------------------------------------------------------------------
def endless(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n--b\r\n")
    while peer.wait_gone(0.3) == "still there":
        peer.sock.sendall(b"x")


def start(lane: Lane, path: str) -> Wire:
    wire = lane.wire()
    wire.send(lane.head("GET", path))
    return wire


def test_endless_answers_hold_only_their_share_of_the_threads(lane: Lane) -> None:
    lane.box.on("/mjpeg", endless)
    wires = [start(lane, "/mjpeg") for _ in range(3)]
    try:
        assert [wire.read_head().status for wire in wires] == [200, 200, 200]
        got = lane.ask("GET", "/mjpeg")
        assert (got.status, got.code) == (503, "OVERLOADED")
        assert int(got.one("retry-after")) >= 1
        assert healthy(lane)
        wires.pop().sock.close()
        until(lambda: lane.ask("GET", "/short").status == 200)
        wires.append(start(lane, "/mjpeg"))
        assert wires[-1].read_head().status == 200
    finally:
        for wire in wires:
            wire.sock.close()


def test_more_requests_than_threads_leave_the_api_alive(lane: Lane) -> None:
    go_on = threading.Event()

    def wait(peer: Peer) -> None:
        go_on.wait(WAIT)
        peer.answer(b"done")

    lane.box.on("/wait", wait)
    began = time.monotonic()
    with ThreadPoolExecutor(12) as threads:
        calls = [threads.submit(lane.ask, "GET", "/wait") for _ in range(12)]
        until(lambda: len(lane.box.heads) >= 7)  # 11 threads, of which one stays free; no user has more than 7 of 10
        assert healthy(lane)
        go_on.set()
        in_time = time.monotonic() - began < HEAD_SECONDS / 2
        codes = sorted(call.result().status for call in calls)
    if in_time:  # else the first ones have waited over the time for a head: 504
        assert codes[:7] == [200] * 7
    assert set(codes) <= {200, 503, 504}
    assert lane.ask("GET", "/x").status == 200, "a thread did not come back"


def test_what_lasts_over_five_seconds_counts_as_long(lane: Lane) -> None:
    def drip(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while peer.wait_gone(0.5) == "still there":
            peer.sock.sendall(b"x")

    lane.box.on("/drip", drip)
    wires = [start(lane, "/drip") for _ in range(4)]
    try:
        assert [wire.read_head().status for wire in wires] == [200] * 4
        with ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(_end_within, wire, 12) for wire in wires]
            assert sorted(end.result() for end in ends) == ["open", "open", "open", "reset"]
        assert lane.ask("GET", "/x").code == "OVERLOADED"
        assert healthy(lane)
    finally:
        for wire in wires:
            wire.sock.close()


def _end_within(wire: Wire, seconds: float) -> str:
    deadline = time.monotonic() + seconds
    wire.sock.settimeout(10)
    while time.monotonic() < deadline:
        if not wire.more():
            return wire.ended
    return "open"


# --- who may no longer ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["logout", "unpair", "disable", "admitted anew"])
def test_a_running_exchange_ends_with_its_right(lane: Lane, stack: Stack, what: str) -> None:
    lane.box.on("/mjpeg", endless)
    with start(lane, "/mjpeg") as wire:
        assert wire.read_head().status == 200
        ended_at = time.monotonic()
        if what == "logout":
            redis.client().flushdb()
        elif what == "unpair":
            stack.rows("UPDATE devices SET deleted_at = now() WHERE id = %s", lane.device_id)
        elif what == "disable":
            stack.rows("UPDATE users SET is_active = false WHERE id = %s", lane.user_id)
        else:
            stack.rows("UPDATE devices SET epoch = 2 WHERE id = %s", lane.device_id)
        assert wire.wait_end() == "reset"
        assert time.monotonic() - ended_at < 20
    until(lambda: not lane.box.live)


def test_another_login_of_the_user_is_none_of_its_business(lane: Lane) -> None:
    lane.box.on("/mjpeg", endless)
    other = log_in(lane.user_id)
    with start(lane, "/mjpeg") as wire:
        wire.read_head()
        head = f"POST /api/auth/logout HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {other}\r\n"
        with lane.wire() as bye:
            bye.send(f"{head}Content-Length: 0\r\n\r\n".encode())
            assert bye.read().status == 200
        assert _end_within(wire, 3) == "open"
