"""Who is slow, and who has stopped: times of progress, on every lane, with times short enough to be waited for.

What must outlive such a time is told that it is over by a second exchange that began with it, not by a clock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from tests.apps.proxy.kit import WAIT, Got, Peer, Wire, until
from tests.apps.proxy.stack import EVERY_CARRIER, Lane
from tests.system.ws_kit import SWITCH, WS

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER

HEAD_SECONDS = 4
IDLE_SECONDS = 2
API_SETTINGS = {
    "PROXY_HEAD_SECONDS": str(HEAD_SECONDS),
    "PROXY_IDLE_SECONDS": str(IDLE_SECONDS),
    "PROXY_UPGRADE_IDLE_SECONDS": str(IDLE_SECONDS),
}
PIECE = bytes(1 << 16)
ROOM = 4096
"""A receive buffer as a client may have it: what waits for it waits in our hands and the box's."""


def started(lane: Lane, method: str, path: str, *fields: str, body: bytes = b"") -> Wire:
    wire = lane.wire()
    wire.send(lane.head(method, path, *fields) + body)
    return wire


def upload_beside_a_timeout(lane: Lane, late: list[Got]) -> str:
    """Upload bit by bit until a request that began at the same time has its answer: what became of the upload."""
    sent = 0
    asking = threading.Thread(target=lambda: late.append(lane.ask("GET", "/slow")))
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/up", "Transfer-Encoding: chunked"))
        asking.start()
        try:
            while asking.is_alive():
                wire.send(b"4\r\nmore\r\n")
                sent += 4
                asking.join(0.2)
            wire.send(b"0\r\n\r\n")
            got = wire.read()
        except ConnectionError:
            return "reset"
        finally:
            asking.join()
    return "whole" if got.status == 200 and got.json["size"] == sent else got.code


def test_a_head_that_does_not_come_and_an_upload_that_moves_meanwhile(lane: Lane) -> None:
    """The time for a head begins with the last byte to the box, and each piece of a body is progress."""
    gone: list[str] = []
    lane.box.on("/slow", lambda peer: gone.append(peer.wait_gone()))
    late: list[Got] = []
    found: list[str] = []
    while "whole" not in found and len(found) < 3:  # a machine that stood still meanwhile says nothing of the upload
        found.append(upload_beside_a_timeout(lane, late))
    assert "whole" in found, found
    assert {(got.status, got.code) for got in late} == {(504, "TUNNEL_TIMEOUT")}
    until(lambda: len(gone) == len(found))
    assert set(gone) == {"reset"}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_box_that_says_it_is_at_work_is_waited_for(lane: Lane, method: str) -> None:
    """102 now and then, until a request that began at the same time, of a box that says nothing, was given up."""
    over = threading.Event()

    def work(peer: Peer) -> None:
        while not over.wait(0.5):
            peer.sock.sendall(b"HTTP/1.1 102 Processing\r\n\r\n")
        peer.sock.sendall(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n")
        peer.answer(b"done")

    lane.box.on("/work", work)
    lane.box.on("/slow", lambda peer: peer.wait_gone() == "")
    with started(lane, method, "/work", "Content-Length: 0") as wire:
        late = lane.ask("GET", "/slow?first")
        assert (late.status, late.code) == (504, "TUNNEL_TIMEOUT")
        over.set()
        got = wire.read()
    assert (got.status, got.body, got.all("link")) == (200, b"done", [])


def test_whoever_stops_within_a_body_is_not_waited_for(lane: Lane) -> None:
    """The client within its own is told so, the box within its answer is cut; the other side sees a reset."""
    gone: dict[str, str] = {}

    def stall(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        gone["stall"] = peer.wait_gone()

    def take(peer: Peer) -> None:
        gone["take"] = peer.wait_gone()

    lane.box.on("/stall", stall)
    lane.box.on("/take", take)
    with (
        started(lane, "GET", "/stall") as down,
        started(lane, "PUT", "/take", "Content-Length: 90000", body=b"x") as up,
    ):
        answer = down.read()
        assert (answer.body, answer.complete, answer.ended) == (b"some", False, "reset")
        told = up.read()
        assert (told.status, told.code, told.one("connection")) == (408, "REQUEST_TIMEOUT", "close")
    until(lambda: len(gone) == 2)
    assert gone == {"stall": "reset", "take": "reset"}


def pour(said: bytes, ended: dict[str, str]) -> Callable[[Peer], None]:
    """A box that has more to say than all buffers hold."""

    def script(peer: Peer) -> None:
        peer.sock.sendall(said)
        try:
            while True:
                peer.sock.sendall(PIECE)
        except ConnectionError:
            ended[peer.path] = "reset"
        except TimeoutError:
            ended[peer.path] = "not let go"

    return script


def test_a_client_that_takes_nothing_is_cut(lane: Lane) -> None:
    """Of an answer, and of an upgraded connection: the box is stopped by full buffers, and let go when time is up."""
    ended: dict[str, str] = {}
    lane.box.on("/pour", pour(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (1 << 40), ended))
    lane.box.on("/ws/pour", pour(SWITCH + b"\r\n", ended))
    with lane.wire(room=ROOM) as answer, lane.wire(room=ROOM) as upgraded:
        answer.send(lane.head("GET", "/pour"))
        upgraded.send(lane.head("GET", "/ws/pour", *WS, prefix=""))
        until(lambda: len(ended) == 2, 2 * WAIT)
        assert ended == {"/pour": "reset", "/ws/pour": "reset"}
        assert (answer.read_head().status, upgraded.read_head().status) == (200, 101)  # both had begun
        assert (answer.wait_end(), upgraded.wait_end()) == ("reset", "reset")
