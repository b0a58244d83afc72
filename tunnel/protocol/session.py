"""One yamux session, either role, as h11 and h2 are shaped: bytes in, touched streams out, bytes out when asked.

    touched = session.receive_data(data, now)    # what changed; look at each stream's attributes
    data = session.data_to_send(65536, now)      # call again until it is empty
    touched = session.tick(now)                  # at `next_deadline()`, or once a second

Knows nothing of transports, tasks or clocks; every `now` is float seconds of one monotonic clock. Not thread-safe.
Calls never block and never leave half a frame; a call that a state forbids raises LocalProtocolError and changes
nothing. Rules: yamux.md; limits: `limits.SessionConfig`.
"""

from tunnel.protocol.core import Core, Counters, Role
from tunnel.protocol.errors import (
    Ending,
    EndKind,
    Fault,
    LocalProtocolError,
    OpenRefusal,
    OpenRefused,
    RemoteProtocolError,
)
from tunnel.protocol.frames import ACK, LAST_STREAM_ID, RECONNECT_FROM_ID
from tunnel.protocol.inbound import Bytes, Inbound
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.outbound import Outbound
from tunnel.protocol.states import Input
from tunnel.protocol.stream import CREDIT, MuxStream, State
from tunnel.protocol.timers import next_deadline, request_ping, tick

_DEFAULTS = SessionConfig()
# On a slow line a stream has its turn for so long; smaller pieces than the other cost more than they help.
_TURN_SECONDS = 0.05
_LEAST_QUANTUM = 1024


