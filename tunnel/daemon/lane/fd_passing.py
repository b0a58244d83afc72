"""Client connections that change hands between the processes of one host: to the one that holds their box.

The kernel spreads connections over the processes (`prefork`), so most requests of many come to one that has to ask
another for the box's streams, and are carried twice. A connection whose requests keep going to the same sibling is
given to it, socket and all (SCM_RIGHTS), with what was read of the next request: nothing of that has been answered or
sent on. Each process listens on a socket in Linux's abstract namespace; both ends ask the kernel who the other is, and
take the same user only. Nothing waits here: what cannot be given at once is carried as before.

It knows neither HTTP nor boxes.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from array import array
from collections.abc import Callable
from typing import Final, NamedTuple

import trio

from tunnel.daemon.config import Family
from tunnel.logs import JsonLog
from tunnel.net.sockets import descriptor

AVAILABLE: Final = sys.platform == "linux"
"""Elsewhere there are no abstract names, nor does the kernel spread connections."""
DATA_MAX: Final = 48 * 1024
"""Of what was read of a request: more is carried. Messages are kept whole by the kernel, and its buffer is bounded."""
_MESSAGE_MAX: Final = DATA_MAX + 256
_BACKLOG: Final = 16
_WAYS: Final = 64
"""Connections of siblings that are heard at once; each has one, and those of the dead go as soon as they are read."""
_PAUSE_SECONDS: Final = 0.1
_ANCILLARY: Final = socket.CMSG_SPACE(array("i").itemsize) if hasattr(socket, "CMSG_SPACE") else 0
_CREDENTIALS: Final = struct.Struct("3i")


class PassedConnection(NamedTuple):
    """A client's connection that comes from a sibling. Whoever gets it owns `sock`."""

    sock: socket.socket
    address: str
    """The client's, as it was accepted."""
    turns: int
    """How often it has changed hands, this time included."""
    data: bytes
    """What was read of its next request: the whole head at least."""


Take = Callable[[PassedConnection], None]
"""Owns what it gets; neither waits nor raises."""


