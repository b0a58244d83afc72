"""`/ws/*` on every lane: refusals before the upgrade, bytes both ways after it, and who ends it."""

from __future__ import annotations

import base64
import hashlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest
from django.utils import timezone

from apps.accounts import sessions
from tests.apps.proxy.kit import WAIT, Peer, Wire
from tests.apps.proxy.stack import EVERY_CARRIER, EVERY_WAY, Lane, Stack, add_device, add_user, log_in
from tests.system.ws_kit import SWITCH, WS, echo, receive, ticket_for

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER
IDLE_SECONDS = 4
API_SETTINGS = {"API_THREADS": "16", "PROXY_UPGRADE_IDLE_SECONDS": str(IDLE_SECONDS)}


@pytest.fixture
def upgraded(lane: Lane) -> Iterator[Callable[..., Wire]]:
    """Opens a connection to `/ws/echo`, upgraded."""
    lane.box.on("/ws/echo", echo)
    with ExitStack() as open_ones:

        def make(path: str = "/ws/echo", *fields: str, early: bytes = b"") -> Wire:
            wire = open_ones.enter_context(lane.wire())
            wire.send(lane.head("GET", path, *WS, *fields, prefix="") + early)
            got = wire.read_head()
            assert (got.status, got.one("upgrade"), got.one("connection")) == (101, "websocket", "Upgrade"), got.head
            return wire

        yield make


# --- what passes ------------------------------------------------------------------------------------------------------
def test_bytes_pass_both_ways(upgraded: Callable[..., Wire]) -> None:
    wire = upgraded()
    for size in (1, 125, 70_000, 3_000_000):
        sent = os.urandom(size)
        thread = threading.Thread(target=wire.send, args=(sent,))
        thread.start()
        assert receive(wire, size) == sent
        thread.join()


def test_what_was_sent_with_the_head_is_not_lost(upgraded: Callable[..., Wire]) -> None:
    wire = upgraded(early=b"early bird")
    assert receive(wire, 10) == b"early bird"


def test_the_handshake_passes_as_it_came(lane: Lane) -> None:
    seen: list[bytes] = []

    def script(peer: Peer) -> bool:
        seen.append(peer.head)
        peer.sock.sendall(SWITCH + b"Sec-WebSocket-Protocol: b\r\nSet-Cookie: a=b\r\n\r\nfirst")
        peer.wait_gone()
        return False

    lane.box.on("/ws/a%2Fb", script)
    with lane.wire() as wire:
        path = f"/ws/a%2Fb?x=1&device_id={lane.device_id}&y=%20"
        wire.send(lane.head("GET", path, *WS, "Sec-WebSocket-Protocol: a, b", "Cookie: c=d", prefix=""))
        got = wire.read_head()
        assert (got.status, got.one("sec-websocket-protocol"), got.all("set-cookie")) == (101, "b", [])
        assert got.all("x-request-id")
        assert receive(wire, 5) == b"first"
    (head,) = seen
    assert head.startswith(b"GET /ws/a%2Fb?x=1&y=%20 HTTP/1.1\r\n")
    lower = head.lower()
    assert b"connection: upgrade\r\n" in lower
    assert b"sec-websocket-protocol: a, b\r\n" in lower
    assert b"authorization" not in lower
    assert b"cookie" not in lower


def test_a_half_close_passes_and_the_other_way_goes_on(upgraded: Callable[..., Wire]) -> None:
    wire = upgraded()
    wire.send(b"last")
    wire.sock.shutdown(socket.SHUT_WR)
    assert receive(wire, 7) == b"lastbye"
    assert wire.wait_end() == "closed"


def test_a_half_close_before_the_first_byte_passes(upgraded: Callable[..., Wire]) -> None:
    wire = upgraded()
    wire.sock.shutdown(socket.SHUT_WR)
    assert (wire.wait_end(), wire.buffer) == ("closed", b"bye")


def test_the_box_may_refuse_the_handshake(lane: Lane) -> None:
    lane.box.on("/ws/no", lambda peer: peer.answer(b"not here", "403 Nope", "X-Why: because"))
    got = lane.ask("GET", "/ws/no", *WS, prefix="", close=False)
    assert (got.status, got.reason, got.body, got.one("x-why")) == (403, "Nope", b"not here", "because")


