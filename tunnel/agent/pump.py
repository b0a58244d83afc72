"""One yamux stream, one TCP connection to the local server: bytes both ways, half-closes and resets included.

No parsing, no timeouts, no cancel scope per read: the session's watchdog and the daemon's idle limits end what does
not move. What is buffered is one read in each direction besides the stream's own window.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import trio

from tunnel.agent.addresses import LocalAddress

READ_BYTES: Final = 128 * 1024
CONNECT_SECONDS: Final = 5.0
LINGER_SECONDS: Final = 10.0
"""After the local server has answered in full and closed: how long the rest of an upload is still read and dropped,
so that the daemon can take the answer before it learns that nobody wants the rest."""
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


class TunnelStream(Protocol):
    """What is used of `tunnel.runtime.stream.Stream`."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...
    async def send_eof(self) -> None: ...
    async def aclose(self) -> None: ...
    def reset(self) -> None: ...


@dataclass(slots=True)
class Counters:
    """What one carried connection amounted to, for its log line."""

    bytes_in: int = 0  # from the daemon to the local server
    bytes_out: int = 0
    outcome: str = "ok"


async def open_local(address: LocalAddress) -> trio.SocketStream:
    """A connection to the local server, without Nagle delay. Raises OSError, trio.TooSlowError."""
    with trio.fail_after(CONNECT_SECONDS):
        stream = await trio.open_tcp_stream(address.host, address.port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream


async def carry(stream: TunnelStream, address: LocalAddress) -> Counters:
    """Carry one stream to its end; never raises but for cancellation. The stream is closed or reset on return."""
    counters = Counters()
    try:
        local = await open_local(address)
    except (OSError, trio.TooSlowError) as error:
        # Not one byte: the daemon answers 502 AGENT_UNREACHABLE
        stream.reset()
        counters.outcome = f"local server unreachable: {getattr(error, 'strerror', None) or 'timeout'}"
        return counters
    try:
        await _both_ways(stream, local, counters)
    except BaseException:
        # Cancelled, or a fault of ours: neither side may take this for a clean end
        stream.reset()
        abort(local)
        raise
    return counters


async def _both_ways(stream: TunnelStream, local: trio.SocketStream, counters: Counters) -> None:
    pair = _Pair(stream, local, counters)
    async with trio.open_nursery() as nursery:
        pair.scope = nursery.cancel_scope
        nursery.start_soon(pair.towards_local)
        await pair.towards_daemon()
    if pair.lingering and pair.scope.cancelled_caught:
        counters.outcome = "local server closed early"
    if counters.outcome == "ok":
        await stream.aclose()
        await local.aclose()
    else:
        stream.reset()
        abort(local)


@dataclass(slots=True)
class _Pair:
    """The two directions, and what each must know of the other."""

    stream: TunnelStream
    local: trio.SocketStream
    counters: Counters
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    answered: bool = False  # the local server has sent all that it will send
    deaf: bool = False  # the local server reads no more
    lingering: bool = False

    def _fail(self, outcome: str) -> None:
        if self.counters.outcome == "ok":
            self.counters.outcome = outcome
        self.scope.cancel()

    def _linger(self) -> None:
        if self.answered and self.deaf and not self.lingering:
            self.lingering = True
            self.scope.deadline = trio.current_time() + LINGER_SECONDS

    async def towards_local(self) -> None:
        try:
            while data := await self.stream.receive_some(READ_BYTES):
                self.counters.bytes_in += len(data)
                if not self.deaf:
                    await self._write_local(data)
        except trio.BrokenResourceError:
            self._fail("reset by the daemon")
            return
        if not self.deaf:
            try:
                await self.local.send_eof()
            except trio.BrokenResourceError:
                self.deaf = True  # it was closed meanwhile; the other direction learns how

    async def _write_local(self, data: bytes | bytearray) -> None:
        try:
            await self.local.send_all(data)
        except trio.BrokenResourceError:
            # It closed while we were writing. It may have answered before (an early 413): what it said comes first,
            # so the rest is read and dropped, as a lingering close does.
            self.deaf = True
            self._linger()

    async def towards_daemon(self) -> None:
        while True:
            try:
                data = await self.local.receive_some(READ_BYTES)
            except trio.BrokenResourceError:
                self._fail("reset by the local server")
                return
            try:
                if not data:
                    await self.stream.send_eof()
                    break
                await self.stream.send_all(data)
            except trio.BrokenResourceError:
                self._fail("reset by the daemon")
                return
            self.counters.bytes_out += len(data)
        self.answered = True
        self._linger()


def abort(local: trio.SocketStream) -> None:
    """Close with a TCP reset, so that the local server cannot take an abort for a clean end."""
    with suppress(OSError):  # closed already
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    local.socket.close()