class FdPassing:
    """This process's way to its siblings and from them. `run` it; `close` it before the process takes no more."""

    def __init__(self, family: Family, log: JsonLog) -> None:
        self._family = family
        self._log = log
        self._numbers = {url: number for number, url in enumerate(family.urls) if number != family.number}
        self._ways: dict[int, socket.socket] = {}
        self._greeted: set[int] = set()
        self._inbound: dict[socket.socket, Take] = {}
        self._listener: socket.socket | None = None
        self._closed = False
        self.given = 0
        self.taken = 0

    def __repr__(self) -> str:
        return f"<FdPassing of {self._family.number} given={self.given} taken={self.taken}>"

    # --- giving -------------------------------------------------------------------------------------------------------
    def give(self, url: str, sock: socket.socket, *, address: str, turns: int, data: bytes) -> bool:
        """Give a connection to the sibling at `url`; False: keep it. Given, `sock` is to be closed here, no more.

        `turns` is how often it changed hands before.
        """
        number = self._numbers.get(url)
        if number is None or len(data) > DATA_MAX or self._closed:
            return False
        way = self._way(number)
        if way is None:
            return False
        message = b"%d %b\n%b" % (turns + 1, address.encode("latin-1"), data)
        try:
            socket.send_fds(way, [message], [sock.fileno()])
        except BlockingIOError:
            return False  # it has much to take as it is
        except OSError:
            self._lose(number)  # it ended, or drains
            return False
        self.given += 1
        return True

    def _way(self, number: int) -> socket.socket | None:
        """The connection to a sibling, once it has said that it listens: what it never took would be lost with it."""
        way = self._ways.get(number)
        try:
            if way is None:
                way = self._ways[number] = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                way.setblocking(False)
                way.connect(self._name(number))
                if not _is_ours(way):
                    raise PermissionError("another user listens there")
            if number not in self._greeted:
                if not way.recv(1):
                    raise BrokenPipeError
                self._greeted.add(number)
        except BlockingIOError:
            return None
        except OSError:
            self._lose(number)
            return None
        return way

    def _lose(self, number: int) -> None:
        self._greeted.discard(number)
        way = self._ways.pop(number, None)
        if way is not None:
            way.close()

    def _name(self, number: int) -> bytes:
        return f"\0visiona-{self._family.name}-{number}".encode()

    # --- taking -------------------------------------------------------------------------------------------------------
    async def run(self, take: Take, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take what siblings give, until cancelled or closed. Where it can't listen, nothing is given: no fault."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            listener.setblocking(False)
            listener.bind(self._name(self._family.number))
            listener.listen(_BACKLOG)
            self._listener = listener
            task_status.started()
            async with trio.open_nursery() as nursery:
                await self._listen(listener, nursery, take)
        except OSError as error:
            self._log.warning("no_hands", problem=str(error))
            task_status.started()
        finally:
            self.close()
            listener.close()

    async def _listen(self, listener: socket.socket, nursery: trio.Nursery, take: Take) -> None:
        while self._listener is not None:  # as `close` leaves it
            try:
                await trio.lowlevel.wait_readable(descriptor(listener))
                self._accept(listener, nursery, take)
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if self._closed:
                    return  # between the kernel's word and ours
                # Out of descriptors or memory: that passes, and meanwhile siblings keep theirs.
                self._log.error("accept_failed", port="hands", error=str(error))
                await trio.sleep(_PAUSE_SECONDS)

    def _accept(self, listener: socket.socket, nursery: trio.Nursery, take: Take) -> None:
        try:
            way, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        way.setblocking(False)
        if len(self._inbound) >= _WAYS or not _is_ours(way):
            way.close()
            return
        self._inbound[way] = take
        nursery.start_soon(self._hear, way, take)

    async def _hear(self, way: socket.socket, take: Take) -> None:
        try:
            way.send(b".")
            while self._read(way, take):
                await trio.lowlevel.wait_readable(descriptor(way))
        except (OSError, trio.ClosedResourceError):
            pass  # the sibling ended, or we do
        finally:
            self._forget(way)

    def _forget(self, way: socket.socket) -> None:
        if self._inbound.pop(way, None) is not None:
            trio.lowlevel.notify_closing(way)
            way.close()

    def _read(self, way: socket.socket, take: Take) -> bool:
        """Take all that is there; False at the end. Raises OSError."""
        while True:
            try:
                # Not recv_fds: in Python 3.11 it leaves the flags out, and a program that we start would inherit them.
                message, ancillary, flags, _ = way.recvmsg(_MESSAGE_MAX, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return True
            if not message:
                return False
            descriptors = [each for item in ancillary for each in _descriptors(*item)]
            handed = _read_message(message, descriptors, whole=not flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
            if handed is None:
                self._log.error("bad_hand", size=len(message))
            else:
                self.taken += 1
                take(handed)

    def close(self) -> None:
        """Take no more: siblings find out at once, and keep theirs; what they gave before that is still taken."""
        self._closed = True
        if self._listener is not None:
            trio.lowlevel.notify_closing(self._listener)
            self._listener.close()
            self._listener = None
        for way, take in list(self._inbound.items()):
            try:
                way.shutdown(socket.SHUT_RD)  # from here on `give` fails there; what is in the kernel can still be read
                self._read(way, take)
            except OSError:
                pass  # the sibling is gone
            self._forget(way)
        for number in list(self._ways):
            self._lose(number)


def _is_ours(way: socket.socket) -> bool:
    """Whether the process at the other end is of our own user."""
    _, user, _ = _CREDENTIALS.unpack(way.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(user == os.geteuid())


def _descriptors(level: int, kind: int, data: bytes) -> array[int]:
    found = array("i")
    if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
        found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return found


def _read_message(message: bytes, descriptors: list[int], *, whole: bool) -> PassedConnection | None:
    said, _, data = message.partition(b"\n")
    turns, _, address = said.partition(b" ")
    if not (whole and data and turns.isdigit() and len(descriptors) == 1):
        for descriptor in descriptors:
            os.close(descriptor)
        return None
    sock = socket.socket(fileno=descriptors[0])
    sock.setblocking(False)
    return PassedConnection(sock, address.decode("latin-1"), int(turns), data)