@pytest.mark.parametrize("lane", EVERY_WAY, indirect=True)
def test_an_upgrade_passes_under_every_prefix(lane: Lane) -> None:
    ways = [(lane.prefix, "/deep/echo"), (lane.prefix, "/ws/echo")]
    for prefix, path in (*ways, ("", "/api/cameras/0/ws"), ("", "/api/inference/ws")):
        lane.box.on(path, echo)
        with lane.wire() as wire:
            wire.send(lane.head("GET", path, *WS, prefix=prefix) + b"early")
            assert wire.read_head().status == 101, path
            assert receive(wire, 5) == b"early"
            wire.sock.shutdown(socket.SHUT_WR)
            assert (wire.wait_end(), wire.buffer) == ("closed", b"bye")
        with lane.wire() as wire:  # which any page could open, if it were not asked where it comes from
            wire.send(lane.head("GET", path, *WS, "Origin: http://evil.example", prefix=prefix))
            assert wire.read_head().status == 403


@pytest.mark.parametrize(
    "fields",
    [
        ("Connection: Upgrade, close", "Upgrade: h2c"), ("Connection: Upgrade, close", "Upgrade: websocket, h2c"),
        ("Connection: close", "Upgrade: websocket"), ("Connection: Upgrade, close",),
    ],
)  # fmt: skip
def test_what_is_no_upgrade_to_websocket_passes_as_a_plain_request(lane: Lane, fields: tuple[str, ...]) -> None:
    got = lane.ask("GET", "/x", *fields, close=False)
    names = {name.lower() for name, _ in got.json["fields"]}
    assert (got.status, names & {"upgrade", "connection"}) == (200, set())
    assert lane.ask("POST", "/x", *WS, "Content-Length: 0", close=False).status == 200  # nor by another method


# --- refusals before the upgrade --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        (), ("Connection: Upgrade",), ("Upgrade: websocket",), ("Connection: close", "Upgrade: websocket"),
        ("Connection: Upgrade", "Upgrade: h2c"), ("Connection: Upgrade", "Upgrade: websocket, h2c"),
    ],
)  # fmt: skip
def test_without_an_upgrade_to_websocket(lane: Lane, fields: tuple[str, ...]) -> None:
    got = lane.ask("GET", "/ws/echo", *fields, prefix="", close=False)
    assert (got.status, got.code, got.one("upgrade")) == (426, "UPGRADE_REQUIRED", "websocket")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE"])
def test_another_method(lane: Lane, method: str) -> None:
    got = lane.ask(method, "/ws/echo", *WS, prefix="", close=False)
    assert (got.status, got.one("allow")) == (405, "GET")


def test_an_upgrade_with_a_body(lane: Lane) -> None:
    got = lane.ask("GET", "/ws/echo", *WS, body=b"x", prefix="", close=False)
    assert (got.status, got.code) == (400, "BAD_REQUEST")


