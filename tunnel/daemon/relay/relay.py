"""The relay: carries the bytes between a client's socket and a tunnel stream, both ways, and parses none of them.

Where the direction turns it looks for a request's id, for the log and nothing else (`access_log`). A half-close passes
on as a half-close, a reset as a reset. Two tasks a stream, no timer of its own: one watchdog for all of them looks once
a second at what moved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.http.messages import Refusal
from tunnel.daemon.metrics import Metrics
from tunnel.daemon.relay.access_log import AccessLog, Facts
from tunnel.daemon.upstream.interfaces import BoxStream
from tunnel.logs import JsonLog
from tunnel.mux.errors import OpenTimeout, SessionEnded, StreamRefused, StreamReset, TooManyStreams, TunnelError
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream, descriptor, shared_buffer
from tunnel.protocol.limits import AHEAD

_UP: Final = AHEAD  # read from the client at once: as much as a stream's send buffer takes
_DOWN: Final = 128 * 1024
_LOOK_SECONDS: Final = 1.0
REFUSAL_SECONDS: Final = 0.25
"""For an agent's refusal of a stream to come; on a long line two round trips, but no more than a second."""
_MOST_SECONDS: Final = 1.0
_LATELY: Final = 1.0  # a byte that came so long ago says that the agent lives
_PAUSE: Final = 0.05


Tell = Callable[["RelayedStream", Facts], None]


class RelayedStream:
    """One client connection on one stream."""

    __slots__ = (
        "down",
        "ledger",
        "mark",
        "marked_at",
        "outcome",
        "raw",
        "scope",
        "session",
        "started",
        "stream",
        "tell",
        "up",
        "up_done",
    )

    def __init__(self, session: TunnelSession, stream: BoxStream, raw: ByteStream, request_id: str, tell: Tell) -> None:
        self.session = session
        self.stream = stream
        self.raw = raw
        self.scope = trio.CancelScope()
        self.started = trio.current_time()
        self.ledger = AccessLog(request_id, self.started)
        self.tell = tell
        self.up = 0  # bytes, client to agent
        self.down = 0
        self.up_done = False
        self.outcome = ""
        self.mark = -1
        self.marked_at = self.started

    def __repr__(self) -> str:
        return f"<RelayedStream {self.session.id} up={self.up} down={self.down} {self.outcome or 'open'}>"

    def end(self, outcome: str) -> None:
        """Break both sides off; the first reason counts."""
        if not self.outcome:
            self.outcome = outcome
            self.scope.cancel()

    async def run(self, first: bytes) -> None:
        """Carry until both directions have ended, or one broke. `first` was read behind the client's head."""
        with self.scope:
            await self._both(first)
        # What is passed on does not overtake what came before it; our own abort is at once.
        if self.outcome == "agent_reset":
            self.stream.reset()
            await self.raw.reset_when_flushed()
        elif self.outcome == "client_reset" and isinstance(self.stream, Stream):
            self.stream.reset_when_flushed()
            self.raw.reset()
        elif self.outcome:
            self.stream.reset()
            self.raw.reset()
        else:
            self.outcome = "done"
            self.raw.close()
            self.stream.close_nowait()

    async def _both(self, first: bytes) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self._carry_up_to_end, first)
            await self._guard(self._carry_down)

    async def _carry_up_to_end(self, first: bytes) -> None:
        """Carry up until the client ends, or the stream takes no more: how that ended is told by its other side, behind
        all that the agent said before."""
        with contextlib.suppress(TunnelError):
            await self._carry_up(first)

    async def _guard(self, carry: Callable[..., Awaitable[None]], *args: bytes) -> None:
        try:
            await carry(*args)
        except SessionEnded:
            self.end("session_ended")
        except OpenTimeout:
            self.end("timeout")
        except TunnelError:
            self.end("agent_reset")
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.end("client_reset")

    async def _carry_up(self, first: bytes) -> None:
        stream, sock = self.stream, self.raw.sock
        if first:
            self._looked_at(first)
            self.up += len(first)
            await stream.send_all(first)
        buffer = shared_buffer()[:_UP]
        while True:
            await trio.lowlevel.wait_readable(descriptor(sock))
            try:
                size = sock.recv_into(buffer)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if not size:
                break
            if self.ledger.listening:
                self._looked_at(buffer[:size])
            self.up += size
            sent = stream.send_nowait(buffer[:size])
            if sent < size:
                await stream.send_all(bytes(buffer[sent:size]))  # the buffer is shared: it may not be kept
        self.up_done = True
        await stream.send_eof()

    def _looked_at(self, chunk: bytes | memoryview) -> None:
        line = self.ledger.sent(chunk, self.up, self.down, trio.current_time())
        if line is not None:
            self.tell(self, line)

    async def _carry_down(self) -> None:
        stream, raw, ledger = self.stream, self.raw, self.ledger
        # No checkpoint while data is at hand: what is at hand is bounded by the stream's window.
        while data := (stream.receive_nowait(_DOWN) or await stream.receive_some(_DOWN)):
            self.down += len(data)
            ledger.answered_at = trio.current_time()
            if not ledger.listening:
                ledger.turned()
            await raw.send_all(data)
        raw.send_eof()


