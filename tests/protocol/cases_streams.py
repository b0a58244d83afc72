"""Cases 31 to 62 of yamux.md §13: flow control, half-close, frames for nobody, abuse, ends."""

import tracemalloc

import pytest

from tests.protocol.lab import (
    ACK,
    FIN,
    G1,
    RST,
    SYN,
    WIN,
    Frame,
    Lab,
    data,
    decode,
    goaway,
    ping,
    raw_header,
    window,
)
from tests.protocol.table import case
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind, Fault, OpenRefusal, OpenRefused
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.stream import State

# Flow control


def no_growth() -> SessionConfig:
    return SessionConfig(max_receive_window=WIN)


@case(31, "credit threshold")
def _(delivery: str) -> None:
    lab = Lab(delivery, config=no_growth())
    stream = lab.open_inbound()
    lab.feed(data(1, bytes(200_000)))
    lab.session.read(stream, 131_071)
    assert lab.sent() == []
    lab.session.read(stream, 1)
    assert lab.sent() == [Frame(1, 0, 1, 131_072)]


@case(32, "no credit unread")
def _(delivery: str) -> None:
    lab = Lab(delivery, config=no_growth())
    stream = lab.open_inbound()
    lab.feed(data(1, bytes(WIN)))
    assert lab.sent() == []
    assert len(stream.received) == WIN


@case(33, "window exact")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    frames = lab.send(stream, bytes(WIN + 1))
    assert sum(frame.length for frame in frames) == WIN
    assert len(stream.send_buffer) == 1
    assert lab.session.counters.window_stalls == 1


@case(34, "one-byte credit")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.send(stream, bytes(WIN) + b"abc")
    lab.feed(window(1, n=1))
    assert lab.sent() == [Frame(0, 0, 1, 1, b"a")]


@case(35, "oversend")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.open_inbound()
    lab.feed(data(1, bytes(WIN - 5)), data(1, bytes(5)))
    assert lab.error is None
    lab.feed(raw_header(0, 0, 0, 1, 1))  # on the header, before the byte
    assert lab.sent() == [G1]


@case(36, "credit overflow")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.open_inbound()
    lab.feed(window(1, n=0xFFFFFFFF))
    assert lab.sent() == [G1]
    lab = Lab(delivery)
    lab.feed(window(1, SYN, 0xFFFFFFFF))
    assert lab.sent() == [G1]


# Half-close


@case(37, "FIN+payload")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.feed(data(1, b"abc", FIN))
    assert bytes(stream.received) == b"abc"
    assert stream.read_eof
    assert lab.read_all(stream) == b"abc"


@case(38, "half-close read")
def _(delivery: str) -> None:
    lab = Lab(delivery, config=no_growth())
    stream = lab.open_inbound()
    lab.session.half_close(stream)
    lab.sent()
    left, allowed, got = 1024 * 1024, WIN, 0
    while left:
        size = min(left, allowed, 65536)
        lab.feed(data(1, bytes(size)))
        left, allowed = left - size, allowed - size
        got += len(lab.read_all(stream))
        allowed += sum(frame.length for frame in lab.sent())
    lab.feed(window(1, FIN))
    assert got == 1024 * 1024
    assert stream.read_eof
    assert stream.gone
    assert stream.fault is None


@case(39, "FIN after data")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.send(stream, bytes(WIN) + b"rest")
    lab.session.half_close(stream)
    assert lab.sent() == []
    lab.feed(window(1, n=3))
    assert lab.sent() == [Frame(0, 0, 1, 3, b"res")]
    lab.feed(window(1, n=1))
    assert lab.sent() == [Frame(0, 0, 1, 1, b"t"), Frame(1, FIN, 1, 0)]


@case(40, "duplicate FIN in")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    assert lab.feed(window(1, FIN)) == [stream]
    assert lab.feed(window(1, FIN)) == []
    assert lab.session.counters.glitches == 1
    assert stream.state is State.REMOTE_CLOSED


