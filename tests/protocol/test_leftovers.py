"""A session whose streams are all taken gives up those that it is done with itself before it refuses a new one."""

import pytest

from tests.protocol.lab import ACK, FIN, RST, SYN, WIN, Frame, Lab, data, window
from tunnel.protocol.core import Role
from tunnel.protocol.errors import Fault, OpenRefusal, OpenRefused
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.stream import MuxStream, State


def full(limit: int = 3, *, done: int) -> tuple[Lab, list[MuxStream]]:
    """A session with as many streams as it may have, answered; the first `done` closed here, not yet by the peer."""
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_outbound_streams=limit))
    streams = [lab.open_outbound() for _ in range(limit)]
    for stream in streams:
        lab.feed(data(stream.stream_id, b"answer"))
        assert lab.read_all(stream) == b"answer"
    for stream in streams[:done]:
        lab.session.close(stream)
    lab.sent()
    return lab, streams


def test_the_oldest_closed_stream_makes_room() -> None:
    lab, streams = full(done=2)
    new = lab.session.open(lab.now)
    assert lab.sent() == [Frame(1, RST, 1, 0), Frame(1, SYN, 7, 0)]
    assert [stream.state for stream in streams] == [State.GONE, State.LOCAL_CLOSED, State.OPEN]
    assert (new.state, streams[0].fault) == (State.SYN_SENT, Fault.LOCAL_RESET)
    assert lab.session.streams_open == 3


def test_the_limit_holds_for_streams_in_use() -> None:
    lab, streams = full(done=1)
    lab.session.half_close(streams[1])  # its other direction goes on
    lab.sent()
    lab.session.open(lab.now)
    with pytest.raises(OpenRefused) as refused:
        lab.session.open(lab.now)
    assert refused.value.why is OpenRefusal.TOO_MANY
    assert [stream.state for stream in streams] == [State.GONE, State.LOCAL_CLOSED, State.OPEN]
    assert lab.session.streams_open == 3


def test_what_waits_behind_a_full_window_is_given_up_too() -> None:
    """The box answered and never took the rest of the request: nobody will miss it."""
    lab, streams = full(limit=1, done=0)
    lab.send(streams[0], bytes(WIN + 1))
    lab.session.close(streams[0])
    assert lab.sent() == []  # the FIN waits behind the last byte
    lab.session.open(lab.now)
    assert lab.sent() == [Frame(1, RST, 1, 0), Frame(1, SYN, 3, 0)]
    assert streams[0].send_buffer == b""


def test_the_last_bytes_of_a_stream_that_the_peer_has_ended_are_not_lost() -> None:
    """Closed on both sides, as an upgraded connection's: the peer waits for what was said last."""
    lab, streams = full(limit=1, done=0)
    lab.feed(window(1, FIN))
    lab.session.send(streams[0], b"last words")
    lab.session.close(streams[0])
    with pytest.raises(OpenRefused):
        lab.session.open(lab.now)
    assert lab.sent() == [Frame(0, 0, 1, 10, b"last words"), Frame(1, FIN, 1, 0)]
    assert streams[0].fault is None
    lab.session.open(lab.now)


def test_last_bytes_that_nobody_takes_are_given_up_in_the_end() -> None:
    lab, streams = full(limit=1, done=0)
    lab.send(streams[0], bytes(WIN + 1))
    lab.feed(window(1, FIN))
    lab.session.close(streams[0])
    with pytest.raises(OpenRefused):
        lab.session.open(lab.now)
    lab.now += 30
    lab.session.open(lab.now)
    assert lab.sent() == [Frame(1, RST, 1, 0), Frame(1, SYN, 3, 0)]


def test_a_stream_that_was_not_accepted_yet_is_left_alone() -> None:
    """Its reset would hold the peer's slot all the same, so nothing were gained (yamux.md §9)."""
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_outbound_streams=1))
    waiting = lab.open_outbound(ack=False)
    lab.session.close(waiting)
    lab.sent()
    with pytest.raises(OpenRefused):
        lab.session.open(lab.now)
    assert waiting.fault is None
    lab.feed(window(1, ACK))
    lab.session.open(lab.now)
    assert waiting.state is State.GONE


def test_what_still_comes_for_it_is_no_glitch() -> None:
    lab, _ = full(limit=1, done=1)
    lab.session.open(lab.now)
    lab.sent()
    lab.feed(data(1, b"late"), window(1, FIN))
    assert (lab.session.counters.glitches, lab.error) == (0, None)


def test_thousands_of_exchanges_keep_within_the_limit() -> None:
    """A stream each, of a peer that never ends its side: the limit holds and nothing is left behind."""
    lab = Lab(role=Role.CLIENT, config=SessionConfig(max_outbound_streams=8))
    for _ in range(3000):
        stream = lab.open_outbound()
        lab.feed(data(stream.stream_id, b"answer"))
        lab.read_all(stream)
        lab.session.close(stream)
        assert lab.session.streams_open <= 8
    core = lab.session._core
    assert (len(core.closing), core.unacked, len(core.ghosts), len(core.closed)) == (8, 0, 0, 1024)
    assert lab.session.ending is None
