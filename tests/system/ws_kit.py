"""What the tests of WebSockets on 3721 share: a handshake, a box that echoes, tickets."""

from __future__ import annotations

import uuid

from django.utils import timezone

from apps.proxy import tickets
from tests.apps.proxy.kit import Peer, Wire
from tests.apps.proxy.stack import Lane
from tunnel.contract import hash_token

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n"
WS = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")


def echo(peer: Peer) -> bool:
    """Upgrade, then every byte back until the end, and "bye" after it."""
    peer.sock.sendall(SWITCH + b"\r\n" + peer.buffer)
    while data := peer.sock.recv(1 << 16):
        peer.sock.sendall(data)
    peer.sock.sendall(b"bye")
    return False


def receive(wire: Wire, count: int) -> bytes:
    """The next bytes, those behind the head first."""
    while len(wire.buffer) < count:
        assert wire.more(), f"ended after {wire.buffer[:80]!r}"
    found, wire.buffer = wire.buffer[:count], wire.buffer[count:]
    return bytes(found)


def ticket_for(
    lane: Lane, prefix: str = "/", device: str = "", login: str | None = None, *, reusable: bool = False
) -> str:
    text, _ = tickets.issue(
        user_id=uuid.UUID(lane.user_id),
        login=hash_token(lane.token) if login is None else login,
        device_id=uuid.UUID(device or lane.device_id),
        path_prefix=prefix,
        now=timezone.now(),
        reusable=reusable,
    )
    return text
