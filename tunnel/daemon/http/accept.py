"""Accepting connections: what the public and the internal port share. It does not know routes."""

from __future__ import annotations

import errno
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from tunnel.contract import Crowded, request_id_from, stranger
from tunnel.daemon.http.capacity import ConnectionLimit
from tunnel.daemon.http.messages import Lines, Refusal, Request, read_request, refusal, send_and_close, unreadable
from tunnel.http import ProxyError
from tunnel.logs import JsonLog
from tunnel.net.places import Places
from tunnel.net.sockets import ByteStream, accept, accept_nowait, stop_listening

_OUR_FAULT: Final = frozenset({errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP})
_NO_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})
_PAUSE_SECONDS: Final = 0.1
_SLOW_SECONDS: Final = 1.0  # a head takes a round trip; one that takes longer is in no hurry
_WAITING_FACTOR: Final = 8  # connections that may wait, for each slot

Rest = Callable[[], Awaitable[None]]
Route = Callable[[Request, ByteStream, str], Awaitable[Rest | None]]
"""(request, connection, peer's address): answers, and returns what the connection is used for afterwards, if anything.

That runs without the request, whose head need not be kept as long as a tunnel lives, and without a slot.
"""


class Slots:
    """How many connections may be at a stage. When all are taken, newcomers wait for a while, addresses in turn.

    A storm of agents that come back at once is thus served in order, not refused, and a crowd from one address keeps
    its own waiting. Who waits has the oldest that is still sending its head go once that has taken a second: those who
    send byte by byte (slowloris) push out themselves.
    """

    def __init__(self, limit: int, *, wait_seconds: float) -> None:
        self._places = Places(limit, _WAITING_FACTOR * limit)
        self._wait_seconds = wait_seconds
        self._reading: OrderedDict[int, tuple[float, trio.CancelScope]] = OrderedDict()  # oldest first
        self._parties: dict[int, str] = {}

    @property
    def taken(self) -> int:
        """Slots in use."""
        return self._places.taken

    async def enter(self, scope: trio.CancelScope, address: str) -> bool:
        """Take a slot for a connection that will read its head within `scope`; False if none came free in time."""
        party = stranger(address)
        if not self._places.enter_nowait(party) and not await self._wait(party):
            return False
        self._parties[id(scope)] = party
        self._reading[id(scope)] = (trio.current_time(), scope)
        if self._places.waiting:
            self._hurry_the_oldest()
        return True

    async def _wait(self, party: str) -> bool:
        self._hurry_the_oldest()
        with trio.move_on_after(self._wait_seconds), suppress(Crowded):
            await self._places.enter(party)
            return True
        return False

    def _hurry_the_oldest(self) -> None:
        """One for each that comes or is let in while others wait. Its slot is given back when it has ended."""
        if self._reading:
            _, (since, scope) = self._reading.popitem(last=False)
            scope.deadline = min(scope.deadline, since + _SLOW_SECONDS)

    def head_read(self, scope: trio.CancelScope) -> None:
        """The head is whole: this one cannot be pushed out any more. If it had been hurried, the next one is."""
        if self._reading.pop(id(scope), None) is None and self._places.waiting:
            self._hurry_the_oldest()

    def leave(self, scope: trio.CancelScope) -> None:
        """Give the slot back. Idempotent."""
        self._reading.pop(id(scope), None)
        if (party := self._parties.pop(id(scope), None)) is not None:
            self._places.leave(party)


