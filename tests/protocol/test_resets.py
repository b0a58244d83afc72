"""A reset never overtakes the bytes that were accepted before it, be it one that is passed on or one that comes."""

from tests.protocol.lab import FIN, RST, SYN, WIN, Lab, data, ping, window
from tunnel.protocol.errors import Fault
from tunnel.protocol.stream import MuxStream


def fill(lab: Lab, stream: MuxStream, size: int) -> None:
    """Send so much; what the window does not let go stays queued."""
    while size:
        size -= lab.session.send(stream, bytes(size))
        lab.sent()


def test_a_reset_that_is_passed_on_goes_behind_the_bytes_before_it() -> None:
    lab = Lab("whole")
    stream = lab.open_inbound()
    lab.session.send(stream, bytes(100_000))
    lab.session.reset_when_flushed(stream)
    frames = lab.sent()
    assert sum(len(frame.body) for frame in frames) == 100_000
    assert [frame.flags for frame in frames if frame.flags] == [RST]
    assert frames[-1].flags == RST
    assert stream.gone


def test_without_bytes_it_goes_at_once_and_an_end_that_was_wanted_goes_before_it() -> None:
    lab = Lab("whole")
    stream = lab.open_inbound()
    lab.session.reset_when_flushed(stream)
    assert [frame.flags for frame in lab.sent()] == [RST]
    other = lab.open_inbound(3)
    lab.session.send(other, b"bye")
    lab.session.half_close(other)
    lab.session.reset_when_flushed(other)
    assert [(frame.flags, frame.body) for frame in lab.sent()] == [(0, b"bye"), (FIN, b""), (RST, b"")]


def test_what_comes_for_a_stream_that_waits_to_be_reset_is_dropped_and_not_answered() -> None:
    lab = Lab("whole")
    stream = lab.open_inbound()
    fill(lab, stream, WIN + 1000)
    lab.session.reset_when_flushed(stream)
    assert all(not frame.flags for frame in lab.sent())
    lab.feed(data(1, bytes(100_000)), data(1, bytes(50_000), FIN))
    assert lab.sent() == []
    assert lab.session.buffered == 0
    lab.feed(window(1, 0, 1000))
    assert [(frame.flags, len(frame.body)) for frame in lab.sent()] == [(0, 1000), (RST, 0)]


def test_a_peer_that_takes_nothing_gets_the_reset_after_thirty_seconds() -> None:
    lab = Lab("whole")
    stream = lab.open_inbound()
    fill(lab, stream, WIN + 1000)
    lab.session.reset_when_flushed(stream)
    lab.sent()
    lab.feed(ping(1))
    lab.tick(29.0)
    assert not stream.gone
    lab.feed(ping(2))
    lab.tick(2.0)
    assert stream.gone
    assert [frame for frame in lab.sent() if frame.flags == RST]


def test_unread_bytes_behind_which_a_reset_came_are_given_up_with_the_stream() -> None:
    lab = Lab("whole")
    for number, end in ((1, lab.session.close), (3, lab.session.reset)):
        stream = lab.open_inbound(number)
        lab.feed(data(number, b"abc"), window(number, RST))
        assert (stream.fault, lab.session.buffered) == (Fault.PEER_RESET, 3)
        end(stream)
        assert lab.session.buffered == 0
    lab.feed(window(5, SYN), data(5, b"never accepted"), window(5, RST))
    assert lab.session.buffered == 0