async def _settle(session: TunnelSession, stream: Stream, deadline: float) -> None:
    """Return when the agent has accepted the stream, or lives and merely has not said so. Raises TunnelError.

    An agent that acknowledges with its first own frame waits for the request, so it must have it. But a refusal can
    only be told as such before the request goes out, and mostly comes within a round trip: it has a moment, unless the
    agent is known to be of that kind.
    """
    connection = session.connection
    since = trio.current_time()
    if session.acknowledges:
        moment = min(_MOST_SECONDS, max(REFUSAL_SECONDS, 2 * (connection.rtt or 0.0)), max(0.0, deadline - since))
        with trio.move_on_after(moment):
            await stream.wait_acknowledged()
            return
    else:
        since -= _LATELY
    while connection.session.last_received <= since:
        now = trio.current_time()
        if now >= deadline:
            raise OpenTimeout("the agent is silent")
        connection.ping()
        with trio.move_on_after(_PAUSE):
            await stream.wait_acknowledged()
            return
    session.acknowledges = False


class Relay:
    """All forwards of the daemon, and the limits that hold for them together."""

    def __init__(self, metrics: Metrics, log: JsonLog, *, idle_seconds: float, buffer_bytes: int) -> None:
        self._metrics = metrics
        self._log = log
        self._idle_seconds = idle_seconds
        self._buffer_bytes = buffer_bytes
        self._forwards: set[RelayedStream] = set()
        self._over_budget = False
        self._empty = trio.lowlevel.ParkingLot()

    def __len__(self) -> int:
        return len(self._forwards)

    @property
    def over_budget(self) -> bool:
        """The buffers of all tunnels together hold as much as they may: no new streams now."""
        return self._over_budget

    async def open(self, session: TunnelSession, deadline: float) -> Stream:
        """A stream, before `deadline`. Raises Refusal: what the client is told.

        See `_settle` for how far the agent's word is waited for.
        """
        began = trio.current_time()
        try:
            if self._over_budget:
                raise Refusal("OVERLOADED", "the daemon's buffers are full; try again shortly", retry_after=1)
            if session.closing:
                raise Refusal("TUNNEL_DISCONNECTED", "the tunnel is closing", retry_after=1)
            stream = await self._open(session, deadline)
        except Refusal as refusal:
            self._metrics.streams.labels(refusal.code.lower()).inc()
            raise
        self._metrics.open_seconds.observe(trio.current_time() - began)
        return stream

    async def _open(self, session: TunnelSession, deadline: float) -> Stream:
        try:
            stream = session.connection.open_nowait()
            try:
                await _settle(session, stream, deadline)
            except BaseException:
                stream.reset()
                raise
            return stream
        except OpenTimeout:
            raise Refusal("TUNNEL_TIMEOUT", "the agent did not accept the stream in time") from None
        except (TooManyStreams, StreamRefused):
            raise Refusal("OVERLOADED", "the tunnel takes no more streams now", retry_after=1) from None
        except StreamReset:  # accepted and reset in one breath: the agent's local server refused
            raise Refusal("AGENT_UNREACHABLE", "the stream was reset without one byte") from None
        except TunnelError:
            raise Refusal("TUNNEL_DISCONNECTED", "the tunnel is going away", retry_after=1) from None

    async def carry(
        self, session: TunnelSession, stream: Stream, raw: ByteStream, first: bytes, request_id: str
    ) -> None:
        """Run one forward to its end. `request_id` is that of the call that opened."""
        await self.run(RelayedStream(session, stream, raw, request_id, self.tell), first)

    async def run(self, forward: RelayedStream, first: bytes) -> None:
        """See one forward to its end, count it and log its requests. `first` was read behind the client's head."""
        session = forward.session
        self._forwards.add(forward)
        session.forwards += 1
        try:
            await forward.run(first)
        finally:
            if not forward.outcome:  # the daemon itself is ending
                forward.outcome = "cut"
                forward.stream.reset()
                forward.raw.reset()
            self._forwards.discard(forward)
            session.forwards -= 1
            if not self._forwards:
                self._empty.unpark_all()
            self._metrics.streams.labels(forward.outcome).inc()
            line = forward.ledger.end(forward.up, forward.down, trio.current_time(), forward.outcome)
            if line is not None:
                self.tell(forward, line)

    def tell(self, forward: RelayedStream, line: Facts) -> None:
        """Log a request of a forward."""
        session, stream = forward.session, getattr(forward.stream, "stream_id", None)  # None: one of many viewers
        self._log.info("forward", device=session.device_id, session=session.id, stream=stream, **line)

    async def wait_empty(self) -> None:
        """Return when nothing is carried."""
        while self._forwards:
            await self._empty.park()

    async def watch(self, sessions: Callable[[], list[TunnelSession]], shed: Callable[[TunnelSession], None]) -> None:
        """Once a second: end what idles too long or whose client is gone, and hold the buffer budget.

        `shed` breaks off what others carry on a session whose buffers have to be given up.
        """
        while True:
            await trio.sleep(_LOOK_SECONDS)
            now = trio.current_time()
            for forward in list(self._forwards):
                self._look_at(forward, now)
            self._hold_budget(sessions(), shed)

    def _look_at(self, forward: RelayedStream, now: float) -> None:
        moved = forward.up + forward.down
        if moved != forward.mark:
            forward.mark, forward.marked_at = moved, now
        elif now - forward.marked_at >= self._idle_seconds:
            forward.end("idle")
            return
        else:
            line = forward.ledger.quiet(forward.up, forward.down, now)
            if line is not None:
                self.tell(forward, line)
        # After the client's half-close nobody reads its socket any more, so a reset would go unseen.
        if forward.up_done and forward.raw.broken():
            forward.end("client_reset")

    def _hold_budget(self, sessions: list[TunnelSession], shed: Callable[[TunnelSession], None]) -> None:
        """Refuse new streams from the budget on; over it, break off the streams of whoever holds most."""
        excess = sum(one.connection.session.buffered for one in sessions) - self._buffer_bytes
        self._over_budget = excess >= 0
        if excess <= 0:
            return
        for session in sorted(sessions, key=lambda one: one.connection.session.buffered, reverse=True):
            for forward in [one for one in self._forwards if one.session is session]:
                forward.end("overloaded")
            shed(session)
            excess -= session.connection.session.buffered
            if excess <= 0:
                return
