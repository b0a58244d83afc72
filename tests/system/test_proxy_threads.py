"""What port 3721 makes of its daemon's words, and of its own threads: before a daemon that the tests play."""

from __future__ import annotations

import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest

from tests.apps.proxy.kit import WAIT, Peer, Wire, until
from tests.apps.proxy.stack import Lane, Stack, add_device, put_online
from tests.apps.proxy.stand_in import StandInDaemon

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]

THREADS = 8
MANY = 4 * THREADS
LARGE = 100_000  # more than is gathered before a thread has it
API_SETTINGS = {
    "API_THREADS": str(THREADS),
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
    ("code", "status"), [("TUNNEL_DISCONNECTED", 503), ("OVERLOADED", 503), ("TUNNEL_TIMEOUT", 504)]
)
def test_a_daemon_that_refuses(lane: Lane, code: str, status: int) -> None:
    lane.daemon.refuse = (code, False)
    with lane.wire() as wire:
        for _ in range(2):  # the client's connection stays
            wire.send(lane.head("GET", "/x"))
            got = wire.read()
            assert (got.status, got.code) == (status, code)
    assert int(got.one("retry-after")) >= 1


def died() -> None:
    raise ConnectionAbortedError


def test_one_that_dies_before_anything_was_sent_is_passed_by(lane: Lane) -> None:
    with closing(StandInDaemon(lane.box.port)) as other:

        def moves() -> None:
            put_online(lane.device_id, lane.user_id, other, node="another", epoch=2)
            died()

        lane.daemon.before_answer = moves
        got = lane.ask("POST", "/x", body=b"12345")
        assert (got.status, got.json["size"]) == (200, 5)
        assert len(other.calls) == 1


def test_one_that_dies_and_nobody_else_has_the_box(lane: Lane) -> None:
    lane.daemon.before_answer = died
    got = lane.ask("POST", "/x", body=b"12345")
    assert (got.status, got.code) == (503, "TUNNEL_UNAVAILABLE")


def test_a_kept_connection_that_its_daemon_closed_costs_nobody_a_request(lane: Lane) -> None:
    assert lane.ask("GET", "/x").status == 200
    lane.daemon.kill_all()
    until(lambda: not lane.daemon.live)
    assert lane.ask("POST", "/x", body=b"12345").status == 200


def test_without_its_end_no_answer_is_whole(lane: Lane) -> None:
    def answer(peer: Peer) -> None:
        peer.answer(b"whole")
        lane.daemon.kill_all()

    lane.box.on("/dies", lambda peer: peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12345"))
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/dies"))
        assert wire.read_head().status == 200
        assert wire.wait_end() == "reset"


def test_one_of_the_release_before_is_reached_through_one_that_is_not(lane: Lane, stack: Stack) -> None:
    lane.daemon.older = True
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (503, "TUNNEL_UNAVAILABLE")
    assert "daemon_too_old" in lane.log()
    with closing(StandInDaemon(lane.box.port)) as other:
        other.sessions = lane.daemon.sessions  # it reaches the box through the one that holds it
        spare = add_device(stack, lane.user_id, "spare")
        put_online(spare, lane.user_id, other, node="newer")
        got = lane.ask("POST", "/x", body=b"12345", prefix=lane.prefix)
        assert (got.status, got.json["size"]) == (200, 5)
        assert [(call["node_url"], call["device_id"]) for call in other.calls] == [(lane.daemon.url, lane.device_id)]


# --- threads ----------------------------------------------------------------------------------------------------------
def endless(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n--b\r\n")
    while peer.wait_gone(0.3) == "still there":
        peer.sock.sendall(b"x")


def start(lane: Lane, held: ExitStack, path: str, method: str = "GET", *fields: str) -> Wire:
    wire = held.enter_context(lane.wire())
    wire.send(lane.head(method, path, *fields))
    return wire


def test_endless_answers_hold_no_thread(lane: Lane) -> None:
    lane.box.on("/mjpeg", endless)
    with ExitStack() as held:
        wires = [start(lane, held, "/mjpeg") for _ in range(MANY)]
        assert [wire.read_head().status for wire in wires] == [200] * MANY
        assert healthy(lane)
        assert lane.ask("GET", "/short").status == 200
        for wire in wires:
            assert wire.more()
    until(lambda: not lane.box.live)


def test_answers_that_are_waited_for_hold_no_thread(lane: Lane) -> None:
    go_on = threading.Event()

    def wait(peer: Peer) -> None:
        go_on.wait(WAIT)
        peer.answer(b"done")

    lane.box.on("/wait", wait)
    with ThreadPoolExecutor(MANY) as threads:
        calls = [threads.submit(lane.ask, "GET", "/wait", close=False) for _ in range(MANY)]
        until(lambda: len(lane.box.heads) >= MANY)
        assert healthy(lane)
        assert lane.ask("GET", "/short").status == 200
        go_on.set()
        assert [call.result().status for call in calls] == [200] * MANY


def test_bodies_that_do_not_come_hold_no_thread(lane: Lane) -> None:
    with ExitStack() as held:
        wires = [start(lane, held, "/up", "POST", f"Content-Length: {LARGE}") for _ in range(MANY)]
        until(lambda: len(lane.daemon.calls) >= MANY)
        assert healthy(lane)
        assert lane.ask("GET", "/short").status == 200
        for wire in wires:
            wire.send(bytes(LARGE))
            got = wire.read()
            assert (got.status, got.json["size"]) == (200, LARGE)
            wire.send(lane.head("GET", "/next"))  # the connection is the worker's again
            assert wire.read().status == 200


def test_a_refusal_is_told_after_its_thread_has_gone(lane: Lane) -> None:
    go_on = threading.Event()

    def hang_up(peer: Peer) -> None:
        go_on.wait(WAIT)

    lane.box.on("/late", hang_up)
    with ExitStack() as held:
        wires = [start(lane, held, "/late", "POST", "Content-Length: 0", "Accept-Language: zh-TW") for _ in range(4)]
        until(lambda: len(lane.box.heads) >= 4)
        threading.Event().wait(1.2)  # longer than a thread is held
        go_on.set()
        for wire in wires:
            got = wire.read()
            assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
            assert got.one("content-security-policy")
