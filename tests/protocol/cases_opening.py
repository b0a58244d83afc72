"""Cases 1 to 30 of yamux.md §13: encoding, delivery, opening and acknowledging."""

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
    ping,
    raw_header,
    window,
)
from tests.protocol.table import case
from tunnel.protocol.core import Role
from tunnel.protocol.errors import Fault
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.stream import State

# Encoding


@case(1, "encode open")
def _(delivery: str) -> None:
    lab = Lab(delivery, Role.CLIENT)
    lab.session.open(lab.now)
    assert lab.raw().hex() == "000100010000000100000000"


@case(2, "encode ACK")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(bytes.fromhex("000100010000000100000000"))
    assert lab.session.accept() is not None
    assert lab.sent() == [Frame(1, ACK, 1, 0)]
    plain = Lab("whole")
    plain.feed(window(1, SYN))
    plain.session.accept()
    assert plain.raw().hex() == "000100020000000100000000"


@case(3, "encode FIN")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.session.half_close(lab.open_inbound())
    assert lab.raw().hex() == "000100040000000100000000"


@case(4, "encode RST")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.session.reset(stream)
    assert lab.raw().hex() == "000100080000000100000000"
    assert stream.fault is Fault.LOCAL_RESET


@case(5, "data")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    assert lab.session.send(lab.open_inbound(), b"hi") == 2
    assert lab.raw().hex() == "0000000000000001000000026869"


@case(6, "ping")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(bytes.fromhex("000200010000000000000007"))
    assert lab.sent() == [Frame(2, ACK, 0, 7)]


# Delivery


@case(7, "byte-at-a-time")
def _(delivery: str) -> None:
    def events(how: str) -> list[object]:
        lab = Lab(how)
        seen: list[object] = [
            [(s.stream_id, s.state, bytes(s.received), s.fault) for s in lab.feed(frame)]
            for frame in (window(1, SYN), ping(7), data(1, b"hi"), window(1, FIN), window(3, SYN), window(3, RST))
        ]
        return [*seen, lab.sent()]

    assert events(delivery) == events("whole")


@case(8, "split header/body")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    whole = data(1, b"hello")
    got = b""
    for piece in (whole[:12], whole[12:]):
        lab.delivery = "whole"
        lab.feed(piece)
        got += lab.read_all(stream)
    assert got == b"hello"


@case(9, "fragmented body")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.delivery = "whole"  # the fragments are the delivery
    body = bytes(range(256)) * 1024
    lab.feed(raw_header(0, 0, 0, 1, WIN))
    got = bytearray()
    for pos in range(0, WIN, 4096):
        assert lab.feed(body[pos : pos + 4096]) == [stream]  # streamed, not held until the frame is whole
        piece = lab.read_all(stream)
        assert len(piece) == 4096
        got += piece
    assert got == body


@case(10, "coalesced")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    ids = [2 * n + 1 for n in range(50)]
    touched = lab.feed(*(data(stream_id, b"%d" % stream_id, SYN) for stream_id in ids))
    assert [(stream.stream_id, bytes(stream.received)) for stream in touched] == [(n, b"%d" % n) for n in ids]


# Opening


@case(13, "large-window SYN")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    (stream,) = lab.feed(window(1, SYN, 6_029_312))
    assert stream.send_window.available == 6_291_456


@case(14, "D[SYN] payload")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    (stream,) = lab.feed(data(1, b"hi", SYN))
    assert bytes(stream.received) == b"hi"
    assert stream.receive_window.remaining == WIN - 2


@case(15, "D[SYN] max")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    (stream,) = lab.feed(data(1, bytes(WIN), SYN))
    assert len(stream.received) == WIN
    assert lab.error is None


@case(16, "D[SYN] over")
def _(delivery: str) -> None:
    for accept_streams in (True, False):  # refused streams have no window to judge by
        lab = Lab(delivery, accept_streams=accept_streams)
        lab.feed(raw_header(0, 0, SYN, 1, WIN + 1))
        assert lab.error is not None
        assert lab.sent() == [G1]
        assert lab.session.buffered == 0
        assert lab.session.streams_open == 0


@case(17, "all-in-one")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    (stream,) = lab.feed(data(1, b"hi", SYN | FIN))
    assert lab.session.accept() is stream
    assert lab.read_all(stream) == b"hi"
    assert stream.read_eof
    assert stream.state is State.REMOTE_CLOSED


@case(18, "id 0 SYN")
def _(delivery: str) -> None:
    for frame in (window(0, SYN), data(0, b"x", SYN), data(0, b"x"), window(0, n=5), window(0, RST)):
        lab = Lab(delivery)
        lab.feed(frame)
        assert lab.sent() == [G1]


