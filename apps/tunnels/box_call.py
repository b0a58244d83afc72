"""A call of the cloud's own to a box, through its tunnel: a scan of many devices, a deployment.

Where `forwarder` joins a client's socket to a stream, here is no client: the body comes from an iterator, the answer is
kept in memory, bounded. What the exchange is stays with `tunnel.http`, how a stream opens with `forwarder_stream`.
Always a new stream: such a call is rare, and one that waits is none to be repeated.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from apps.tunnels.forwarder_relay import HIGH_WATER, READ_LARGE, Outbox
from apps.tunnels.forwarder_stream import BoxStream, ClientLeft, Control, Ended, OpenFailed, Route, Watch, open_stream
from tunnel.http import Exchange, ExchangeError, Field, Limits, ProxyError, RequestHead, Via

ANSWER_MAX: Final = 1 << 20
"""Bytes of an answer's body that are kept; a box that says more is not understood."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the box is asked. `path` is the raw target; `body` gives exactly `length` bytes, lazily."""

    method: str
    path: str
    request_id: str
    fields: tuple[tuple[str, str], ...] = ()
    body: Iterable[bytes] = ()
    length: int = 0
    sent: Callable[[int], None] | None = None
    """Called after each write with the number of body bytes that have left this process."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The box's whole answer."""

    status: int
    fields: tuple[Field, ...]
    body: bytes

    def value(self, name: str) -> str:
        """The first value of a field, empty if there is none."""
        wanted = name.lower().encode("latin-1")
        return next((value.decode("latin-1") for key, value in self.fields if key.lower() == wanted), "")


class CallFailed(Exception):
    """No whole answer. `code` is the public API's error code, or what the Control ended it with; `str` for the log."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code


class Until:
    """A Control that ends a call with TUNNEL_TIMEOUT at a given time (monotonic seconds)."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    @property
    def ended(self) -> str:
        return "TUNNEL_TIMEOUT" if time.monotonic() > self._deadline else ""


def call_box(route: Route, call: Call, *, control: Control, limits: Limits, secret: str) -> Reply:
    """Send a request over a new stream and read the whole answer.

    Blocks; `control` ends it within a quarter of a second, `limits` bound each wait for progress. A box may answer
    before it has taken the whole body. Raises CallFailed.
    """
    fields = [
        (b"Host", b"localhost"),
        *((name.encode("latin-1"), value.encode("latin-1")) for name, value in call.fields),
    ]
    if call.length or call.method not in ("GET", "HEAD"):
        fields.append((b"Content-Length", str(call.length).encode("ascii")))
    watch = Watch(None, control)
    try:
        head = RequestHead.unchecked(call.method.encode("ascii"), call.path.encode("ascii"), fields, http11=True)
        via = Via(scheme="http", address="127.0.0.1", request_id=call.request_id, close=True)
        exchange = Exchange(head, via, limits)
        stream = open_stream(route, watch, secret=secret, request_id=call.request_id, open_seconds=limits.open_seconds)
    except (OpenFailed, ExchangeError, Ended) as error:
        raise CallFailed(error.code, str(error)) from error
    whole = False
    try:
        reply = _Conversation(exchange, stream, watch, limits, call).run()
        whole = exchange.request_done
        return reply
    except (ExchangeError, Ended) as error:
        raise CallFailed(error.code, str(error)) from error
    except ClientLeft as error:  # pragma: no cover - there is no client to leave
        raise CallFailed("INTERNAL_ERROR", "no client") from error
    finally:
        watch.set_box(None)
        if whole:
            stream.close()
        else:
            stream.reset()


class _Conversation:
    """One exchange on one stream."""

    def __init__(self, exchange: Exchange, stream: BoxStream, watch: Watch, limits: Limits, call: Call) -> None:
        self._exchange = exchange
        self._stream = stream
        self._watch = watch
        self._limits = limits
        self._sent = call.sent
        self._left = call.length
        self._given = 0
        self._body: Iterator[bytes] = iter(call.body)
        self._outbox = Outbox()
        self._answer = bytearray()
        self._deaf = False

    def run(self) -> Reply:
        exchange = self._exchange
        self._watch.set_box(self._stream.sock)
        self._outbox.put(exchange.start())
        if self._stream.early:
            self._take(self._stream.early)
        moved = time.monotonic()
        while not exchange.complete:
            self._refill()
            events = select.POLLIN | (select.POLLOUT if self._outbox.size else 0)
            happened, _ = self._watch.wait(events, 0, moved + self._patience)
            if not happened:
                raise exchange.failure("TUNNEL_TIMEOUT", "no byte within the limit")
            moved = time.monotonic()
            if happened & select.POLLOUT:
                self._flush()
            if happened & (select.POLLIN | select.POLLHUP | select.POLLERR):
                self._read()
        answer = exchange.answer
        if answer is None:
            raise exchange.failure("AGENT_BAD_RESPONSE", "no head")
        return Reply(answer.status, tuple(answer.fields), bytes(self._answer))

    @property
    def _patience(self) -> float:
        return self._limits.head_seconds if self._exchange.answer is None else self._limits.idle_seconds

    def _refill(self) -> None:
        """Take more pieces of the body from its iterator while little is queued to be sent."""
        while self._left and self._outbox.size < HIGH_WATER and not self._deaf:
            piece = next(self._body, b"")
            if not piece or len(piece) > self._left:
                raise CallFailed("INTERNAL_ERROR", f"the body is not as long as was told: {self._left} bytes are left")
            self._left -= len(piece)
            self._given += len(piece)
            self._outbox.put(*self._exchange.send_body(piece))

    def _flush(self) -> None:
        try:
            self._outbox.flush(self._stream.sock)
        except OSError:  # it may have answered before it closed, so what it said is still read
            self._deaf = True
            self._outbox.clear()
            return
        if self._sent is not None:
            self._sent(max(0, self._given - self._outbox.size))

    def _read(self) -> None:
        try:
            data = self._stream.sock.recv(READ_LARGE)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise self._exchange.reset_by_box() from error
        if not data:
            if self._deaf:
                raise self._exchange.reset_by_box()
            self._exchange.receive_end()
            return
        self._take(data)

    def _take(self, data: bytes) -> None:
        for piece in self._exchange.receive(data):
            self._answer += piece
        if len(self._answer) > ANSWER_MAX:
            raise ProxyError("AGENT_BAD_RESPONSE", "an answer of more than is kept")
