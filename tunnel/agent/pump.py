"""One yamux stream, one TCP connection to the local server: bytes both ways, half-closes and resets included.

Where the direction turns it looks for a request's id, for the log and nothing else. No parsing, no timeouts, no cancel
scope per read: the session's watchdog and the daemon's idle limits end what does not move. What is buffered is one read
in each direction besides the stream's own window.
"""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from tunnel.agent.addresses import LocalAddress
from tunnel.http.sniffer import RequestIdSniffer
from tunnel.net.sockets import FLUSH_SECONDS, ByteStream, tune

READ_BYTES: Final = 128 * 1024
CONNECT_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 10.0
"""After the local server has answered in full and closed: how long the rest of an upload is still read and dropped,
so that the daemon can take the answer before it learns that nobody wants the rest."""


class TunnelStream(Protocol):
    """What is used of `tunnel.mux.stream.Stream`."""

    listener: Callable[[], None] | None

    @property
    def broken(self) -> bool: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def reset(self) -> None: ...
    def reset_when_flushed(self) -> None: ...


OK: Final = "ok"
LOCAL_RESET: Final = "reset by the local server"
CLOSED_EARLY: Final = "local server closed early"
_OF_THE_LOCAL_SERVER: Final = frozenset({LOCAL_RESET, CLOSED_EARLY})


@dataclass(slots=True)
class Counters:
    """What one carried connection amounts to so far, for its log line and for a graceful end."""

    bytes_in: int = 0  # from the daemon to the local server
    bytes_out: int = 0
    owes_answer: bool = False  # the last bytes went to the local server: it is likely at work on them
    unreachable: str = ""  # why the local server could not be reached
    outcome: str = OK


async def open_local(address: LocalAddress) -> ByteStream:
    """A connection to the local server. Raises OSError, trio.TooSlowError."""
    with trio.fail_after(CONNECT_SECONDS):
        if address.family is not None:
            return await _connect(address.family, (address.host, address.port))
        stream = await trio.open_tcp_stream(address.host, address.port)
    sock = socket.socket(fileno=stream.socket.detach())
    tune(sock)
    return ByteStream(sock)


async def _connect(family: int, target: tuple[str, int]) -> ByteStream:
    """Connect to an address that needs no resolving: a tenth of what Trio's way for names costs a stream."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = sock.connect_ex(target)
        if error == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return ByteStream(sock)


async def why_unreachable(address: LocalAddress, seconds: float) -> str:
    """Whether something listens at `address`: "" if it does, else why not, in words. It is sent nothing."""
    try:
        with trio.fail_after(seconds):
            stream = await open_local(address)
    except (OSError, trio.TooSlowError) as error:
        return _why(error)
    stream.close()
    return ""


def _why(error: BaseException) -> str:
    """In words, why a connection could not be opened."""
    while error.__cause__ is not None:
        error = error.__cause__
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


OnRequest = Callable[[str], None]
"""Told of each request that passes: its X-Request-ID, "" if it names none."""


async def carry(stream: TunnelStream, address: LocalAddress, counters: Counters, on_request: OnRequest) -> None:
    """Carry one stream to its end; raises nothing but Cancelled. The stream is closed or reset on return."""
    local: ByteStream | None = None
    counters.outcome = "cancelled"
    try:
        local = await open_local(address)
        counters.outcome = await _both_ways(stream, local, counters, on_request)
        if counters.outcome == OK:
            await stream.aclose()
            local.close()
    except (OSError, trio.TooSlowError) as error:
        # Not one byte went up: the daemon answers 502 AGENT_UNREACHABLE
        counters.unreachable = _why(error)
        counters.outcome = f"local server unreachable: {counters.unreachable}"
    finally:
        if counters.outcome != OK:  # neither side may take this for a clean end
            if counters.outcome in _OF_THE_LOCAL_SERVER:
                stream.reset_when_flushed()  # its reset does not overtake what it said before
            else:
                stream.reset()
            if local is not None:
                local.reset()


async def _both_ways(stream: TunnelStream, local: ByteStream, counters: Counters, on_request: OnRequest) -> str:
    pair = _Pair(stream, local, counters, on_request)
    async with trio.open_nursery() as nursery:
        pair.scope = nursery.cancel_scope
        nursery.start_soon(pair.towards_local)
        await pair.towards_daemon()
    if pair.outcome == OK and pair.scope.cancelled_caught:
        return CLOSED_EARLY
    return pair.outcome


@dataclass(slots=True)
class _Pair:
    """The two directions, and what each must know of the other."""

    stream: TunnelStream
    local: ByteStream
    counters: Counters
    on_request: OnRequest
    peek: RequestIdSniffer = field(default_factory=RequestIdSniffer)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    answered: bool = False  # the local server has sent all that it will send
    deaf: bool = False  # the local server reads no more
    was_reset: bool = False  # … for it has reset its connection, which a write was told: reading tells no more of it
    outcome: str = OK

    def _fail(self, outcome: str) -> None:
        if self.outcome == OK:
            self.outcome = outcome
        self.scope.cancel()

    def _linger(self) -> None:
        if self.answered and self.deaf:
            self.scope.deadline = trio.current_time() + LINGER_SECONDS

    async def towards_local(self) -> None:
        try:
            while data := await self.stream.receive_some(READ_BYTES):
                self.counters.bytes_in += len(data)
                self.counters.owes_answer = True
                if self.peek.looking and (found := self.peek.feed(data)) is not None:
                    self.on_request(found)
                if not self.deaf:
                    await self._write_local(data)
        except trio.BrokenResourceError:
            self._fail("reset by the daemon")
            return
        if not self.deaf:
            try:
                self.local.send_eof()
            except trio.BrokenResourceError:
                self.deaf = True  # it was closed meanwhile; the other direction learns how
        self.stream.listener = self._look  # nobody reads any more: else only the local server's next word met a reset
        self._look()

    def _look(self) -> None:
        if self.stream.broken:
            self._fail("reset by the daemon")

    def _look_stuck(self) -> None:
        """The daemon has reset the stream while the local server is slow to take what came before."""
        if self.stream.broken:
            self.outcome = "reset by the daemon"
            self.scope.deadline = trio.current_time() + FLUSH_SECONDS

    async def _write_local(self, data: bytes | bytearray) -> None:
        try:
            sent = self.local.send_nowait(data)
            if sent < len(data):
                self.stream.listener = self._look_stuck
                self._look_stuck()
                await self.local.send_all(memoryview(data)[sent:])
                self.stream.listener = None
                self.scope.deadline = math.inf
        except trio.BrokenResourceError as error:
            # It closed while we were writing. It may have answered before (an early 413): what it said comes first,
            # so the rest is read and dropped, as a lingering close does. The kernel tells a reset once: to whoever
            # asks first. One that came behind its end is no news (EPIPE, Linux' tcp_reset).
            self.stream.listener = None
            self.deaf = True
            self.was_reset = isinstance(error.__cause__, ConnectionResetError)
            self._linger()

    async def towards_daemon(self) -> None:
        while True:
            try:
                data = await self.local.receive_some()
            except trio.BrokenResourceError:
                self._fail(LOCAL_RESET)
                return
            if not data and self.was_reset:
                self._fail(LOCAL_RESET)
                return
            if not self.peek.looking:
                self.peek.turned()
            try:
                if not data:
                    await self.stream.send_eof()
                    break
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                self._fail("reset by the daemon")
                return
            self.counters.bytes_out += len(data)
            self.counters.owes_answer = False
        self.answered = True
        self._linger()