class HttpServer:
    """One listening socket. `route` serves a request whose head was read; it raises Refusal to have that answered.

    At most `max_connections` are held at once, whatever they do; more are closed unheard. With a `room` that decides
    whom to hold, and who gives way. `ours` are fields of all refusals.
    """

    def __init__(
        self,
        listener: socket.socket,
        route: Route,
        log: JsonLog,
        *,
        name: str,
        slots: Slots,
        head_seconds: float,
        max_connections: int,
        room: ConnectionLimit | None = None,
        ours: Lines = (),
    ) -> None:
        self._listener = listener
        self._route = route
        self._log = log
        self._name = name
        self._slots = slots
        self._head_seconds = head_seconds
        self._max_connections = max_connections
        self._room = room
        self._ours = ours
        self._nursery: trio.Nursery | None = None
        self.connections = 0

    async def run(self, connections: trio.Nursery) -> None:
        """Accept until cancelled or closed; each connection is a task of `connections`."""
        self._nursery = connections
        while True:
            try:
                self._take(*await accept(self._listener))
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _OUR_FAULT:
                    raise
                # Out of descriptors or memory, a network that is down: accept(2) says that it passes.
                self._log.error("accept_failed", port=self._name, error=str(error))
                if error.errno in _NO_DESCRIPTORS and self._room is not None:
                    self._room.make_room()
                await trio.sleep(_PAUSE_SECONDS)
                if self._listener.fileno() < 0:
                    return

    def close(self) -> None:
        """Listen no more, so that whoever knows another address goes there at once. Those who wait are taken first.

        Connections go on. Idempotent.
        """
        if self._listener.fileno() < 0:
            return
        try:
            while (taken := accept_nowait(self._listener)) is not None:
                self._take(*taken)
        except OSError as error:
            self._log.error("accept_failed", port=self._name, error=str(error))
        stop_listening(self._listener)

    def _take(self, sock: socket.socket, address: str) -> None:
        stream, unheard = ByteStream(sock), trio.CancelScope()
        if self._nursery is None or not self._place(stream, address, unheard):
            sock.close()
            return
        self.connections += 1
        self._nursery.start_soon(self._serve, stream, address, unheard)

    def _place(self, stream: ByteStream, address: str, unheard: trio.CancelScope) -> bool:
        if self.connections >= self._max_connections:
            return False
        return self._room is None or self._room.take(stream, address, unheard.cancel)

    def adopt(self, sock: socket.socket, address: str, work: Callable[[ByteStream], Awaitable[None]]) -> None:
        """Hold a connection that another process accepted, as one of ours: `work` is what it is used for.

        Where there is no room the client is told so: its request was heard already.
        """
        stream, unheard = ByteStream(sock), trio.CancelScope()
        if self._nursery is None or not self._place(stream, address, unheard):
            with sock, suppress(OSError):  # it is gone, or reads nothing
                sock.send(refusal(_full(), request_id_from(None), self._ours))
            return
        self.connections += 1
        self._nursery.start_soon(self._serve, stream, address, unheard, partial(work, stream))

    async def _serve(
        self, stream: ByteStream, address: str, unheard: trio.CancelScope, rest: Rest | None = None
    ) -> None:
        """`unheard` ends it while its first request has not been read."""
        scope = trio.CancelScope()
        try:
            if rest is None:
                with unheard:
                    rest = await self._exchange(stream, address, scope)
            del unheard  # what follows may last for days
            self._slots.leave(scope)
            if rest is not None:
                await rest()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client went away, or gave way; nobody is left to be told
        except Exception as error:  # noqa: BLE001 - one connection's crash must end that connection only
            self._log.error("connection_crashed", port=self._name, error=repr(error), address=address)
        finally:
            self._slots.leave(scope)
            self.connections -= 1
            stream.close()
            if self._room is not None:
                self._room.leave(stream)

    async def _exchange(self, stream: ByteStream, address: str, scope: trio.CancelScope) -> Rest | None:
        request: Request | None = None
        try:
            if not await self._slots.enter(scope, address):
                raise _full()
            scope.deadline = min(scope.deadline, trio.current_time() + self._head_seconds)
            request = await self._head(stream, scope)
            return None if request is None else await self._route(request, stream, address)
        except Refusal as problem:
            self._slots.leave(scope)
            request_id = request.request_id if request else request_id_from(None)
            await send_and_close(stream, refusal(problem, request_id, self._ours))
            return None

    async def _head(self, stream: ByteStream, scope: trio.CancelScope) -> Request | None:
        request: Request | None = None
        with scope:
            try:
                request = await read_request(stream)
            except ProxyError as error:
                raise unreadable(error) from None
        if scope.cancelled_caught:
            raise Refusal("REQUEST_TIMEOUT", "the request did not arrive in time")
        self._slots.head_read(scope)
        if self._room is not None:
            self._room.read(stream)
        return request


def _full() -> Refusal:
    return Refusal("OVERLOADED", "too many connections; try again shortly", retry_after=1)
