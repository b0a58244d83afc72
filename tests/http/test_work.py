"""The work that remote bytes cost, counted in steps and never in seconds: linear, and little, whatever the bytes are.

Each parser of bytes that somebody else chose is fed the worst that we know for it: eight megabytes, or as much of it as
makes half a million steps. A step is a call, of Python or of C; a method of bytes costs as many as it may have to look
through, and what is joined or cut, as many as are copied. A loop that does neither can do no work that counts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final, Self

import pytest
import trio

from cloud.server.head import HeadGate
from tests.protocol.lab import Lab, data, window
from tunnel.agent.addresses import Endpoint, Proxy
from tunnel.agent.dial import DialError, connect_through
from tunnel.http import ExchangeError, ProxyError, RequestParser, ResponseReader
from tunnel.http.body import ChunkedReader, FramingError
from tunnel.http.fanout import Fanout
from tunnel.http.parts import Cutter, EventCutter, PartCutter
from tunnel.mux.transport import TransportProtocolError
from tunnel.protocol.errors import RemoteProtocolError
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.handshake import HandshakeError, HandshakeRefused, client_transport

MIB: Final = 1 << 20
WORD: Final = 1024  # bytes that are looked through or copied at the price of a call

Feed = Callable[[bytes], object]


class Counter:
    """Counts steps while it is entered."""

    def __init__(self, *, looked_through: bool = True) -> None:
        self.steps = 0
        self.bytes = 0
        self._looked_through = looked_through

    def __enter__(self) -> Self:
        sys.setprofile(self._saw)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _saw(self, _frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self.steps += 1
        elif event == "c_call":
            self.steps += 1
            owner = getattr(arg, "__self__", None)
            if self._looked_through and isinstance(owner, (bytes, bytearray)):
                self.bytes += len(owner)

    @property
    def work(self) -> int:
        return self.steps + self.bytes // WORD


class Counted(bytes):
    """Bytes that tell how many of them are copied, and stay so where they are cut or joined."""

    counter: Counter

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(found, int):
            return found
        self.counter.bytes += len(found)
        return counted(found, self.counter)

    def __add__(self, other: Any) -> Counted:
        self.counter.bytes += len(self) + len(other)
        return counted(bytes(self) + bytes(other), self.counter)

    def __radd__(self, other: Any) -> Any:
        if isinstance(other, bytearray):
            return NotImplemented  # it grows in place
        self.counter.bytes += len(self) + len(other)
        return counted(bytes(other) + bytes(self), self.counter)


def counted(content: bytes, counter: Counter) -> Counted:
    made = Counted(content)
    made.counter = counter
    return made


class Renewed:
    """A parser that is made anew where it refused what it was fed, as another connection would."""

    def __init__(self, make: Callable[[], Any], *refusals: type[Exception]) -> None:
        self.make = make
        self.refusals = refusals
        self.parser = make()

    def __call__(self, content: bytes) -> None:
        try:
            if self.parser.feed(content) is True:
                self.parser = self.make()
        except self.refusals:
            self.parser = self.make()


def heads() -> Feed:
    return Renewed(RequestParser, ProxyError)


def gate() -> Feed:
    return Renewed(HeadGate)


class Answer:
    def __init__(self) -> None:
        self.reader = ResponseReader(b"GET")

    def feed(self, content: bytes) -> None:
        self.reader.receive(content)


def answers() -> Feed:
    return Renewed(Answer, ExchangeError)


def chunks() -> Feed:
    return Renewed(lambda: ChunkedReader(1024, 16384), FramingError)


def shared(cutter: Callable[[], Cutter]) -> Callable[[], Feed]:
    """A shared answer with a viewer who keeps up, one who is late, and one who takes nothing."""

    def make() -> Feed:
        fanout, cut = Fanout(), cutter()
        quick, late, _stalled = (fanout.add() for _ in range(3))

        def feed(content: bytes) -> None:
            seams = cut.feed(content)
            fanout.feed(content, seams, cut.whole)
            if cut.doubt and fanout.shared:
                fanout.share_no_more()
            while quick.take():
                pass
            late.take()
            assert fanout.held < 40 * MIB

        return feed

    return make


def wire() -> Feed:
    class Side:
        def __init__(self) -> None:
            self.side = WebSocketCodec(client=False, clock=lambda: 0.0)

        def feed(self, content: bytes) -> None:
            self.side.receive(content)

    return Renewed(Side, TransportProtocolError)


def yamux() -> Feed:
    """With one stream that its application reads."""

    class Side:
        def __init__(self) -> None:
            self.lab = Lab("whole")
            self.stream = self.lab.open_inbound()

        def feed(self, content: bytes) -> None:
            self.lab.session.receive_data(content, 0.0)
            self.lab.session.read(self.stream)
            self.lab.session.data_to_send(65536, 0.0)

    return Renewed(Side, RemoteProtocolError)


def frame(payload: bytes = b"", opcode: int = 2, *, fin: bool = True) -> bytes:
    return bytes((opcode | (0x80 if fin else 0), 0x80 | len(payload))) + bytes(4) + payload


START = b"HTTP/1.1 200 OK\r\n"
PART = b"--b\r\n\r\n"

WORST: dict[str, tuple[Callable[[], Feed], bytes, bytes]] = {
    # name: parser, what comes first, what comes again and again
    "parts: dashes": (shared(lambda: PartCutter(b"-")), b"---\r\n\r\n", b"-" * MIB),
    "parts: lines of dashes": (shared(lambda: PartCutter(b"-" * 70)), b"-" * 72 + b"\r\n\r\n", b"-" * 71 + b"\n"),
    "parts: nearly a delimiter": (shared(lambda: PartCutter(b"b")), PART, b"\n--bx" + bytes(60)),
    "parts: line breaks": (shared(lambda: PartCutter(b"b")), PART, b"\r\n"),
    "parts: small": (shared(lambda: PartCutter(b"b")), b"", b"--b\r\nContent-Length: 32\r\n\r\n" + bytes(32) + b"\r\n"),
    "parts: tiny": (shared(lambda: PartCutter(b"b")), b"", b"--b\n\n\n"),
    "parts: large heads": (shared(lambda: PartCutter(b"b")), b"", b"--b\r\n" + b"X:\n" * 5000 + b"\r\n\r\n"),
    "parts: lengths": (
        shared(lambda: PartCutter(b"b")),
        b"",
        b"--b\r\n" + b"Content-Length: 1\r\n" * 500 + b"\r\nx\r\n",
    ),
    "parts: nearly lengths": (
        shared(lambda: PartCutter(b"b")),
        b"",
        b"--b\r\nContent-Length" + b" " * 15000 + b"x\r\n\r\n\r\n",
    ),
    "parts: behind the end": (shared(lambda: PartCutter(b"b")), PART + b"\r\n--b--\r\n", bytes(MIB)),
    "events: tiny": (shared(EventCutter), b"", b":\n\n"),
    "events: line breaks": (shared(EventCutter), b"", b"\r"),
    "events: without end": (shared(EventCutter), b"", b"data: x\n"),
    "request: empty lines": (heads, b"", b"\r\n"),
    "request: fields": (heads, b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
    "request: a line": (heads, b"GET /", b"x"),
    "request: many": (heads, b"", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "gunicorn: empty lines": (gate, b"", b"\r\n"),
    "gunicorn: fields": (gate, b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
    "gunicorn: a line": (gate, b"GET /", b"x"),
    "answer: fields": (answers, START, b"a: b\r\n"),
    "answer: interim": (answers, b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "answer: long interim": (answers, b"", b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 30_000 + b"\r\n\r\n"),
    "chunks: tiny": (chunks, b"", b"1\r\nx\r\n"),
    "chunks: long sizes": (chunks, b"", b"1;" + b"x" * 1000 + b"\r\nx\r\n"),
    "chunks: trailers": (chunks, b"0\r\n", b"a: b\r\n"),
    "WebSocket: bytes": (wire, b"", frame(b"x")),
    "WebSocket: fragments": (wire, frame(b"x", fin=False), frame(b"x", 0, fin=False)),
    "WebSocket: pings": (wire, b"", frame(opcode=9)),
    "WebSocket: empty": (wire, b"", frame()),
    "WebSocket: empty ends": (wire, b"", frame(b"x", fin=False) + frame(opcode=0)),
    "yamux: bytes": (yamux, b"", data(1, b"x")),
    "yamux: credits": (yamux, b"", window(1, n=1)),
    "yamux: nothing": (yamux, b"", window(1)),
    "yamux: unknown": (yamux, b"", data(99, b"x")),
}


def pieces(first: bytes, again: bytes, total: int, size: int) -> Iterator[bytes]:
    stream = first + again * ((total - len(first)) // len(again) + 1)
    for at in range(0, total, size):
        yield stream[at : min(at + size, total)]


def work(name: str, total: int, size: int, *, looked_through: bool = True) -> int:
    make, first, again = WORST[name]
    feed = make()
    counter = Counter(looked_through=looked_through)
    fed = [counted(piece, counter) for piece in pieces(first, again, total, size)]
    with counter:
        for piece in fed:
            feed(piece)
    return counter.work


@pytest.mark.parametrize("name", WORST)
def test_the_worst_costs_as_much_a_byte_as_the_first_of_it(name: str) -> None:
    """Eight megabytes in pieces as they come from a socket, or half a million steps of it; few steps a byte."""
    first = work(name, MIB >> 3, 1 << 14)
    times = min(64, max(4, 500_000 // first))
    whole = work(name, times * (MIB >> 3), 1 << 14)
    assert whole <= 1.1 * times * first + 2000
    assert whole <= 10 * times * (MIB >> 3)


@pytest.mark.parametrize("name", WORST)
def test_a_piece_four_times_as_large_costs_four_times_as_much(name: str) -> None:
    """Nothing is copied for each unit in it."""
    one, four = (work(name, size, size, looked_through=False) for size in (1 << 14, 1 << 16))
    assert four <= 4 * one * 1.3 + 500


@pytest.mark.parametrize("name", WORST)
def test_drop_by_drop_a_byte_costs_the_same_whatever_came_before(name: str) -> None:
    one, four = (work(name, size, 1, looked_through=False) for size in (1 << 12, 1 << 14))
    assert four <= 4 * one * 1.3 + 500


class Drip(trio.abc.Stream):
    """A peer that sends the same for ever, in pieces of one size."""

    def __init__(self, first: bytes, again: bytes, size: int, counter: Counter) -> None:
        self.left = (first + again * (MIB // len(again)))[:MIB]
        self.size = size
        self.counter = counter
        self.given = 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        size = min(self.size, max_bytes or self.size)
        piece = self.left[self.given : self.given + size]
        self.given += len(piece)
        return counted(piece, self.counter)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        pass

    async def wait_send_all_might_not_block(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 401 No\r\n\r\n"])
@pytest.mark.parametrize("size", [1, 1000])
async def test_what_answers_an_agents_dial_is_read_once(first: bytes, size: int) -> None:
    """A server's head and the body of its refusal, and a proxy's head: as much as their bounds say, each byte once."""
    counter = Counter(looked_through=False)
    stream = Drip(first, b"a: b\r\n", size, counter)
    with counter, pytest.raises((HandshakeError, HandshakeRefused)):
        await client_transport(stream, "host", "/", [])
    assert stream.given <= 130 * 1024
    assert counter.work < 100 * stream.given + 20_000
    counter = Counter(looked_through=False)
    stream = Drip(first, b"a: b\r\n", size, counter)
    with counter, pytest.raises(DialError):
        await connect_through(
            stream, Endpoint("a", 1, tls=False, path="/"), Proxy("b", 2, tls=False, authorization=None)
        )
    assert stream.given <= 17 * 1024
    assert counter.work < 100 * stream.given
