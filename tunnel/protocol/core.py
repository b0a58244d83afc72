"""What a session remembers, and the few changes of it that every part shares: touch, retire, reset, glitch, end.

Knows neither how frames are read (`inbound`) nor written (`outbound`) nor when (`timers`). Level-triggered: it holds
what is to be said as bits and counts, never as frames, so control memory is O(streams) (yamux.md §11).
"""

from collections import OrderedDict
from enum import Enum

from tunnel.protocol.errors import GOAWAY_NORMAL, Ending, EndKind, Fault, RemoteProtocolError
from tunnel.protocol.frames import INITIAL_WINDOW, SYN
from tunnel.protocol.limits import SessionConfig, TokenBucket
from tunnel.protocol.scheduler import DeficitRoundRobin
from tunnel.protocol.states import Input, Verdict, apply
from tunnel.protocol.stream import MuxStream, State

# Frames other than Data that may still arrive for a closed stream without being a glitch: credits for bytes that the
# peer's application reads late, its FIN or RST, a late ACK.
_LATE_CONTROLS = 16
# What the peer does to a stream never overtakes the bytes that it sent before.
_AFTER_BYTES = (Fault.PEER_RESET, Fault.SESSION_ENDED)
# Bytes for a peer that has ended its own side and takes none for so long are not wanted any more.
_STUCK_SECONDS = 30.0


class Role(Enum):
    """The yamux role, independent of who dialled: the client opens odd stream ids, the server even ones."""

    CLIENT = 1
    SERVER = 2


class ClosedStream:
    """What may still arrive for a stream that is gone."""

    __slots__ = ("closed_at", "controls", "refused", "residual")

    def __init__(self, residual: int, *, refused: bool, now: float) -> None:
        self.residual = residual
        self.controls = _LATE_CONTROLS
        self.refused = refused
        self.closed_at = now


class Counters:
    """Totals since the session began."""

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "credits_out",
        "frames_in",
        "frames_out",
        "glitches",
        "opened_in",
        "opened_out",
        "refused_in",
        "resets_in",
        "resets_out",
        "window_stalls",
    )

    def __init__(self) -> None:
        self.bytes_in = 0
        self.bytes_out = 0
        self.frames_in = 0
        self.frames_out = 0
        self.credits_out = 0
        self.glitches = 0
        self.opened_in = 0
        self.opened_out = 0
        self.refused_in = 0
        self.resets_in = 0
        self.resets_out = 0
        self.window_stalls = 0