@case(41, "never FIN twice")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.session.half_close(stream)
    lab.session.close(stream)
    frames = lab.sent()
    lab.session.half_close(stream)
    lab.session.close(stream)
    frames += lab.sent()
    assert frames == [Frame(1, FIN, 1, 0)]


@case(42, "data after FIN")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.feed(window(1, FIN), data(1, b"more"))
    assert lab.sent() == [Frame(1, RST, 1, 0)]
    assert stream.fault is Fault.DATA_AFTER_FIN
    assert lab.session.buffered == 0


@case(43, "RST with buffer")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.feed(data(1, b"abc"), window(1, RST, 77))
    assert stream.fault is Fault.PEER_RESET
    assert not stream.read_eof
    assert stream.send_window.available == WIN
    assert lab.session.read(stream) == b"abc", "what came before the reset is delivered before it"
    assert lab.session.buffered == 0


@case(44, "RST during send")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.send(stream, bytes(WIN + 1000))
    assert lab.session.send(stream, bytes(262144)) < 262144
    assert lab.feed(window(1, RST)) == [stream]
    assert stream.fault is Fault.PEER_RESET
    assert not stream.send_buffer
    assert lab.sent() == []


# Frames for nobody


@case(45, "unknown id")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(data(77, b"12345"), window(77), ping(1))
    assert lab.sent() == [Frame(2, ACK, 0, 1)]
    assert lab.session.counters.glitches == 2


@case(46, "late data after RST")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.session.reset(lab.open_inbound())
    lab.sent()
    lab.feed(data(1, bytes(200 * 1024)))
    assert lab.sent() == []
    assert lab.session.counters.glitches == 0
    assert lab.session.buffered == 0
    lab.feed(data(1, bytes(100 * 1024)))  # beyond what it could have had under way
    assert lab.session.counters.glitches == 1


@case(47, "bad version / type")
def _(delivery: str) -> None:
    for frame in (raw_header(1, 0, 0, 1, 0), raw_header(0, 4, 0, 1, 0), raw_header(255, 255, 0, 1, 0)):
        lab = Lab(delivery)
        lab.feed(frame)
        assert lab.error is not None
        assert lab.error.wire_code == 1
        assert lab.sent() == [G1]
        assert lab.session.ending is not None
        assert lab.session.ending.kind is EndKind.PROTOCOL
        assert lab.feed(window(1, SYN)) == []  # deaf from now on
        assert lab.sent() == []


@case(48, "unknown flags")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    (stream,) = lab.feed(window(1, 0x11))
    assert lab.session.accept() is stream
    assert lab.session.counters.glitches == 1


@case(49, "stray pong")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(ping(9, ACK))
    assert lab.sent() == []
    assert lab.session.counters.glitches == 1


# Abuse


@case(50, "ping flood")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(*(ping(n) for n in range(1000)))
    frames = lab.sent()
    assert sum(frame.kind == 2 for frame in frames) <= 32
    assert frames[-1] == G1
    assert lab.session.ending is not None
    assert lab.session.ending.kind is EndKind.ABUSE
    lab = Lab(delivery)
    lab.feed(*(ping(n) for n in range(31 if delivery == "tail" else 32)))  # the tail is a ping too
    assert sum(frame.kind == 2 for frame in lab.sent()) == (31 if delivery == "tail" else 32)
    assert lab.session.ending is None
    lab.feed(ping(32))
    assert lab.sent() == [G1]


@case(51, "rapid reset")
def _(delivery: str) -> None:
    for accept_streams in (True, False):
        lab = Lab(delivery, accept_streams=accept_streams)
        lab.feed(*(window(2 * n + 1, SYN) + window(2 * n + 1, RST) for n in range(1000)))
        assert lab.sent() == [G1]
        assert lab.session.ending is not None
        assert lab.session.ending.kind is EndKind.ABUSE
        assert lab.session.streams_open == lab.session.incoming == lab.session.buffered == 0


