"""A box that answers and resets its connection: what it said before arrives by every lane; a part is never a whole."""

from __future__ import annotations

import contextlib
import fcntl
import select
import socket
import struct
import termios
import time
from collections import Counter
from collections.abc import Callable

import pytest

from tests.apps.proxy.kit import WAIT, Got, Peer, reset
from tests.apps.proxy.stack import Lane
from tests.system.ws_kit import SWITCH, WS

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = ["tunnel", "fast"]

TIMES = 30
UPLOAD = bytes(1 << 20)
LARGE = bytes(range(256)) * (1 << 13)  # 2 MiB: more than any window or buffer on the way
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole"


def is_reset(sock: socket.socket) -> bool:
    """Whether the other side has reset the connection."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def said_then_reset(*pieces: bytes) -> Callable[[Peer], bool]:
    """A script: say all of it, and reset once the agent's kernel has it (a reset drops what it has not)."""

    def script(peer: Peer) -> bool:
        for piece in pieces:
            peer.sock.sendall(piece)
        deadline = time.monotonic() + WAIT
        while struct.unpack("i", fcntl.ioctl(peer.sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0]:
            if is_reset(peer.sock):  # by an agent that has read it all: nobody acknowledges it any more
                return False
            assert time.monotonic() < deadline
            time.sleep(0.001)
        reset(peer.sock)
        return False

    return script


def closed_with_the_upload_unread(status: str, body: bytes) -> Callable[[Peer], bool]:
    """A script: answer at once and close. Linux resets a connection that is closed with bytes unread."""

    def script(peer: Peer) -> bool:
        peer.answer(body, status, "Connection: close")
        peer.sock.close()
        return False

    return script


def upload(lane: Lane, path: str, body: bytes = UPLOAD) -> Got:
    """Send the body as far as anybody takes it, then read the answer."""
    with lane.wire() as wire:
        with contextlib.suppress(OSError):
            wire.send(lane.head("POST", path, f"Content-Length: {len(body)}") + body)
        return wire.read()


def test_an_answer_before_a_reset_arrives(lane: Lane) -> None:
    lane.box.on("/reset", said_then_reset(WHOLE))
    seen = Counter((got.status, got.complete) for got in (lane.ask("GET", "/reset") for _ in range(TIMES)))
    assert seen == {(200, True): TIMES}


@pytest.mark.parametrize("status", ["413 Payload Too Large", "401 Unauthorized"])
@pytest.mark.parametrize("end", ["closed", "reset"])
def test_an_early_answer_arrives_though_the_upload_was_not_read(lane: Lane, status: str, end: str) -> None:
    answer = f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\nno!!!".encode()
    lane.box.on("/no", said_then_reset(answer) if end == "reset" else closed_with_the_upload_unread(status, b"no!!!"))
    seen = Counter((got.status, got.complete) for got in (upload(lane, "/no") for _ in range(TIMES // 3)))
    assert seen == {(int(status[:3]), True): TIMES // 3}


def test_a_large_answer_before_a_reset_arrives(lane: Lane) -> None:
    lane.box.on("/large", said_then_reset(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(LARGE), LARGE))
    for _ in range(3):
        got = lane.ask("GET", "/large")
        assert (got.status, got.complete, got.body == LARGE) == (200, True, True)


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nwhole",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwhole\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nwhole",
    ],
    ids=["length", "chunked", "until its end"],
)
@pytest.mark.parametrize("body", [b"", UPLOAD], ids=["plain", "upload unread"])
def test_a_body_that_a_reset_cut_short_does_not_look_complete(lane: Lane, said: bytes, body: bytes) -> None:
    lane.box.on("/cut", said_then_reset(said))
    for _ in range(TIMES // 6):
        got = upload(lane, "/cut", body) if body else lane.ask("GET", "/cut")
        assert not got.complete, got
        assert got.ended == "reset" or got.status == 502


def test_the_last_words_of_an_upgraded_connection_arrive_before_its_reset(lane: Lane) -> None:
    lane.box.on(
        "/ws/up",
        said_then_reset(SWITCH + b"\r\n", b"last words"),
    )
    for _ in range(TIMES // 3):
        with lane.wire() as wire:
            wire.send(lane.head("GET", "/ws/up", *WS, prefix=lane.prefix if lane.name == "fast" else ""))
            assert wire.read_head().status == 101
            assert wire.wait_end() == "reset"
            assert wire.buffer == b"last words"
