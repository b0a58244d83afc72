"""A call of the cloud's own to a box, through its tunnel: a scan of many devices, a deployment.

As a client's exchange it goes to the daemon that holds the box; here is no client: the body comes from an iterator, the
answer is kept in memory, bounded. A call that fails is not made again, unless its daemon had closed a kept connection.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

import orjson

from apps.tunnels.carriage import READ, Outbox
from apps.tunnels.client_request import AnswerReader, ExchangeError, Limits, RequestHead, head_bytes
from apps.tunnels.node_connections import NodeAway, NodeConnection, connections
from apps.tunnels.route import Route
from tunnel.contract import (
    ACCEPTED,
    DATA,
    END,
    ExchangeCall,
    ExchangeEnd,
    RecordError,
    begin_record,
    record_header,
)

ANSWER_MAX: Final = 1 << 20
"""Bytes of an answer's body that are kept; a box that says more is not understood."""
TICK: Final = 0.25
"""Seconds after which a wait looks whether the call was ended from outside."""
GRACE: Final = 5.0
"""The daemon keeps the times of progress; one that says nothing for so long beyond them is not there any more."""


class Control(Protocol):
    """Whoever may end a call from another thread."""

    @property
    def ended(self) -> str:
        """The error code for which the call must end now; empty: go on."""


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
    fields: tuple[tuple[bytes, bytes], ...]
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


class _Stale(Exception):
    """The daemon had closed the connection before the call."""


def call_box(route: Route, call: Call, *, control: Control, limits: Limits, secret: str) -> Reply:
    """Send a request to the box of `route` and read the whole answer.

    Blocks; `control` ends it within a quarter of a second. A box may answer before it has taken the whole body. Raises
    CallFailed.
    """
    if not route.session:
        raise CallFailed("TUNNEL_DISCONNECTED", "the device is between two daemons")
    node = None if call.length else connections.take(route.node_url)  # a body can be given once
    if node is not None:
        try:
            return _converse(node, route, call, control, limits)
        except _Stale:
            connections.drop(route.node_url)
    try:
        node = connections.connect(route.node_url, secret, request_id=call.request_id)
    except NodeAway as error:
        raise CallFailed("TUNNEL_UNAVAILABLE", str(error)) from error
    try:
        return _converse(node, route, call, control, limits)
    except _Stale as error:
        raise CallFailed("TUNNEL_UNAVAILABLE", "the daemon ended the call") from error


def _converse(node: NodeConnection, route: Route, call: Call, control: Control, limits: Limits) -> Reply:
    conversation = _Conversation(node, call, control, limits)
    try:
        reply = conversation.run(orjson.dumps(_granted(route, call, limits)))
    except BaseException:
        node.close()
        raise
    if conversation.clean:
        connections.give(node)
    else:
        node.close()
    return reply


def _granted(route: Route, call: Call, limits: Limits) -> ExchangeCall:
    """Without a user: it is the cloud's own, and nobody asks anew who may."""
    return ExchangeCall(
        device_id=route.device_id,
        epoch=route.epoch,
        session=route.session,
        node_url=route.node_url,
        moving=route.moving,
        user_id="",
        login="",
        body_max=max(limits.request_body, call.length),
        peer="127.0.0.1",
        address="127.0.0.1",
        scheme="http",
        trusted=False,
        mount="",
        home="",
        upgrade=False,
        request_id=call.request_id,
        traceparent="",
        fields=[],
        names_device=False,
    )


class _Conversation:
    """One exchange on one connection."""

    def __init__(self, node: NodeConnection, call: Call, control: Control, limits: Limits) -> None:
        self._node = node
        self._call = call
        self._control = control
        self._patience = max(limits.head_seconds, limits.idle_seconds) + GRACE
        self._left = call.length
        self._given = 0
        self._body: Iterator[bytes] = iter(call.body)
        self._outbox = Outbox()
        self._reader = AnswerReader(call.method.encode("ascii"))
        self._answer = bytearray()
        self._heard = False
        self._deaf = False
        self._end: ExchangeEnd | None = None

    @property
    def clean(self) -> bool:
        """Whether the connection may carry another call."""
        return self._end is not None and not self._outbox.size

    def run(self, granted: bytes) -> Reply:
        self._outbox.put(begin_record(granted, self._head()))
        self._node.uses += 1
        poll = select.poll()
        moved = time.monotonic()
        while self._end is None:
            self._refill()
            poll.register(self._node.sock, select.POLLIN | (select.POLLOUT if self._outbox.size else 0))
            happened = poll.poll(TICK * 1000)
            if self._control.ended:
                raise CallFailed(self._control.ended, "ended from outside")
            if not happened:
                if time.monotonic() - moved > self._patience:
                    raise CallFailed("TUNNEL_TIMEOUT", "the daemon says nothing any more")
                continue
            moved = time.monotonic()
            if happened[0][1] & select.POLLOUT:
                self._flush()
            if happened[0][1] & ~select.POLLOUT:
                self._read()
        return self._reply(self._end)

    def _head(self) -> bytes:
        call = self._call
        fields = [(b"Host", b"localhost")]
        fields += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in call.fields]
        if call.length or call.method not in ("GET", "HEAD"):
            fields.append((b"Content-Length", b"%d" % call.length))
        return head_bytes(RequestHead(call.method.encode("ascii"), call.path.encode("ascii"), fields, http11=True))

    def _refill(self) -> None:
        """Take more pieces of the body from its iterator while little is queued to be sent."""
        while self._left and self._outbox.size < READ and not self._deaf:
            piece = next(self._body, b"")
            if not piece or len(piece) > self._left:
                raise CallFailed("INTERNAL_ERROR", f"the body is not as long as was told: {self._left} bytes are left")
            self._left -= len(piece)
            self._given += len(piece)
            self._outbox.put(record_header(DATA, len(piece)))
            self._outbox.put(piece)

    def _flush(self) -> None:
        try:
            self._outbox.flush(self._node.sock)
        except OSError:  # it may have said why before it ended
            self._deaf = True
            self._outbox.clear()
            return
        if self._call.sent is not None:
            self._call.sent(max(0, self._given - self._outbox.size))

    def _read(self) -> None:
        try:
            data = self._node.sock.recv(READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            if not self._heard and self._node.uses > 1:
                raise _Stale
            raise CallFailed("TUNNEL_UNAVAILABLE", "the daemon ended the call")
        try:
            for kind, payload in self._node.reader.feed(data):
                self._told(kind, payload)
        except RecordError as error:
            raise CallFailed("TUNNEL_UNAVAILABLE", f"the daemon: {error}") from error

    def _told(self, kind: int, payload: bytes) -> None:
        self._heard = True
        if kind == END:
            self._end = orjson.loads(payload)
        elif kind == DATA:
            try:
                for piece in self._reader.receive(payload):
                    self._answer += piece
            except ExchangeError as error:
                raise CallFailed(error.code, str(error)) from error
            if len(self._answer) > ANSWER_MAX:
                raise CallFailed("AGENT_BAD_RESPONSE", "an answer of more than is kept")
        elif kind != ACCEPTED:
            raise CallFailed("TUNNEL_UNAVAILABLE", f"an unexpected record: {kind}")

    def _reply(self, end: ExchangeEnd) -> Reply:
        head = self._reader.head
        if end["outcome"] != "ok" or head is None or not self._reader.complete:
            raise CallFailed(end["code"] or "AGENT_BAD_RESPONSE", end["problem"] or "no whole answer")
        return Reply(head.status, tuple(head.fields), bytes(self._answer))
