"""A session on the bench: frames in, delivered in one of three ways, frames out, decoded.

`whole`: each feed in one piece. `bytes`: byte by byte (`cut`). `tail`: with the beginning of a ping behind it, whose
rest comes in front of the next feed; its pong is taken out again, so that a case reads the same in all three.
"""

from struct import Struct
from typing import Final, NamedTuple

from tunnel.protocol.core import Role
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream

# Written down anew, not imported: a test must not share the numbers that it checks.
SYN, ACK, FIN, RST = 1, 2, 4, 8
WIN: Final = 262_144
DELIVERIES: Final = ("whole", "bytes", "tail")

_HEADER = Struct(">BBHII")
_TAIL_VALUE = 0xBEEFCAFE
_TAIL = _HEADER.pack(0, 2, SYN, 0, _TAIL_VALUE)
_TAIL_PONG = (2, ACK, 0, _TAIL_VALUE, b"")


class Frame(NamedTuple):
    kind: int
    flags: int
    stream_id: int
    length: int
    body: bytes = b""


def data(stream_id: int, body: bytes = b"", flags: int = 0) -> bytes:
    return _HEADER.pack(0, 0, flags, stream_id, len(body)) + body


def window(stream_id: int, flags: int = 0, n: int = 0) -> bytes:
    return _HEADER.pack(0, 1, flags, stream_id, n)


def ping(value: int, flags: int = SYN, stream_id: int = 0) -> bytes:
    return _HEADER.pack(0, 2, flags, stream_id, value)


def goaway(code: int, stream_id: int = 0) -> bytes:
    return _HEADER.pack(0, 3, 0, stream_id, code)


def raw_header(version: int, kind: int, flags: int, stream_id: int, length: int) -> bytes:
    return _HEADER.pack(version, kind, flags, stream_id, length)


def decode(wire: bytes) -> list[Frame]:
    """Whole frames only: the session never leaves half a one."""
    frames, pos = [], 0
    while pos < len(wire):
        version, kind, flags, stream_id, length = _HEADER.unpack_from(wire, pos)
        assert version == 0
        pos += 12
        size = length if kind == 0 else 0
        frames.append(Frame(kind, flags, stream_id, length, bytes(wire[pos : pos + size])))
        pos += size
    assert pos == len(wire)
    return frames


def cut(wire: bytes) -> list[bytes]:
    """Byte by byte; of much, the middle in pieces of an odd size, which shows as much in less time."""
    if len(wire) <= 16_384:
        return [wire[n : n + 1] for n in range(len(wire))]
    middle = wire[4096:-4096]
    return [*cut(wire[:4096]), *(middle[n : n + 997] for n in range(0, len(middle), 997)), *cut(wire[-4096:])]


G1: Final = Frame(3, 0, 0, 1)


class Lab:
    def __init__(
        self,
        delivery: str = "whole",
        role: Role = Role.SERVER,
        config: SessionConfig | None = None,
        *,
        accept_streams: bool = True,
    ) -> None:
        self.delivery = delivery
        self.now = 1000.0
        self.session = Session(role, config or SessionConfig(), now=self.now, accept_streams=accept_streams)
        self.error: RemoteProtocolError | None = None
        self._carry = b""

    # In

    def feed(self, *frames: bytes) -> list[MuxStream]:
        """Deliver; the streams touched, in order. A protocol error of the peer is kept in `error`."""
        wire = self._carry + b"".join(frames)
        self._carry = b""
        if self.delivery == "tail":
            wire += _TAIL[:7]
            self._carry = _TAIL[7:]
        touched: dict[int, MuxStream] = {}
        for piece in cut(wire) if self.delivery == "bytes" else (wire,):
            try:
                news = self.session.receive_data(piece, self.now)
            except RemoteProtocolError as error:
                self.error = error
                news = self.session.take_touched()
            for stream in news:
                assert stream.touched
                stream.touched = False
                touched[id(stream)] = stream
        return list(touched.values())

    def tick(self, seconds: float) -> None:
        """Time passes, and the watchdog looks."""
        self.now += seconds
        for stream in self.session.tick(self.now):
            stream.touched = False

    # Out

    def raw(self, max_bytes: int = 65536) -> bytes:
        """One batch."""
        batch = self.session.data_to_send(max_bytes, self.now)
        assert len(batch) <= max_bytes
        for stream in self.session.take_touched():
            stream.touched = False
        return bytes(batch)

    def sent(self) -> list[Frame]:
        """All that the session has to say now."""
        frames: list[Frame] = []
        while batch := self.raw():
            frames += decode(batch)
        assert not self.session.wants_to_send
        return [frame for frame in frames if frame != _TAIL_PONG]

    # Streams

    def open_inbound(self, stream_id: int = 1) -> MuxStream:
        """A stream that the peer opened and we accepted, with what that put on the wire thrown away."""
        self.feed(window(stream_id, SYN))
        stream = self.session.accept()
        assert stream is not None
        assert stream.stream_id == stream_id
        self.sent()
        return stream

    def open_outbound(self, *, ack: bool = True) -> MuxStream:
        """A stream that we opened, acknowledged if `ack`."""
        stream = self.session.open(self.now)
        self.sent()
        if ack:
            self.feed(window(stream.stream_id, ACK))
        return stream

    def send(self, stream: MuxStream, body: bytes) -> list[Frame]:
        """Send all of `body`, batch by batch; the frames. Stops when the window is used up."""
        frames: list[Frame] = []
        left = memoryview(body)
        while True:
            taken = self.session.send(stream, left) if left else 0
            left = left[taken:]
            out = self.sent()
            frames += out
            if not taken and not out:
                return frames

    def read_all(self, stream: MuxStream) -> bytes:
        return self.session.read(stream)