@case(19, "wrong parity")
def _(delivery: str) -> None:
    for role, stream_id in ((Role.SERVER, 2), (Role.CLIENT, 1)):
        lab = Lab(delivery, role)
        lab.feed(window(stream_id, SYN))
        assert lab.sent() == [G1]
        assert "both sides configured" in str(lab.error)


@case(20, "out-of-order SYN")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(window(9, SYN), window(3, SYN))
    accepted = [lab.session.accept(), lab.session.accept()]
    assert [stream.stream_id for stream in accepted if stream] == [9, 3]


@case(21, "duplicate SYN")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(window(1, SYN), window(1, SYN))
    assert lab.sent() == [G1]


@case(22, "id reuse")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    stream = lab.open_inbound()
    lab.feed(window(1, FIN))
    lab.session.half_close(stream)
    lab.sent()
    assert stream.gone
    assert stream.fault is None
    (again,) = lab.feed(window(1, SYN))
    assert again is not stream
    assert lab.session.accept() is again


@case(23, "backlog")
def _(delivery: str) -> None:
    config = SessionConfig(max_inbound_streams=1000)
    lab = Lab(delivery, config=config)
    lab.feed(*(window(2 * n + 1, SYN) for n in range(257)))
    assert lab.sent() == [Frame(1, RST, 513, 0)]
    lab.feed(ping(1))
    assert lab.sent() == [Frame(2, ACK, 0, 1)]
    assert lab.session.incoming == 256


@case(24, "refused body")
def _(delivery: str) -> None:
    lab = Lab(delivery, accept_streams=False)
    lab.feed(data(1, b"abc", SYN), ping(5))
    assert lab.sent() == [Frame(2, ACK, 0, 5), Frame(1, RST, 1, 0)]
    assert lab.session.buffered == 0
    lab.feed(data(1, b"late"))  # within its residual window
    assert lab.session.counters.glitches == 0


@case(25, "accept order")
def _(delivery: str) -> None:
    lab = Lab(delivery)
    lab.feed(window(1, SYN), data(1, b"abc"), window(1, FIN))
    assert lab.sent() == []
    stream = lab.session.accept()
    assert stream is not None
    assert lab.sent() == [Frame(1, ACK, 1, 0)]
    assert lab.read_all(stream) == b"abc"
    assert stream.read_eof
    assert lab.session.accept() is None
    assert lab.sent() == []


# Acknowledgement


@case(26, "implied ACK by data")
def _(delivery: str) -> None:
    for frame in (data(1, b"x"), window(1, n=WIN), window(1, FIN), data(1, b"", FIN)):
        lab = Lab(delivery, Role.CLIENT)
        stream = lab.open_outbound(ack=False)
        assert lab.session.streams_unacked == 1
        lab.feed(frame)
        assert stream.acked
        assert lab.session.streams_unacked == 0
        lab.feed(window(1, ACK))  # the explicit one may still come
        assert lab.session.streams_unacked == 0
        assert lab.session.counters.glitches == 0


@case(27, "early half-close")
def _(delivery: str) -> None:
    lab = Lab(delivery, Role.CLIENT)
    stream = lab.open_outbound(ack=False)
    lab.session.half_close(stream)
    assert lab.sent() == [Frame(1, FIN, 1, 0)]
    assert lab.session.streams_unacked == 1
    lab.feed(data(1, b"answer"), window(1, FIN))
    assert lab.read_all(stream) == b"answer"
    assert stream.read_eof
    assert stream.gone
    assert stream.fault is None
    assert lab.session.streams_unacked == 0


@case(28, "duplicate ACK")
def _(delivery: str) -> None:
    lab = Lab(delivery, Role.CLIENT)
    lab.open_outbound(ack=False)
    lab.open_outbound(ack=False)
    lab.feed(window(1, ACK), window(1, ACK))
    assert lab.session.streams_unacked == 1
    assert lab.session.counters.glitches == 1


@case(29, "256 unacked")
def _(delivery: str) -> None:
    lab = Lab(delivery, Role.CLIENT)
    for _ in range(257):
        lab.session.open(lab.now)
    assert lab.sent() == [Frame(1, SYN, 2 * n + 1, 0) for n in range(256)]
    lab.feed(window(33, ACK))
    assert lab.sent() == [Frame(1, SYN, 513, 0)]


@case(30, "open timeout")
def _(delivery: str) -> None:
    lab = Lab(delivery, Role.CLIENT)
    stream = lab.open_outbound(ack=False)
    lab.tick(9.9)
    assert stream.fault is None
    lab.tick(0.2)
    assert lab.sent() == [Frame(2, SYN, 0, 0), Frame(1, RST, 1, 0)]
    assert stream.fault is Fault.OPEN_TIMEOUT
    assert lab.session.ending is None
    lab.feed(ping(3))
    assert lab.sent() == [Frame(2, ACK, 0, 3)]
