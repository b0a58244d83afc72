"""One tunnel: a transport and a yamux session, run by a reader and a writer in one nursery, looked at by a watchdog.

The reader awaits nothing but the transport: it feeds the core and wakes the streams that were touched. The single
writer is level-triggered: it asks the core for the next batch whenever the transport can take one. The watchdog comes
when something can be due. So neither end can wait for the other in a circle (yamux.md §11).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import trio
from trio.lowlevel import ParkingLot

from tunnel.mux.errors import (
    CLOSE_ABNORMAL,
    CLOSE_ABUSE,
    CLOSE_CODES,
    CLOSE_GOING_AWAY,
    CLOSE_NORMAL,
    EndReason,
    OpenTimeout,
    open_error,
)
from tunnel.mux.liveness import Liveness
from tunnel.mux.pacing import WEIGHED, Pacer
from tunnel.mux.statistics import ConnectionStatistics, statistics_of
from tunnel.mux.stream import Stream
from tunnel.mux.transport import Payload, Transport, TransportProtocolError
from tunnel.mux.write_progress import WriteProgress
from tunnel.net.sockets import least_round_trip, unsent
from tunnel.net.waiter import Waiter
from tunnel.net.watchdog import Watchdog
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind, OpenRefusal, OpenRefused, RemoteProtocolError
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream

_DEFAULTS = SessionConfig()
# Looking more often than this is not worth a wake-up; nothing that the watchdog does is more exact.
_TICK = 1.0
_LITTLE = 1024  # bytes that are said without the writer
_LISTEN_EVERY = 0.05  # while a sign of life is waited for
_LEAST = 0.01  # before it is looked at again, whatever is due


class Connection:
    """A session over one transport. `run` it in a nursery; use it from any task while it runs.

    `accept_streams` False refuses what the peer opens (the daemon). `name` appears in reprs only. `watchdog` is one
    that runs and outlives it; without it the connection runs one of its own.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        role: Role,
        config: SessionConfig = _DEFAULTS,
        accept_streams: bool,
        name: str = "",
        watchdog: Watchdog | None = None,
    ) -> None:
        self.name = name
        self.session = Session(role, config, now=trio.current_time(), accept_streams=accept_streams)
        self.end_reason: EndReason | None = None
        self.spare: Callable[[], bool] | None = None
        """Asked where a new stream finds no room: resets one that is only kept for later; False if there is none."""
        self._transport = transport
        self._config = config
        self._writer = Waiter()  # while there is nothing to say
        self._writing = WriteProgress()
        self._pace = Pacer(config.max_batch)
        if transport.kernel_socket() is None:
            self._pace.look(0.0, None)
        self._life = Liveness()
        self._heard_at = -math.inf  # when the session had heard of its peer last, as of the last look
        self._hurried = False  # the next `kick` need not wait for the writer's turn
        self._left: Payload = b""  # the writer's first message: the socket did not take it at once
        self._read_scope = trio.CancelScope()
        self._watchdog = watchdog
        self._resting = False  # the watchdog comes only after long, since no stream is open
        self._fault: Exception | None = None  # what the watchdog met: a bug of ours
        self._close: tuple[int, str] | None = None
        self._answered: int | None = None  # the transport closed with this code already
        self._running = False
        self._finished = trio.Event()
        self._acceptors = ParkingLot()

    # Life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry the session until it ends; `end_reason` tells why. Never raises for what the peer or the network did.

        Cancelled, it breaks the streams and closes the transport with 1001 before it returns.
        """
        self._running = True
        try:
            async with trio.open_nursery() as nursery:
                if self._watchdog is None:
                    self._watchdog = Watchdog()
                    nursery.start_soon(self._watchdog.run)
                self._watchdog.watch(self, self._due(trio.current_time()))
                flushed = trio.Event()
                nursery.start_soon(self._write, flushed)
                task_status.started()
                with self._read_scope:
                    await self._read()
                if self._fault is not None:
                    raise self._fault
                with trio.move_on_after(self._config.flush_timeout):
                    await flushed.wait()
                nursery.cancel_scope.cancel()
        finally:
            if self._watchdog is not None:
                self._watchdog.leave(self)
            if self.session.ending is None:
                self._close = self._close or (CLOSE_GOING_AWAY, "cancelled")
                self._dispatch(self.session.end("cancelled"))
            code, reason = self._closing()
            if code == CLOSE_ABNORMAL:  # names a connection that vanished; nobody may send it
                code = CLOSE_NORMAL
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 2 * self._config.flush_timeout):
                await self._transport.aclose(code, reason)
            self._finished.set()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """End the session: streams break, GoAway(0) is flushed (at most 1 s), the WebSocket is closed with `code`.

        Returns when `run` has finished; the first call decides code and reason.
        """
        self._close = self._close or (code, reason)
        self._dispatch(self.session.end(reason or f"closed with {code}"))
        if self._running:
            await self._finished.wait()
        else:
            await self._transport.aclose(*self._closing())

    def go_away(self, code: int = 0) -> None:
        """Say GoAway. With 0 the peer opens no more streams and open ones go on; other codes end the session."""
        self.session.go_away(code)
        self._dispatch(self.session.take_touched())

    def ping(self) -> None:
        """Ask the peer for a sign of life, unless that has been done and was not answered yet."""
        if self.session.ping(trio.current_time()):
            self.kick()

    # Streams

    async def open_stream(self, *, timeout: float | None = None, wait_ack: bool = True) -> Stream:
        """Open a stream and wait until the peer has accepted it, at most `timeout` (default: config.open_timeout).

        With `wait_ack` False it returns at once: what is sent goes out right behind the SYN, a round trip earlier, and
        a refusal or timeout is raised by the first operation that meets it. Some peers acknowledge with their first own
        frame: who waits for their ACK before he has sent anything waits for ever.
        Raises OpenTimeout, StreamRefused, GoingAway, TooManyStreams, SessionEnded. Cancelled, the stream is reset.
        """
        stream = self.open_nowait()
        if not wait_ack:
            return stream
        try:
            if timeout is None or timeout >= self._config.open_timeout:
                await stream.wait_acknowledged()
                return stream
            with trio.move_on_after(timeout):
                await stream.wait_acknowledged()
                return stream
            raise OpenTimeout(f"stream {stream.stream_id}: not accepted within {timeout} s")
        except BaseException:
            stream.reset()
            raise

    def open_nowait(self) -> Stream:
        """`open_stream` that waits for nothing. Raises StreamRefused, GoingAway, TooManyStreams, SessionEnded."""
        now = trio.current_time()
        try:
            try:
                core = self.session.open(now)
            except OpenRefused as error:
                if error.why is not OpenRefusal.TOO_MANY or self.spare is None or not self.spare():
                    raise
                core = self.session.open(now)
        except OpenRefused as error:
            raise open_error(error.why, self.session.ending) from None
        stream = Stream(self, core)
        self.kick()
        if self._resting:
            self._watch_sooner()
        return stream

    async def accept_stream(self) -> Stream:
        """The next stream that the peer opened. Raises trio.EndOfChannel when the session has ended."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            core = self.session.accept()
            if core is not None:
                stream = Stream(self, core)
                self.kick()
                await trio.lowlevel.cancel_shielded_checkpoint()
                return stream
            if self.session.ending is not None:
                raise trio.EndOfChannel
            await self._acceptors.park()

    # Facts

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds, smoothed; None until the first pong (an idle session pings after 15 s)."""
        return self.session.rtt

    @property
    def streams(self) -> int:
        """Streams open now."""
        return self.session.streams_open

    @property
    def peer_going_away(self) -> bool:
        """True once the peer said GoAway(0): opening raises GoingAway, what is open goes on."""
        return self.session.peer_going_away

    @property
    def peer_closed(self) -> bool:
        """Whether the peer closed its end of the WebSocket, first or in answer to us; one that vanished did not."""
        return self._transport.close_code not in (None, CLOSE_ABNORMAL)

    async def answers(self, seconds: float) -> bool:
        """Ask the peer for a sign of life: whether any byte comes from it within `seconds`."""
        heard = self.session.last_received
        self.session.ping(trio.current_time())
        self.kick()
        with trio.move_on_after(seconds):
            while self.session.ending is None:
                if self.session.last_received > heard:
                    return True
                await trio.sleep(_LISTEN_EVERY)
        return False

    def statistics(self) -> ConnectionStatistics:
        """Totals and state, for metrics and `/internal/session`."""
        return statistics_of(self.session)

    def __repr__(self) -> str:
        return f"<Connection {self.name or 'unnamed'} {self.session!r}>"

    # For the streams

    def hurry(self) -> None:
        """What is handed over next is short and alone: said at once if the writer rests. Of many it gathers more."""
        self._hurried = self._writer.task is not None

    def calm(self) -> None:
        """It has been handed over, or could not be."""
        self._hurried = False

    def kick(self) -> None:
        """Wake the writer if it rests and there is something to say."""
        if self._writer.task is not None and (self.session.wants_to_send or self.session.ending is not None):
            if self._hurried and self.session.ending is None:
                self._say_at_once()
            else:
                self._writer.wake()

    # Inside

    async def _read(self) -> None:
        session = self.session
        receive = self._transport.receive_some
        while session.ending is None:
            try:
                data = await receive()
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                self._lost(error)
                return
            except TransportProtocolError as error:
                self._answered = error.code
                kind = EndKind.ABUSE if error.code == CLOSE_ABUSE else EndKind.PROTOCOL
                self._dispatch(session.fail(kind, str(error)))
                return
            if not data:
                self._dispatch(session.receive_eof())
                return
            try:
                touched = session.receive_data(data, trio.current_time())
            except RemoteProtocolError:
                touched = session.take_touched()  # the session has ended, and `ending` tells why
            self._dispatch(touched)

    async def _write(self, flushed: trio.Event) -> None:
        session = self.session
        pace = self._pace
        try:
            while True:
                if pace.slow and session.wants_to_send:
                    await self._wait_for_line()
                now = trio.current_time()
                data, self._left = self._left, b""
                if not data:
                    data = session.data_to_send(pace.batch, now)
                touched = session.take_touched()
                if touched:
                    self._dispatch(touched)
                if data:
                    self._writing.since = now
                    await self._transport.send_all(data)
                    self._writing.since = None
                    pace.wrote(len(data))
                    if len(data) >= WEIGHED and now >= pace.due:
                        self._look_at_line()
                elif session.ending is not None:
                    return
                # Unless a listener has spoken while the touched streams were told.
                elif not (touched and session.wants_to_send):
                    pace.rest()
                    await self._writer.park()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lost(error)
        finally:
            flushed.set()

    def _queued(self) -> int | None:
        sock = self._transport.kernel_socket()
        return None if sock is None else unsent(sock)

    def _look_at_line(self) -> None:
        """See what the line has carried of what was written."""
        pace = self._pace
        slow, rate = pace.slow, pace.rate
        pace.look(trio.current_time(), self._queued())
        if pace.slow or slow:
            self._share_line(rate)

    def _share_line(self, before: float) -> None:
        if self._pace.rate != before:
            self.session.set_line_rate(self._pace.rate if self._pace.slow else None)

    async def _wait_for_line(self) -> None:
        """Return when a slow line has carried enough of what the kernel holds: what is urgent must not wait behind it.

        Meanwhile it is decided anew with each batch whose bytes go next.
        """
        pace = self._pace
        try:
            while self.session.ending is None:
                sock, now, before = self._transport.kernel_socket(), trio.current_time(), pace.rate
                if sock is None:
                    return
                seconds = pace.pause(now, unsent(sock), least_round_trip(sock))
                self._share_line(before)
                if not seconds:
                    return
                if self._writing.since is None:
                    self._writing.since = now
                await trio.sleep(seconds)
        finally:
            self._writing.since = None

    # For the watchdog

    def look(self, now: float) -> float:
        """Do what time alone brings: pings, liveness, timeouts. When to look again; infinity once the session ended."""
        # Whole frames have told the session when they came. A look comes late: it must not make them younger.
        if self._life.seen(self._transport) and self.session.last_received == self._heard_at:
            self.session.note_life(now)
        self._heard_at = self.session.last_received
        stuck = self._writing.stuck(now, self._transport)
        if stuck >= self._config.write_timeout:
            self._dispatch(self.session.fail(EndKind.LIVENESS, f"no progress in writing for {stuck:.0f} s"))
        else:
            self._dispatch(self.session.tick(now))
        return self._due(now)

    def crashed(self, error: Exception) -> None:
        """`look` raised: let `run` raise it."""
        self._fault = error
        self._read_scope.cancel()

    def _due(self, now: float) -> float:
        if self.session.ending is not None:
            return math.inf
        due = self.session.next_deadline()
        self._resting = not self.session.streams_open and self._writing.since is None
        if not self._resting:
            due = min(due, now + _TICK)
        return max(due, now + _LEAST)

    def _watch_sooner(self) -> None:
        """A stream came while the tunnel rested: what is due may be nearer than the watchdog thinks."""
        self._resting = False
        if self._watchdog is not None:
            self._watchdog.watch(self, trio.current_time() + _TICK)

    def _wake(self, touched: list[MuxStream]) -> None:
        for core in touched:
            core.touched = False
            stream = core.context
            if stream is not None:
                stream.wake()

    def _dispatch(self, touched: list[MuxStream]) -> None:
        """After anything that may have changed the session: wake the streams, the writer, the waiters."""
        if touched:
            self._wake(touched)
            if self._resting and self.session.streams_open:
                self._watch_sooner()
            if self._acceptors and self.session.incoming:
                self._acceptors.unpark(count=self.session.incoming)
        if self.session.ending is not None:
            self._shut()
        elif not touched and not self.session.streams_open:
            self._say_at_once()
            return
        self.kick()

    def _say_at_once(self) -> None:
        """Say a little, as an idle tunnel's ping or its answer, without the writer where the socket takes it."""
        self._hurried = False
        session = self.session
        if self._writer.task is None or not session.wants_to_send:
            return  # the writer is at it, or there is nothing
        data = session.data_to_send(_LITTLE, trio.current_time())
        touched = session.take_touched()
        try:
            said = not data or self._transport.try_send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            said = False  # the writer meets the same: of an end told in here, whoever hands over could not hear yet
        if not said:
            self._left = data
            self._writer.wake()
        if touched:
            self._wake(touched)
        self.kick()

    def _lost(self, error: Exception) -> None:
        self._dispatch(self.session.fail(EndKind.TRANSPORT, f"the transport broke: {error}".rstrip(": ")))

    def _shut(self) -> None:
        ending = self.session.ending
        if self.end_reason is not None or ending is None:
            return
        remote = ending.kind in (EndKind.REMOTE, EndKind.TRANSPORT)
        text, code = ending.text, self._closing()[0]
        if remote and self._transport.close_code is not None:
            code = self._transport.close_code
            text = f"{text} with code {code} {self._transport.close_reason}".rstrip()
        self.end_reason = EndReason(ending.kind, text, code, remote)
        self._read_scope.cancel()
        self._acceptors.unpark_all()

    def _closing(self) -> tuple[int, str]:
        """Code and reason with which our end of the WebSocket closes."""
        ending = self.session.ending
        if self._close is not None and (ending is None or ending.kind is EndKind.LOCAL):
            return self._close
        kind = EndKind.LOCAL if ending is None else ending.kind
        return self._answered or CLOSE_CODES[kind], "" if ending is None else ending.text[:100]
