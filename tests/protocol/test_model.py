"""Two sessions talk to each other over a wire that cuts and delays as Hypothesis likes, beside a simple model."""

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream


@dataclass
class Direction:
    """What one side said on a stream, and what the other has read of it."""

    written: bytearray = field(default_factory=bytearray)
    read: bytearray = field(default_factory=bytearray)
    ended: bool = False
    seen_end: bool = False


@dataclass(eq=False)
class Pair:
    near: MuxStream
    near_side: int
    far: MuxStream | None = None
    reset: bool = False
    ways: tuple[Direction, Direction] = field(default_factory=lambda: (Direction(), Direction()))


class TwoSessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        config = SessionConfig(max_unacked=3, open_timeout=1e6, send_buffer=50_000, max_batch=20_000)
        self.now = 0.0
        self.sessions = (Session(Role.CLIENT, config), Session(Role.SERVER, config))
        self.wires = (bytearray(), bytearray())  # under way towards session 0 and 1
        self.pairs: dict[int, Pair] = {}

    def ends(self, side: int) -> list[tuple[Pair, MuxStream, Direction, Direction]]:
        """The live ends on `side`: pair, stream, what it says, what it hears."""
        found = []
        for pair in self.pairs.values():
            stream = pair.near if pair.near_side == side else pair.far
            if stream is not None and not pair.reset:
                found.append((pair, stream, pair.ways[side], pair.ways[1 - side]))
        return found

    @rule(side=st.integers(0, 1))
    def open(self, side: int) -> None:
        if len(self.pairs) < 12:
            stream = self.sessions[side].open(self.now)
            self.pairs[stream.stream_id] = Pair(stream, side)

    @rule(side=st.integers(0, 1))
    def accept(self, side: int) -> None:
        stream = self.sessions[side].accept()
        if stream is not None:
            self.pairs[stream.stream_id].far = stream

    @rule(side=st.integers(0, 1), pick=st.integers(0, 100), size=st.sampled_from([0, 1, 100, 9000, 60_000, 300_000]))
    def write(self, side: int, pick: int, size: int) -> None:
        ends = [end for end in self.ends(side) if end[1].writable]
        if ends:
            _, stream, says, _ = ends[pick % len(ends)]
            body = bytes((len(says.written) + n) % 251 for n in range(size))
            says.written += body[: self.sessions[side].send(stream, body)]

    @rule(side=st.integers(0, 1), pick=st.integers(0, 100), most=st.sampled_from([None, 1, 5000]))
    def read(self, side: int, pick: int, most: int | None) -> None:
        ends = self.ends(side)
        if ends:
            _, stream, _, hears = ends[pick % len(ends)]
            hears.read += self.sessions[side].read(stream, most)
            hears.seen_end = stream.read_eof and not stream.received

    @rule(side=st.integers(0, 1), pick=st.integers(0, 100))
    def half_close(self, side: int, pick: int) -> None:
        ends = self.ends(side)
        if ends:
            _, stream, says, _ = ends[pick % len(ends)]
            self.sessions[side].half_close(stream)
            says.ended = True

    @precondition(lambda self: len(self.pairs) > 3)
    @rule(side=st.integers(0, 1), pick=st.integers(0, 100))
    def reset(self, side: int, pick: int) -> None:
        ends = self.ends(side)
        if ends:
            pair, stream, _, _ = ends[pick % len(ends)]
            self.sessions[side].reset(stream)
            pair.reset = True

    @rule(side=st.integers(0, 1))
    def ping(self, side: int) -> None:
        self.sessions[side].ping(self.now)

    @rule(side=st.integers(0, 1), most=st.sampled_from([64, 1000, 20_000]))
    def flush(self, side: int, most: int) -> None:
        batch = self.sessions[side].data_to_send(most, self.now)
        assert len(batch) <= most
        self.wires[1 - side].extend(batch)

    @rule(side=st.integers(0, 1), most=st.sampled_from([1, 11, 13, 5000, 10_000_000]))
    def deliver(self, side: int, most: int) -> None:
        wire = self.wires[side]
        piece = bytes(wire[:most])
        del wire[:most]
        self.now += 0.001
        for stream in self.sessions[side].receive_data(piece, self.now):
            stream.touched = False

    @invariant()
    def nothing_is_lost_invented_or_reordered(self) -> None:
        for pair in self.pairs.values():
            for way in pair.ways:
                assert way.written.startswith(way.read)
                if way.seen_end and not pair.reset:
                    assert way.ended
                    assert way.read == way.written
        for session in self.sessions:
            assert session.ending is None
            assert session.streams_unacked <= session.config.max_unacked

    def teardown(self) -> None:
        """Let everything through: whoever has ended is gone, and all that was written can be read."""
        for pair in self.pairs.values():
            if not pair.reset:
                self.sessions[pair.near_side].half_close(pair.near)
                pair.ways[pair.near_side].ended = True
        for _ in range(400):
            quiet = True
            for side in (0, 1):
                self.accept(side)
                for _, stream, says, hears in self.ends(side):
                    hears.read += self.sessions[side].read(stream)
                    self.sessions[side].half_close(stream)
                    says.ended = True
                before = len(self.wires[1 - side])
                self.flush(side, 20_000)
                quiet &= (
                    len(self.wires[1 - side]) == before and not self.wires[side] and not self.sessions[side].incoming
                )
                self.deliver(side, 10_000_000)
            if quiet:
                break
        else:
            raise AssertionError("the sessions never fall quiet")
        self.nothing_is_lost_invented_or_reordered()
        for pair in self.pairs.values():
            for side, stream in ((pair.near_side, pair.near), (1 - pair.near_side, pair.far)):
                if pair.reset and stream is not None:  # what came before the reset is still there
                    pair.ways[1 - side].read += self.sessions[side].read(stream)
        self.nothing_is_lost_invented_or_reordered()
        for pair in self.pairs.values():
            if not pair.reset and pair.near.fault is None:
                for way in pair.ways:
                    assert way.read == way.written
        for session in self.sessions:
            assert session.streams_open == 0
            assert session.buffered == 0
            assert not session._core.lingering
            assert session.counters.glitches == 0


TwoSessions.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestTwoSessions = TwoSessions.TestCase
