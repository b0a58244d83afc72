"""When a client's connection is worth giving to the process of this host that its requests keep going to.

It decides from what it is told; it opens nothing and knows no boxes.
"""

from __future__ import annotations

import socket
from typing import Final, Protocol

from tunnel.http import LIMITS, RequestHead
from tunnel.net.sockets import ByteStream

_OFTEN: Final = 2
"""Requests for one device, one after the other, that went to the same process: the next goes with its connection.
One that asks once is not worth the way."""
_DEARER: Final = 8  # times as often, each time it changed hands: devices that take turns must not throw it to and fro
_TURNS_MAX: Final = 4
_MOUNTS: Final = ((b"/d/", 3 + 36), (b"/api/devices/", 13 + 36))
"""What tells the device that a request is for, up to its id, by how a target begins."""


class Giver(Protocol):
    """What gives a connection to another process of this host."""

    def give(self, url: str, sock: socket.socket, *, address: str, turns: int, data: bytes) -> bool:
        """Whether the process at `url` has it now."""


class Movable(Protocol):
    """A client's connection, as far as it can be given away."""

    @property
    def raw(self) -> ByteStream:
        """Its byte stream."""

    @property
    def sock(self) -> socket.socket:
        """Its socket."""

    @property
    def address(self) -> str:
        """The peer's address."""

    @property
    def unsent(self) -> bool:
        """Whether the kernel has not taken all that was written."""

    @property
    def wander(self) -> Migration:
        """The ways of its requests."""


class Migration:
    """The ways of one connection's requests. `turns` is how often the connection changed hands."""

    __slots__ = ("_count", "_mount", "_url", "turns")

    def __init__(self, turns: int = 0) -> None:
        self.turns = turns
        self._mount = b""
        self._url = ""
        self._count = 0

    def __repr__(self) -> str:
        return f"<Migration {self._count} times to {self._url or 'nobody'}, turns={self.turns}>"

    def went(self, target: bytes, url: str) -> None:
        """A request went by the process at `url`."""
        mount = _mount_of(target)
        if mount != self._mount or url != self._url:
            self._mount, self._url, self._count = mount, url, 0
        self._count += 1

    def where(self, target: bytes) -> str:
        """The URL of the process that the connection should go to with this request; empty: it stays."""
        often = self._count and self.turns < _TURNS_MAX and self._count >= _OFTEN * _DEARER**self.turns
        return self._url if often and self._mount and _mount_of(target) == self._mount else ""

    def stays(self) -> None:
        """It could not be given: not to be tried again at once."""
        self._count = 0


def _mount_of(target: bytes) -> bytes:
    """The part of a target that tells its device; empty where another field may."""
    return next((target[:size] for start, size in _MOUNTS if target.startswith(start)), b"")


def give(client: Movable, hands: Giver, head: RequestHead, rest: bytes) -> bool:
    """Give the connection away with a request of which nothing was done yet, if that is worth it; False: it stays."""
    wander = client.wander
    url = wander.where(head.target)
    if not url or client.unsent:
        return False
    again = as_bytes(head)
    data = again + rest
    # Blanks that the client left out may make a head too long to be read once more.
    if len(again) > LIMITS.head_bytes or not hands.give(
        url, client.sock, address=client.address, turns=wander.turns, data=data
    ):
        wander.stays()
        return False
    client.raw.close()
    return True


def as_bytes(head: RequestHead) -> bytes:
    """A head as it can be read again; only blanks around values may differ from what came."""
    lines = [b"%b %b HTTP/1.%d\r\n" % (head.method, head.target, head.http11)]
    lines += [b"%b: %b\r\n" % field for field in head.fields]
    return b"".join([*lines, b"\r\n"])
