"""A client's socket: what comes, what goes out, and what the kernel did not take yet. It knows no HTTP."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Final

import trio

from tunnel.http import Buffer
from tunnel.net.sockets import ByteStream, descriptor, shared_buffer
from tunnel.protocol.limits import AHEAD

_READ: Final = AHEAD
_PIECES: Final = 512
"""So many pieces are written as they are; the system takes 1 024 at once (IOV_MAX), and each costs it something."""


class ClientSocket:
    """The bytes of one connection. One task reads, whoever has something writes."""

    __slots__ = ("_unsent", "raw", "sent", "sock")

    def __init__(self, raw: ByteStream) -> None:
        self.raw = raw
        self.sock = raw.sock
        self.sent = 0
        """Bytes written."""
        self._unsent: list[Buffer] = []

    @property
    def unsent(self) -> bool:
        """Whether something waits for the kernel to take it."""
        return bool(self._unsent)

    async def read(self) -> bytes:
        """What has come, b"" at the end. Raises trio.BrokenResourceError, ClosedResourceError."""
        buffer = shared_buffer()
        sock = self.sock
        while True:
            await trio.lowlevel.wait_readable(descriptor(sock))
            try:
                size = sock.recv_into(buffer, _READ)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            return bytes(buffer[:size])

    def write(self, pieces: Sequence[Buffer], *, last: bool = False) -> bool:  # noqa: ARG002 - of who frames them
        """Write what the kernel takes and keep the rest; whether that was all. Raises trio.BrokenResourceError.

        `last`: nothing follows them but the end of the answer.
        """
        return self._put(pieces)

    def _put(self, pieces: Sequence[Buffer]) -> bool:
        """The same, of bytes as they go over the connection."""
        if len(pieces) > _PIECES:  # a box that sends chunks of a byte
            pieces = [b"".join(pieces)]
        if self._unsent:
            self._unsent += pieces
            return False
        try:
            if len(pieces) == 1:
                sent = self.sock.send(pieces[0])
                if sent == len(pieces[0]):
                    self.sent += sent
                    return True
            else:
                sent = self.sock.sendmsg(pieces)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        self.sent += sent
        for index, piece in enumerate(pieces):
            size = len(piece)
            if sent < size:
                self._unsent = [memoryview(piece)[sent:], *pieces[index + 1 :]]
                return False
            sent -= size
        return True

    def accepted(self) -> None:
        """A box is about to see the request: of no matter to who asks for itself."""

    def send_eof(self) -> None:
        """Half-close. Raises trio.BrokenResourceError."""
        self.raw.send_eof()

    async def flush(self) -> None:
        """Wait until all is written. By one task at a time. Raises trio.BrokenResourceError, ClosedResourceError."""
        while self._unsent:
            await trio.lowlevel.wait_writable(descriptor(self.sock))
            pieces, self._unsent = self._unsent, []
            self._put(pieces)

    def gone(self, *, half: bool) -> bool:
        """Whether the peer has left, asked of the kernel as nobody reads the socket; `half`: its half-close counts."""
        if self.sock.fileno() < 0:
            return True
        poll = select.poll()
        gone = select.POLLHUP | select.POLLERR
        if half:
            gone |= select.POLLRDHUP
        poll.register(self.sock, gone)
        return bool(poll.poll(0))
