"""From bytes to changes of state: the incremental decoder and what each frame means.

Knows nothing of writing: an answer is a bit or a number in `Core`. Bodies are streamed into the stream's one buffer
as they arrive, and what a header promises is judged before a byte of its body is kept.
"""

from tunnel.protocol.core import Core, Role
from tunnel.protocol.errors import EndKind, Fault, RemoteProtocolError
from tunnel.protocol.frames import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    HEADER_SIZE,
    INITIAL_WINDOW,
    KNOWN_FLAGS,
    MAX_WINDOW,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
)
from tunnel.protocol.limits import TokenBucket
from tunnel.protocol.states import Input, Verdict
from tunnel.protocol.stream import MuxStream, State

# A peer that pings faster than we can write gets the first answers only; the rate limit is far below.
_MAX_PONGS = 64
# Below this a slice that copies is cheaper than making a view.
_COPY_BELOW = 2048

Bytes = bytes | bytearray | memoryview


class Inbound:
    """The reading half of a session."""

    __slots__ = (
        "_body_fin",
        "_body_left",
        "_body_stream",
        "_core",
        "_partial",
        "_pings",
        "_rapid_resets",
        "_syn_excess",
        "_syns",
    )

    def __init__(self, core: Core) -> None:
        self._core = core
        self._partial = bytearray()  # the beginning of a header
        self._body_left = 0
        self._body_stream: MuxStream | None = None  # None: the body is skipped
        self._body_fin = False
        config = core.config
        self._syns = TokenBucket(config.syn_rate, core.now)
        self._syn_excess = TokenBucket(config.syn_rate, core.now)
        self._rapid_resets = TokenBucket(config.rapid_reset_rate, core.now)
        self._pings = TokenBucket(config.ping_rate, core.now)

    @property
    def mid_frame(self) -> bool:
        """True if a frame has begun and not ended."""
        return bool(self._partial) or self._body_left > 0

    def receive(self, data: Bytes, now: float) -> None:
        """Take what the transport delivered. Raises RemoteProtocolError; the caller ends the session then."""
        core = self._core
        streams = core.streams
        unpack = HEADER.unpack_from
        end = len(data)
        pos = self._complete_header(data) if self._partial else 0
        frames = 0
        while pos < end and core.ending is None:
            if self._body_left:
                pos = self._take_body(data, pos, end, now)
                continue
            body = pos + HEADER_SIZE
            if body > end:
                self._partial += data[pos:end]
                break
            kind, flags, stream_id, length = unpack(data, pos)
            pos = body
            frames += 1
            # The frame that nearly all are: without flags, of a stream that is simply open.
            if kind == DATA and not flags and length:
                stream = streams.get(stream_id)
                if stream is not None and stream.plain_receive:
                    stream.receive_window.receive(length)
                    body_end = body + length
                    if body_end > end:
                        self._body_left = length
                        self._body_stream = stream
                        continue
                    if length < _COPY_BELOW:
                        stream.received += data[body:body_end]
                    else:
                        stream.received += memoryview(data)[body:body_end]
                    core.buffered += length
                    stream.last_progress = now
                    if not stream.touched:
                        stream.touched = True
                        core.touched.append(stream)
                    pos = body_end
                    continue
            self._header(kind, flags, stream_id, length)
        core.counters.frames_in += frames
        if core.buffered > core.config.hard_buffered:
            core.shed()

    def _complete_header(self, data: Bytes) -> int:
        partial = self._partial
        taken = min(HEADER_SIZE - len(partial), len(data))
        partial += data[:taken]
        if len(partial) == HEADER_SIZE:
            kind, flags, stream_id, length = HEADER.unpack(partial)
            partial.clear()
            self._core.counters.frames_in += 1
            self._header(kind, flags, stream_id, length)
        return taken

    def _take_body(self, data: Bytes, pos: int, end: int, now: float) -> int:
        """Deliver or skip what is here of the current body; the position after it."""
        taken = min(self._body_left, end - pos)
        self._body_left -= taken
        stream = self._body_stream
        if stream is not None and stream.state is not State.GONE:
            core = self._core
            if stream.discarding:
                self._refuse_bytes(stream)
            else:
                stream.received += data if taken == len(data) else memoryview(data)[pos : pos + taken]
                core.buffered += taken
                stream.last_progress = now
                core.touch(stream)
                if self._body_fin and not self._body_left:
                    self._on_fin(stream)
        if not self._body_left:
            self._body_stream = None
            self._body_fin = False
        return pos + taken

    def _refuse_bytes(self, stream: MuxStream) -> None:
        """Bytes for a stream that the application has closed. One whose reset waits behind its own bytes stays."""
        if not stream.reset_wanted:
            self._core.drive(stream, Input.RESET, Fault.ABANDONED)

    def _header(self, kind: int, flags: int, stream_id: int, length: int) -> None:
        if flags & ~KNOWN_FLAGS:
            self._core.glitch()
        if kind == DATA:
            self._on_data(flags, stream_id, length)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(flags, stream_id, length)
        elif kind == PING:
            self._on_ping(flags, stream_id, length)
        elif kind == GO_AWAY:
            self._on_go_away(stream_id, length)
        else:
            raise RemoteProtocolError(f"version {kind >> 8}, type {kind & 0xFF}")

    def _on_data(self, flags: int, stream_id: int, length: int) -> None:
        core = self._core
        stream = self._find(flags, stream_id, length)
        self._body_left = length
        if stream is None:
            if not flags & SYN:
                self._on_late(flags, stream_id, length)
            return
        if flags & ACK:
            self._on_ack(stream)
        if flags & RST:
            self._on_reset(stream)
            return
        if length:
            stream.receive_window.receive(length)
            if not stream.acked:
                core.mark_acked(stream)
            if stream.discarding:
                self._refuse_bytes(stream)
                return
            if core.drive(stream, Input.RECV_DATA, Fault.DATA_AFTER_FIN) is not Verdict.OK:
                return
            self._body_stream = stream
            self._body_fin = bool(flags & FIN)
        elif flags & FIN:
            self._on_fin(stream)
        elif not flags & KNOWN_FLAGS:
            core.glitch()

    def _on_window_update(self, flags: int, stream_id: int, credit: int) -> None:
        core = self._core
        stream = self._find(flags, stream_id, 0)
        if stream is None:
            if not flags & SYN:
                self._on_late(flags, stream_id, 0)
            return
        if flags & ACK:
            self._on_ack(stream)
        if flags & RST:
            self._on_reset(stream)  # the length is no credit: go-yamux puts an error code there
            return
        if credit:
            self._take_credit(stream, credit, opening=bool(flags & (SYN | ACK)))
        elif not flags & KNOWN_FLAGS:
            core.glitch()
        if flags & FIN:
            self._on_fin(stream)

    def _take_credit(self, stream: MuxStream, credit: int, *, opening: bool) -> None:
        core, window = self._core, stream.send_window
        if not stream.acked:
            core.mark_acked(stream)
        # A peer credits what it has taken, so there is less than it began with; or it grants more by the half.
        if not opening and window.available >= INITIAL_WINDOW and credit < window.available // 2:
            core.glitch()
        if core.drive(stream, Input.RECV_CREDIT) is Verdict.OK:
            window.grow(credit)
            stream.window_stalled = False
            stream.last_progress = core.now
            if stream.ready_to_send:
                core.ring.add(stream)
        elif window.available + credit <= MAX_WINDOW:
            window.grow(credit)  # nothing is sent any more; but credits are judged by what there was
        else:
            core.glitch()

    def _find(self, flags: int, stream_id: int, body: int) -> MuxStream | None:
        """The live stream that a frame is for, made if it carries SYN; None if there is none or it was refused."""
        if not stream_id:
            raise RemoteProtocolError("a frame for stream 0")
        stream = self._core.streams.get(stream_id)
        if flags & SYN:
            if stream is None:
                return self._on_syn(stream_id, body)
            self._core.drive(stream, Input.RECV_SYN)
        if stream is not None and not stream.syn_sent:
            return None  # the peer cannot know this id: it is answered as one that nobody knows
        return stream

    def _on_syn(self, stream_id: int, body: int) -> MuxStream | None:
        core = self._core
        config = core.config
        if (stream_id & 1) == (1 if core.role is Role.CLIENT else 0):
            raise RemoteProtocolError(
                f"stream {stream_id} has our own parity: both sides configured as {core.role.name.lower()}?"
            )
        if body > INITIAL_WINDOW:
            raise RemoteProtocolError(f"stream {stream_id} opened with {body} bytes, beyond the window")
        if not self._syns.take(core.now):
            if not self._syn_excess.take(core.now):
                raise RemoteProtocolError("too many opens", abuse=True)
            core.refuse(stream_id, body)
            return None
        if (
            not core.accept_streams
            or core.draining
            or core.inbound_open >= config.max_inbound_streams
            or len(core.backlog) >= config.accept_backlog
        ):
            core.refuse(stream_id, body)
            return None
        core.closed.pop(stream_id, None)
        stream = MuxStream(stream_id, inbound=True, now=core.now)
        core.streams[stream_id] = stream
        core.backlog[stream_id] = stream
        core.inbound_open += 1
        core.counters.opened_in += 1
        core.touch(stream)
        return stream

    def _on_ack(self, stream: MuxStream) -> None:
        core = self._core
        if stream.inbound or stream.ack_seen:
            core.glitch()
            return
        stream.ack_seen = True
        core.drive(stream, Input.RECV_ACK)
        if not stream.acked:
            core.mark_acked(stream)

    def _on_fin(self, stream: MuxStream) -> None:
        core = self._core
        if not stream.acked:
            core.mark_acked(stream)
        first = not stream.read_eof
        stream.read_eof = True
        core.drive(stream, Input.RECV_FIN)
        if first:
            stream.last_progress = core.now
            core.touch(stream)

    def _on_reset(self, stream: MuxStream) -> None:
        core = self._core
        core.counters.resets_in += 1
        if stream.inbound and core.now - stream.opened_at < core.config.rapid_reset_age:
            self._count_rapid_reset()
        core.drive(stream, Input.RECV_RST, Fault.REFUSED if stream.state is State.SYN_SENT else Fault.PEER_RESET)

    def _count_rapid_reset(self) -> None:
        if not self._rapid_resets.take(self._core.now):
            raise RemoteProtocolError("streams opened and reset too fast", abuse=True)

    def _on_late(self, flags: int, stream_id: int, length: int) -> None:
        """A frame for a stream that is not here: under way when it closed, or nonsense."""
        core = self._core
        entry = core.closed.get(stream_id)
        ours = (stream_id & 1) == (core.next_id & 1) and stream_id < core.next_id
        if length > (core.largest_window if ours or entry is not None else INITIAL_WINDOW):
            raise RemoteProtocolError(f"{length} bytes for stream {stream_id}, which is not open")
        core.release_ghost(stream_id)
        if entry is None:
            core.glitch()
        elif length:
            if length > entry.residual:
                entry.residual = 0
                core.glitch()
            entry.residual -= min(length, entry.residual)
        elif entry.controls:
            entry.controls -= 1
            if flags & RST and entry.refused and core.now - entry.closed_at < core.config.rapid_reset_age:
                self._count_rapid_reset()
        else:
            core.glitch()

    def _on_ping(self, flags: int, stream_id: int, value: int) -> None:
        core = self._core
        if stream_id:
            core.glitch()
        if flags & SYN:
            if not self._pings.take(core.now):
                raise RemoteProtocolError("too many pings", abuse=True)
            if len(core.pongs) < _MAX_PONGS:
                core.pongs.append(value)
        elif flags & ACK and core.ping_outstanding == value and not core.ping_pending:
            sample = core.now - core.last_ping
            core.rtt = sample if core.rtt is None else core.rtt * 0.75 + sample * 0.25
            core.rtt_least = min(core.rtt_least or sample, sample)
            core.ping_outstanding = None
        else:
            core.glitch()

    def _on_go_away(self, stream_id: int, code: int) -> None:
        core = self._core
        if stream_id:
            core.glitch()
        if code:
            core.end(EndKind.REMOTE, f"the peer sent GoAway({code})")
            return
        if core.peer_going_away:
            core.glitch()
        core.peer_going_away = True
        for stream in list(core.queued.values()):
            core.drive(stream, Input.RESET, Fault.GOING_AWAY)