class Session:
    """See the module. `accept_streams` False refuses every stream that the peer opens."""

    __slots__ = ("_core", "_inbound", "_outbound")

    def __init__(
        self, role: Role, config: SessionConfig = _DEFAULTS, *, now: float = 0.0, accept_streams: bool = True
    ) -> None:
        self._core = Core(role, config, now, accept_streams=accept_streams)
        self._inbound = Inbound(self._core)
        self._outbound = Outbound(self._core)

    # Bytes and time

    def receive_data(self, data: Bytes, now: float) -> list[MuxStream]:
        """Take bytes of the peer, cut anywhere. Returns the streams that changed, each once, in order.

        Raises RemoteProtocolError if the peer broke a rule: the session has ended then, and the GoAway to flush is in
        `data_to_send`. After the end, bytes are ignored. The caller clears `touched` of each stream it got.
        """
        core = self._core
        if core.ending is not None:
            return []
        core.now = now
        if data:
            core.last_received = now
            core.counters.bytes_in += len(data)
        try:
            self._inbound.receive(data, now)
        except RemoteProtocolError as error:
            core.end(EndKind.ABUSE if error.abuse else EndKind.PROTOCOL, error.text, send_code=error.wire_code)
            raise
        return self.take_touched()

    def receive_eof(self) -> list[MuxStream]:
        """The transport ended. Streams break: an end without FIN is never a clean one."""
        inside = " inside a frame" if self._inbound.mid_frame else ""
        self._core.end(EndKind.TRANSPORT if inside else EndKind.REMOTE, f"the transport ended{inside}")
        return self.take_touched()

    def fail(self, kind: EndKind, text: str) -> list[MuxStream]:
        """The caller found the transport broken or stuck: end without a word to the peer."""
        self._core.end(kind, text)
        return self.take_touched()

    def data_to_send(self, max_bytes: int, now: float) -> bytearray:
        """The next batch for the transport, at most `max_bytes` (64 or more); empty when there is nothing to say.

        Streams with a waiting sender and room again are in `take_touched()` afterwards.
        """
        return self._outbound.collect(max_bytes, now)

    @property
    def wants_to_send(self) -> bool:
        """True if `data_to_send` has something."""
        return self._outbound.pending

    def tick(self, now: float) -> list[MuxStream]:
        """Do what is due: pings, liveness, timeouts. Look at `ending` afterwards."""
        tick(self._core, self._inbound, now)
        return self.take_touched()

    def next_deadline(self) -> float:
        """When to call `tick` at the latest, if nothing happens before."""
        return next_deadline(self._core, self._inbound)

    def note_life(self, now: float) -> None:
        """The caller saw that the link lives: part of a message came, or bytes that had waited were acknowledged."""
        core = self._core
        core.last_received = max(core.last_received, now)

    def set_line_rate(self, rate: float | None) -> None:
        """What the line carries in bytes a second; None: so much that it need not be shared in small pieces."""
        core = self._core
        quantum = core.config.quantum
        core.ring.set_quantum(quantum if rate is None else max(_LEAST_QUANTUM, min(quantum, int(rate * _TURN_SECONDS))))

    def take_touched(self) -> list[MuxStream]:
        """The streams that changed since the last call, each once. Clear `touched` of each when looking at it."""
        core = self._core
        touched = core.touched
        if touched:
            core.touched = []
        return touched

    # Streams

    def open(self, now: float) -> MuxStream:
        """Open a stream: its SYN goes out as soon as fewer than `max_unacked` opens wait for their ACK.

        The stream is in SYN_SENT and takes data at once; `acked` turns True when the peer answered. Raises OpenRefused.
        At the limit it takes the place of a stream that was closed here and that the peer has not ended yet.
        """
        core = self._core
        if core.ending is not None:
            raise OpenRefused(OpenRefusal.ENDED)
        if core.peer_going_away:
            raise OpenRefused(OpenRefusal.GOING_AWAY)
        if core.next_id > LAST_STREAM_ID:
            raise OpenRefused(OpenRefusal.IDS_EXHAUSTED)
        core.now = now
        if len(core.streams) - core.inbound_open >= core.config.max_outbound_streams and not core.give_up_closed():
            raise OpenRefused(OpenRefusal.TOO_MANY)
        stream = MuxStream(core.next_id, inbound=False, now=now)
        core.next_id += 2
        core.streams[stream.stream_id] = stream
        core.opening[stream.stream_id] = stream
        core.queued[stream.stream_id] = stream
        core.counters.opened_out += 1
        core.admit_opens()
        return stream

    def accept(self) -> MuxStream | None:
        """The oldest inbound stream that was not accepted yet, acknowledged by this; None if there is none."""
        core = self._core
        for stream in core.backlog.values():
            del core.backlog[stream.stream_id]
            core.drive(stream, Input.ACCEPT)
            core.say(stream, ACK)
            return stream
        return None

    def send(self, stream: MuxStream, data: Bytes) -> int:
        """Queue as much of `data` as the stream's bounded buffer takes; how many bytes that was.

        If it was not all, the stream is touched once half of the buffer is free. Raises LocalProtocolError if the
        stream was half-closed here or is gone.
        """
        if stream.state is State.GONE or stream.fin_wanted or stream.reset_wanted:
            raise LocalProtocolError(f"send on {stream!r}")
        buffer = stream.send_buffer
        size = len(data)
        room = self._core.config.send_buffer - len(buffer)
        if size > room:
            stream.send_blocked = True
            size = max(room, 0)
            buffer += memoryview(data)[:size]
        else:
            buffer += data
        if not stream.in_ring and stream.ready_to_send:
            self._core.ring.add(stream)
        elif not stream.window_stalled and size and not stream.send_window.available:
            stream.window_stalled = True
            self._core.counters.window_stalls += 1
        return size

    def wants_room(self, stream: MuxStream) -> bool:
        """True if more than half of the send buffer is in use; the stream is touched when that has changed."""
        if stream.writable and len(stream.send_buffer) > self._core.config.send_buffer // 2:
            stream.send_blocked = True
            return True
        return False

    def read(self, stream: MuxStream, max_bytes: int | None = None) -> bytes:
        """Take received bytes, all or at most `max_bytes`; b"" if there are none. This is what returns credit."""
        received = stream.received
        if max_bytes is None or len(received) <= max_bytes:
            data = bytes(received)
            received.clear()
        else:
            data = bytes(memoryview(received)[:max_bytes])
            del received[:max_bytes]
        size = len(data)
        core = self._core
        core.buffered -= size
        if stream.state is State.GONE:
            if not received:
                core.lingering.discard(stream)
        elif stream.receive_window.consume(size) and not stream.read_eof:
            core.say(stream, CREDIT)
            if core.rtt is None and core.config.max_receive_window > stream.receive_window.size:
                request_ping(core)  # growing the window needs a round-trip time
        return data

    def half_close(self, stream: MuxStream) -> None:
        """No more bytes from us: FIN once what is queued has gone out. Idempotent; nothing on a stream that is gone."""
        if stream.fin_wanted or stream.state is State.GONE:
            return
        stream.fin_wanted = True
        self._begin_end(stream)

    def _begin_end(self, stream: MuxStream) -> None:
        """Nothing more will be queued: what was wanted behind it goes out once it has."""
        core = self._core
        stream.last_progress = core.now
        core.closing[stream.stream_id] = stream
        if stream.ack_owed and stream.stream_id in core.backlog:
            del core.backlog[stream.stream_id]
            core.drive(stream, Input.ACCEPT)
            core.say(stream, ACK)
        if stream.ready_to_send:
            core.ring.add(stream)

    def close(self, stream: MuxStream) -> None:
        """The application is done with the stream, both ways. Idempotent.

        Bytes unread or still to come would stall the peer: unread ones reset the stream now, later ones when they
        come. Otherwise the end is clean: what is queued, then FIN.
        """
        core = self._core
        if stream.state is State.GONE:
            core.drop_unread(stream)
            return
        stream.discarding = True
        stream.plain_receive = False
        if stream.received:
            core.drive(stream, Input.RESET, Fault.LOCAL_RESET)
        else:
            self.half_close(stream)

    def reset(self, stream: MuxStream) -> None:
        """Break the stream off: queued and unread bytes are dropped, the peer gets RST. Idempotent."""
        if stream.state is State.GONE:
            self._core.drop_unread(stream)
        else:
            self._core.drive(stream, Input.RESET, Fault.LOCAL_RESET)

    def reset_when_flushed(self, stream: MuxStream) -> None:
        """Pass on a reset that came behind the queued bytes: they go out first, an end that was wanted too, then RST.

        Idempotent. What still comes is dropped. A peer that takes nothing for `flush_stuck` seconds gets RST too.
        """
        core = self._core
        if stream.state is State.GONE or not (stream.send_buffer or stream.owes_fin):
            self.reset(stream)
            return
        core.buffered -= len(stream.received)
        stream.received.clear()
        stream.discarding = stream.reset_wanted = True
        stream.plain_receive = False
        self._begin_end(stream)

    # Session

    def ping(self, now: float) -> bool:
        """Measure the round trip; False if a ping is outstanding already."""
        self._core.now = now
        return request_ping(self._core)

    def go_away(self, code: int = 0) -> None:
        """Tell the peer that no more of its streams are taken. With 0 all else goes on; other codes end the session."""
        core = self._core
        if core.ending is not None:
            return
        if code:
            core.end(EndKind.LOCAL, f"GoAway({code})", send_code=code)
        elif not core.draining:
            core.draining = True
            core.goaway = 0

    def end(self, text: str, code: int = 0) -> list[MuxStream]:
        """Close the session from here: streams break, GoAway(`code`) is the last to send. Only the first end counts."""
        self._core.end(EndKind.LOCAL, text, send_code=code)
        return self.take_touched()

    # Facts

    @property
    def ending(self) -> Ending | None:
        """How the session ended; None while it lives."""
        return self._core.ending

    @property
    def config(self) -> SessionConfig:
        """The limits it was made with."""
        return self._core.config

    @property
    def role(self) -> Role:
        """Client (odd ids) or server."""
        return self._core.role

    @property
    def draining(self) -> bool:
        """True after our GoAway(0)."""
        return self._core.draining

    @property
    def peer_going_away(self) -> bool:
        """True after the peer's GoAway(0): it takes no more streams."""
        return self._core.peer_going_away

    @property
    def streams_open(self) -> int:
        """Streams that are not gone, those waiting to open and those not accepted included."""
        return len(self._core.streams)

    @property
    def streams_unacked(self) -> int:
        """ACK slots in use."""
        return self._core.unacked

    @property
    def incoming(self) -> int:
        """Inbound streams that `accept` would give."""
        return len(self._core.backlog)

    @property
    def buffered(self) -> int:
        """Unread bytes of all streams."""
        return self._core.buffered

    @property
    def rtt(self) -> float | None:
        """Round-trip time in seconds (smoothed); None before the first pong."""
        return self._core.rtt

    @property
    def last_received(self) -> float:
        """When the last byte came, on the caller's clock."""
        return self._core.last_received

    @property
    def ids_running_out(self) -> bool:
        """True from id 0xF0000000: drain and reconnect, while there is time."""
        return self._core.next_id >= RECONNECT_FROM_ID

    @property
    def counters(self) -> Counters:
        """Totals since the beginning."""
        return self._core.counters

    def stream(self, stream_id: int) -> MuxStream | None:
        """The live stream with this id."""
        return self._core.streams.get(stream_id)

    def __repr__(self) -> str:
        core = self._core
        state = core.ending.kind.name if core.ending else "draining" if core.draining else "open"
        return (
            f"<Session {core.role.name} {state} streams={len(core.streams)} unacked={core.unacked}"
            f" queued={len(core.queued)} backlog={len(core.backlog)} buffered={core.buffered}>"
        )
