"""Whether a link lives, by what its transport moves: liveness is progress, not whole frames alone."""

from __future__ import annotations

from typing import Protocol

from tunnel.net.sockets import Socket, acknowledged, unsent


class Moved(Protocol):
    """A transport, as far as this looks at it."""

    @property
    def bytes_in(self) -> int:
        """Bytes that came."""

    def kernel_socket(self) -> Socket | None:
        """The TCP socket below, None where there is none."""


class Liveness:
    """Of one link. Ask `seen` now and then."""

    __slots__ = ("_acked", "_arrived", "_queued")

    def __init__(self) -> None:
        self._arrived = 0
        self._acked = 0
        self._queued = False

    def seen(self, transport: Moved) -> bool:
        """Whether anything came since the last call, or the peer's kernel took of what has been waiting.

        Of what had to wait only: the kernel of a peer that stands still takes a ping, and that is no life.
        """
        bytes_in = transport.bytes_in
        came, self._arrived = bytes_in != self._arrived, bytes_in
        sock = transport.kernel_socket()
        if sock is None:
            return came
        held = unsent(sock)
        waited, self._queued = self._queued, bool(held)
        if not held or not waited:
            return came
        acked = acknowledged(sock) or 0
        took, self._acked = acked > self._acked > 0, acked
        return came or took