def test_http_1_0_cannot_upgrade(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/ws/echo", *WS, prefix="").replace(b"HTTP/1.1", b"HTTP/1.0"))
        while b"\r\n\r\n" not in wire.buffer:
            assert wire.more()
        assert wire.buffer[:13] in (b"HTTP/1.0 426 ", b"HTTP/1.1 426 ")  # either is one that such a client reads


@pytest.mark.parametrize("token", ["", "vAu_" + "0" * 32])
def test_strangers(lane: Lane, token: str) -> None:
    lane.token = token
    got = lane.ask("GET", "/ws/echo", *WS, prefix="", close=False)
    assert (got.status, got.code) == (401, "UNAUTHENTICATED")


def test_another_users_device_and_an_offline_one(lane: Lane, stack: Stack) -> None:
    offline = add_device(stack, lane.user_id)
    got = lane.ask("GET", f"/ws/echo?device_id={offline}", *WS, prefix="", close=False)
    assert (got.status, got.code) == (503, "TUNNEL_DISCONNECTED")
    lane.token = log_in(add_user(stack))
    got = lane.ask("GET", f"/ws/echo?device_id={lane.device_id}", *WS, prefix="", close=False)
    assert (got.status, got.code) == (404, "NOT_FOUND")


# --- who ends it ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("by", ["bearer", "ticket"])
def test_a_logout_ends_it(lane: Lane, upgraded: Callable[..., Wire], by: str) -> None:
    wire = talking(lane, upgraded, by)
    session = sessions.use(lane.token, now=timezone.now())
    assert session is not None
    sessions.end(session)
    assert cut_while_talking(wire)


def talking(lane: Lane, upgraded: Callable[..., Wire], by: str) -> Wire:
    """A connection that was opened by the login or by a ticket of it, and works."""
    wire = upgraded(f"/ws/echo?ticket={ticket_for(lane)}") if by == "ticket" else upgraded()
    wire.send(b"x")
    receive(wire, 1)
    return wire


def cut_while_talking(wire: Wire) -> bool:
    """Whether it is reset soon, although both sides talk: or the idle time of these tests would end it."""
    stop = threading.Event()
    busy = threading.Thread(target=keep_talking, args=(wire, stop))
    busy.start()
    started = time.monotonic()
    try:
        return wire.wait_end() == "reset" and time.monotonic() - started < 20
    finally:
        stop.set()
        busy.join()


def keep_talking(wire: Wire, stop: threading.Event) -> None:
    while not stop.wait(0.5):
        try:
            wire.send(b"x")
        except OSError:
            return


def test_the_client_is_gone(lane: Lane) -> None:
    ended: list[str] = []
    done = threading.Event()

    def script(peer: Peer) -> bool:
        peer.sock.sendall(SWITCH + b"\r\n")
        ended.append(peer.wait_gone())
        done.set()
        return False

    lane.box.on("/ws/x", script)
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/ws/x", *WS, prefix=""))
        assert wire.read_head().status == 101
    assert done.wait(WAIT)


def test_the_box_resets(lane: Lane) -> None:
    def script(peer: Peer) -> bool:
        peer.sock.sendall(SWITCH + b"\r\nsome")
        peer.sock.recv(1)  # the client has the head, or the reset could overtake it
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()
        return False

    lane.box.on("/ws/x", script)
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/ws/x", *WS, prefix=""))
        assert wire.read_head().status == 101
        wire.send(b"x")
        assert wire.wait_end(30) == "reset"


def talk_on(peer: Peer) -> bool:
    """A box that talks whatever the client does, until it is gone."""
    peer.sock.sendall(SWITCH + b"\r\n")
    with suppress(OSError):
        while True:
            peer.sock.sendall(b"x")
            time.sleep(0.5)
    return False


def say_nothing(peer: Peer) -> bool:
    """A box that says nothing, also when the client has ended, until its connection is broken."""
    peer.sock.sendall(SWITCH + b"\r\n")
    poll = select.poll()
    poll.register(peer.sock, select.POLLERR | select.POLLHUP)  # an end of the other side alone is neither
    poll.poll(WAIT * 1000)
    return False


def test_silence_ends_it_and_talk_keeps_it(lane: Lane, upgraded: Callable[..., Wire]) -> None:
    """After a half-close too: the side that may still talk is waited for as long, and no longer."""
    lane.box.on("/ws/talk", talk_on)
    lane.box.on("/ws/mute", say_nothing)
    quiet, loud, heard, mute = upgraded(), upgraded(), upgraded("/ws/talk"), upgraded("/ws/mute")
    for wire in (heard, mute):
        wire.send(b"last")
        wire.sock.shutdown(socket.SHUT_WR)
    started = time.monotonic()
    stop = threading.Event()
    thread = threading.Thread(target=keep_talking, args=(loud, stop))
    thread.start()
    assert (quiet.wait_end(), mute.wait_end()) == ("reset", "reset")
    assert time.monotonic() - started > IDLE_SECONDS - 0.5
    stop.set()
    thread.join()
    loud.buffer = b""
    loud.send(b"still here")
    found = b""
    while not found.endswith(b"still here"):
        found += receive(loud, 1)
    heard.buffer = b""
    assert receive(heard, 1) == b"x"


def test_accept_key_arithmetic_is_the_boxs_business(lane: Lane) -> None:
    """A real handshake: the key goes to the box and its answer comes back, whole."""
    key = base64.b64encode(b"0123456789abcdef").decode()

    def script(peer: Peer) -> bool:
        given = peer.fields("sec-websocket-key")[0]
        digest = hashlib.sha1((given + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False).digest()
        accept = base64.b64encode(digest).decode()
        peer.sock.sendall(SWITCH.replace(b"Accept: x", f"Accept: {accept}".encode()) + b"\r\n")
        peer.wait_gone()
        return False

    lane.box.on("/ws/x", script)
    with lane.wire() as wire:
        fields = [field for field in WS if not field.startswith("Sec-WebSocket-Key")]
        wire.send(lane.head("GET", "/ws/x", *fields, f"Sec-WebSocket-Key: {key}", prefix=""))
        expected = base64.b64encode(
            hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode(), usedforsecurity=False).digest()
        )
        assert wire.read_head().one("sec-websocket-accept") == expected.decode()