class Core:
    """The state of one session. Only the modules of this package touch it."""

    __slots__ = (
        "accept_streams",
        "backlog",
        "buffered",
        "bulk",
        "closed",
        "closing",
        "config",
        "control",
        "counters",
        "crowded",
        "draining",
        "ending",
        "ghosts",
        "glitch_bucket",
        "goaway",
        "inbound_open",
        "largest_window",
        "last_ping",
        "last_received",
        "lingering",
        "next_id",
        "next_ping",
        "now",
        "opening",
        "peer_going_away",
        "ping_outstanding",
        "ping_pending",
        "pongs",
        "queued",
        "refusals",
        "resets",
        "reviewed_at",
        "ring",
        "role",
        "rtt",
        "rtt_least",
        "spoken_at",
        "streams",
        "touched",
        "unacked",
    )

    def __init__(self, role: Role, config: SessionConfig, now: float, *, accept_streams: bool) -> None:
        self.role = role
        self.config = config
        self.accept_streams = accept_streams
        self.now = now
        self.counters = Counters()
        self.touched: list[MuxStream] = []
        # Streams, and the views of them that need an order. Dicts keep it and lose an element in O(1).
        self.streams: dict[int, MuxStream] = {}
        self.backlog: dict[int, MuxStream] = {}  # inbound, not yet accepted
        self.queued: dict[int, MuxStream] = {}  # outbound, waiting for an ACK slot
        self.opening: dict[int, MuxStream] = {}  # outbound, in SYN_SENT, oldest first; the queued ones included
        self.closing: dict[int, MuxStream] = {}  # with a FIN wanted or sent
        self.lingering: set[MuxStream] = set()  # gone, in good order, with unread bytes
        self.closed: OrderedDict[int, ClosedStream] = OrderedDict()
        self.next_id = 1 if role is Role.CLIENT else 2
        self.inbound_open = 0
        # ACK slots: a peer that is hashicorp/yamux keeps a slot for each stream that we reset before it accepted it.
        # Such ghosts keep ours too, until the open timeout or an ACK for a later stream.
        self.unacked = 0
        self.ghosts: dict[int, float] = {}
        # What is to be said, in the order of saying it.
        self.goaway: int | None = None
        self.pongs: list[int] = []
        self.ping_pending = False
        self.resets: list[int] = []
        self.refusals: list[int] = []
        self.control: list[MuxStream] = []
        self.ring = DeficitRoundRobin(config.quantum, config.send_buffer // 2)
        # Classes of streams.
        self.bulk: dict[int, MuxStream] = {}
        self.reviewed_at = now
        self.spoken_at = now  # an interactive stream, while there are bulk ones
        self.crowded = False  # interactive streams speak beside bulk ones, whose credit is held back
        # Liveness.
        self.last_received = now
        self.last_ping = now
        self.next_ping = 0
        self.ping_outstanding: int | None = None
        self.rtt: float | None = None
        self.rtt_least = 0.0  # of all samples: without the queues; 0 before the first
        # Ends and bounds.
        self.draining = False
        self.peer_going_away = False
        self.ending: Ending | None = None
        self.buffered = 0
        self.largest_window = config.receive_window
        self.glitch_bucket = TokenBucket(config.glitch_rate, now)

    # What every part does to a stream

    def touch(self, stream: MuxStream) -> None:
        """Mark `stream` as touched: the caller of the session looks at it again."""
        if not stream.touched:
            stream.touched = True
            self.touched.append(stream)

    def say(self, stream: MuxStream, bit: int) -> None:
        """Note that a SYN, ACK or credit of `stream` is to be written."""
        stream.pending |= bit
        if not stream.in_control:
            stream.in_control = True
            self.control.append(stream)

    def drive(self, stream: MuxStream, what: Input, fault: Fault | None = None) -> Verdict:
        """Apply `what`, and do what the verdict asks. `fault` is what the stream's user is told if it is gone by that.

        Raises RemoteProtocolError if the verdict is fatal.
        """
        verdict = apply(stream, what)
        if verdict is Verdict.GLITCH:
            self.glitch()
        elif verdict is Verdict.FATAL:
            raise RemoteProtocolError(f"{what.name} on live stream {stream.stream_id}")
        elif verdict is not Verdict.IGNORE and stream.state is State.GONE:
            if verdict is Verdict.RESET and stream.syn_sent:
                self.resets.append(stream.stream_id)
                self.counters.resets_out += 1
            self._retire(stream, fault)
        return verdict

    def mark_acked(self, stream: MuxStream) -> None:
        """The peer answered an open, by ACK or by implication: its slot is free. Called once per stream."""
        stream.acked = True
        self.opening.pop(stream.stream_id, None)
        if self.ghosts:
            # Streams are accepted in order: the peer's queue has moved past every older one.
            for stream_id in [old for old in self.ghosts if old < stream.stream_id]:
                self.release_ghost(stream_id)
        self._release_slot()
        self.touch(stream)

    def release_ghost(self, stream_id: int) -> None:
        """Give back the slot of a stream that was reset before its ACK, if it still holds one."""
        if self.ghosts.pop(stream_id, None) is not None:
            self._release_slot()

    def admit_opens(self) -> None:
        """Let queued opens take the slots that are free."""
        limit = self.config.max_unacked
        while self.queued and self.unacked < limit:
            stream = self.queued.pop(next(iter(self.queued)))
            self.unacked += 1
            self.say(stream, SYN)

    def remember(self, stream_id: int, residual: int, *, refused: bool = False) -> None:
        """Frames of this closed stream may still be under way: `residual` bytes of Data at most."""
        self.closed[stream_id] = ClosedStream(residual, refused=refused, now=self.now)
        self.closed.move_to_end(stream_id)
        if len(self.closed) > self.config.late_ids:
            self.closed.popitem(last=False)

    def refuse(self, stream_id: int, body: int) -> None:
        """Answer a SYN with RST without keeping a stream for it. Raises RemoteProtocolError if too many wait."""
        if len(self.refusals) >= self.config.max_pending_resets:
            raise RemoteProtocolError("too many refused streams without reading our answers", abuse=True)
        self.refusals.append(stream_id)
        self.counters.refused_in += 1
        self.remember(stream_id, INITIAL_WINDOW - body, refused=True)

    def glitch(self) -> None:
        """Count something useless. Raises RemoteProtocolError when there is too much of it."""
        self.counters.glitches += 1
        if not self.glitch_bucket.take(self.now):
            raise RemoteProtocolError("too many useless frames", abuse=True)

    def shed(self) -> None:
        """Over the hard limit of unread bytes: reset the stream that holds most, until the rest fits."""
        while self.buffered > self.config.hard_buffered:
            victim = max((*self.streams.values(), *self.lingering), key=lambda stream: len(stream.received))
            if victim.state is State.GONE:
                self.drop_unread(victim)
                victim.fault = Fault.BUFFER_LIMIT
                self.touch(victim)
            else:
                self.drive(victim, Input.RESET, Fault.BUFFER_LIMIT)

    def drop_unread(self, stream: MuxStream) -> None:
        """Drop the unread bytes of a stream that is gone, since nobody will read them."""
        self.lingering.discard(stream)
        self._drop_buffers(stream)

    def give_up_closed(self) -> bool:
        """Reset the oldest of our own streams that the application has closed, both ways; False if there is none.

        Such a stream only waits for the peer's FIN, which the peer may send when it likes. A stream whose FIN came
        already still sends last bytes that the peer may want: it stays unless these have been stuck for a while. A
        stream that the peer has not accepted yet stays too: the peer would keep its slot all the same.
        """
        for stream in self.closing.values():
            if not stream.discarding or not stream.acked or stream.inbound:
                continue
            if not stream.read_eof or self.now - stream.last_progress >= _STUCK_SECONDS:
                self.drive(stream, Input.RESET, Fault.LOCAL_RESET)
                return True
        return False

    def end(self, kind: EndKind, text: str, *, send_code: int | None = None) -> None:
        """End the session: every stream breaks, nothing more is said but GoAway(`send_code`). The first call counts."""
        if self.ending is not None:
            return
        self.ending = Ending(kind, text, send_code)
        for stream in list(self.streams.values()):
            self.drive(stream, Input.SESSION_END, Fault.SESSION_ENDED)
        if send_code != GOAWAY_NORMAL or not self.draining:  # a GoAway(0) was said already, or still waits
            self.goaway = send_code
        self.ping_pending = False
        self.ring.clear()
        self.pongs.clear()
        self.resets.clear()
        self.refusals.clear()
        self.control.clear()
        self.closed.clear()
        self.ghosts.clear()
        self.queued.clear()
        self.unacked = 0

    def _release_slot(self) -> None:
        self.unacked -= 1
        self.admit_opens()

    def _drop_buffers(self, stream: MuxStream) -> None:
        self.buffered -= len(stream.received)
        stream.received.clear()
        stream.send_buffer.clear()

    def _retire(self, stream: MuxStream, fault: Fault | None) -> None:
        """The stream is gone from the wire: take it out of every list, remember it for late frames."""
        stream_id = stream.stream_id
        stream.fault = fault
        stream.pending = 0
        del self.streams[stream_id]
        self.closing.pop(stream_id, None)
        if stream.bulk:
            del self.bulk[stream_id]
        self.remember(stream_id, 0 if stream.read_eof and fault is None else stream.receive_window.remaining)
        if fault is None or (fault in _AFTER_BYTES and not stream.discarding and stream_id not in self.backlog):
            stream.send_buffer.clear()
            if stream.received:
                self.lingering.add(stream)
        else:
            self._drop_buffers(stream)
        if stream.inbound:
            self.inbound_open -= 1
            self.backlog.pop(stream_id, None)
        elif not stream.acked:
            self._retire_unacked(stream, fault)
        self.touch(stream)

    def _retire_unacked(self, stream: MuxStream, fault: Fault | None) -> None:
        stream_id = stream.stream_id
        self.opening.pop(stream_id, None)
        if self.queued.pop(stream_id, None) is not None:
            return  # it had no slot yet
        if stream.syn_sent and fault is not Fault.REFUSED and fault is not Fault.PEER_RESET:
            self.ghosts[stream_id] = self.now + self.config.open_timeout
            if len(self.ghosts) >= self.config.max_unacked:
                # One slot is left to the living: its ACK is what frees the ghosts of a peer in good health.
                self.release_ghost(next(iter(self.ghosts)))
        else:
            self._release_slot()