@case(52, "useless flood")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.open_inbound()
    lab.feed(*[window(1)] * 2000)
    assert lab.sent() == [G1]


@case(53, "tiny frames")
def _(delivery: str) -> None:
    lab = Lab("whole")  # three million bytes one by one would show nothing more
    stream = lab.open_inbound()
    wire = data(1, b"x") * (WIN // 4)
    lab.feed(wire, wire, wire)
    tracemalloc.start()  # it is slow: so the last quarter only
    lab.feed(wire)
    size, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(stream.received) == WIN
    assert size < 1024 * 1024


# Ends


@case(54, "G0 in")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.feed(goaway(0))
    assert lab.session.peer_going_away
    with pytest.raises(OpenRefused) as refused:
        lab.session.open(lab.now)
    assert refused.value.why is OpenRefusal.GOING_AWAY
    lab.feed(data(1, b"still"))
    assert lab.read_all(stream) == b"still"


@case(55, "G1 / G99 in")
def _(delivery: str) -> None:
    for code in (1, 99):
        lab = Lab(delivery)
        stream = lab.open_inbound()
        lab.feed(data(1, b"lost"), goaway(code))
        assert stream.fault is Fault.SESSION_ENDED
        assert not stream.read_eof
        assert lab.session.ending is not None
        assert lab.session.ending.kind is EndKind.REMOTE
        assert lab.sent() == []


@case(56, "draining")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.session.go_away()
    assert lab.sent() == [Frame(3, 0, 0, 0)]
    lab.feed(window(3, SYN))
    assert lab.sent() == [Frame(1, RST, 3, 0)]
    lab.feed(data(1, b"live"))
    assert lab.read_all(stream) == b"live"
    lab.session.go_away()
    assert lab.sent() == []


@case(57, "EOF mid-frame")
def _(delivery: str) -> None:
    lab = Lab("bytes" if delivery == "bytes" else "whole")
    stream = lab.open_inbound()
    lab.feed(data(1, b"abc")[:7])
    assert lab.session.receive_eof() == [stream]
    assert stream.fault is Fault.SESSION_ENDED
    assert not stream.read_eof
    assert lab.session.ending is not None
    assert lab.session.ending.kind is EndKind.TRANSPORT


@case(58, "stalled body")
def _(delivery: str) -> None:
    lab = Lab("bytes" if delivery == "bytes" else "whole")
    stream = lab.open_inbound()
    lab.feed(raw_header(0, 0, 0, 1, 1000))
    lab.tick(29)
    assert lab.session.ending is None
    lab.tick(1)
    assert stream.fault is Fault.SESSION_ENDED
    assert lab.session.ending is not None


@case(59, "pong priority")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    streams = [lab.open_inbound(2 * n + 1) for n in range(8)]
    for stream in streams:
        lab.session.send(stream, bytes(65536))
    lab.raw()
    lab.feed(ping(42))
    # A batch that was made before is at most 64 KiB; the pong comes before all data of the next.
    frames = decode(lab.raw())
    before_data = frames[: [frame.kind for frame in frames].index(0)]
    assert Frame(2, ACK, 0, 42) in before_data


@case(62, "id exhaustion")
def _(delivery: str) -> None:
    for role, last in ((Role.CLIENT, 0xFFFFFFFD), (Role.SERVER, 0xFFFFFFFC)):
        lab = Lab(delivery, role)
        lab.session._core.next_id = last
        assert lab.session.ids_running_out
        stream = lab.open_outbound()
        assert stream.stream_id == last
        with pytest.raises(OpenRefused) as refused:
            lab.session.open(lab.now)
        assert refused.value.why is OpenRefusal.IDS_EXHAUSTED
        lab.feed(data(last, b"usable"))
        assert lab.read_all(stream) == b"usable"
