"""The request side: a client's head in, the head for the box out.

It does not know the answer, sockets or clocks. `RequestParser` reads a client's raw head (fast lane); the DRF view
has one read by gunicorn and gives it through `RequestHead.unchecked`. From there on both go through `prepare`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

import httptools

from tunnel.http.body import BodyReader, ChunkedReader, LengthReader
from tunnel.http.errors import ProxyError, bad_request
from tunnel.http.fields import (
    CONNECTION,
    CONTENT_LENGTH,
    DROP,
    EXPECT,
    FORWARDED,
    HOST,
    NOT_NOMINABLE,
    PASS,
    REQUEST_RULES,
    TRANSFER_ENCODING,
    UPGRADE,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
    Field,
    HeadSink,
    list_members,
    match_token,
    match_value,
    without,
)
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.target import OwnParams, box_path, split_query, split_target

CHUNKED: Final = -1
"""`body_length` of a body that is sent in chunks."""

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""

METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND"
    b" UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK"
    b" QUERY".split()
)
"""What llhttp knows, less CONNECT: the same on both lanes. Others get 405."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_VERSIONS: Final = {b"HTTP/1.1": True, b"HTTP/1.0": False}


class RequestHead(NamedTuple):
    """A client's request head as it came: raw bytes, repeated fields in their order."""

    method: bytes
    target: bytes
    fields: list[Field]
    http11: bool

    @classmethod
    def unchecked(cls, method: bytes, target: bytes, fields: list[Field], *, http11: bool) -> RequestHead:
        """A head that another parser read (gunicorn's): every name and value is checked once more.

        Raises ProxyError 400, or 431 over the default limits.
        """
        if len(fields) > LIMITS.head_fields:
            raise ProxyError("HEADERS_TOO_LARGE", f"{len(fields)} fields")
        for name, value in fields:
            if match_token(name) is None or match_value(value) is None:
                raise bad_request("a field with a forbidden byte")
        return cls(method, target, fields, http11)


class RequestParser:
    """Reads one client head from a stream of bytes. Make a new one for each request; feed it `rest` of the last."""

    __slots__ = ("_buffer", "_limits", "head", "rest")

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._buffer = b""
        self.head: RequestHead | None = None
        self.rest: bytes = b""
        """What came after the head: the beginning of the body, or of the next request."""

    @property
    def started(self) -> bool:
        """Whether a byte of the request came (an idle connection may be closed without an answer)."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> RequestHead | None:
        """The head once it is whole, else None. Raises ProxyError 400, 405, 414 or 431."""
        buffer = self._buffer + data if self._buffer else data
        while buffer[:1] == b"\r" and b"\r\n".startswith(buffer[:2]):  # empty lines before a request, RFC 9112 §2.2
            if len(buffer) < 2:
                break
            buffer = buffer[2:]
        end = buffer.find(b"\r\n\r\n", 0, self._limits.head_bytes)
        if end < 0:
            self._buffer = buffer
            self._check_part(buffer)
            return None
        self.rest = buffer[end + 4 :]
        self._buffer = b""
        self.head = self._parse(buffer[: end + 4])
        return self.head

    def _check_part(self, buffer: bytes) -> None:
        """Refuse early what can no longer become a head: more than the limit, a bare LF."""
        newline = buffer.find(b"\n")
        if newline == 0 or (newline > 0 and (buffer[newline - 1] != 13 or b"\n\n" in buffer)):
            raise bad_request("a bare LF in the head")
        if newline < 0 and len(buffer) > self._limits.target_bytes + 64:
            raise ProxyError("URI_TOO_LONG", "a request line without an end")
        if len(buffer) >= self._limits.head_bytes:
            raise ProxyError("HEADERS_TOO_LARGE", "a head over the limit")

    def _parse(self, raw: bytes) -> RequestHead:
        line = raw[: raw.index(b"\r\n")]
        method, _, rest = line.partition(b" ")
        target, _, version = rest.rpartition(b" ")
        if version not in _VERSIONS:
            raise bad_request("not an HTTP/1 request line")
        if len(target) > self._limits.target_bytes:
            raise ProxyError("URI_TOO_LONG", f"a target of {len(target)} bytes")
        if method not in METHODS:
            if match_token(method) is None:
                raise bad_request("no method")
            raise ProxyError("METHOD_NOT_ALLOWED", "an unknown method")
        sink = HeadSink()
        parser = httptools.HttpRequestParser(sink)
        try:
            parser.feed_data(raw)
        except httptools.HttpParserUpgrade:
            pass  # a request for an upgrade; what follows the head is not in `raw`
        except httptools.HttpParserError as error:
            raise bad_request(f"head: {error}") from error
        if not sink.complete or sink.url != target:
            raise bad_request("not one whole head")
        if len(sink.fields) > self._limits.head_fields:
            raise ProxyError("HEADERS_TOO_LARGE", f"{len(sink.fields)} fields")
        return RequestHead(method, target, sink.fields, _VERSIONS[version])


@dataclass(frozen=True, slots=True)
class Via:
    """What the lane knows about a request besides its head. Text is ASCII without control bytes."""

    scheme: str
    """`http` or `https`, as the client of our edge used it."""
    address: str
    """IP address of whoever opened the connection to us; added at the end of X-Forwarded-For."""
    request_id: str
    traceparent: str | None = None
    trusted: bool = False
    """Whether that address is a trusted proxy, whose `X-Forwarded-*` and `Forwarded` are kept."""
    mount: bytes = b""
    """Raw prefix that the box does not see (`/d/<id>`, `/api/devices/<id>/proxy`); empty: path for path."""
    upgrade: bool = False
    """The lane can carry an upgraded connection: `Connection: upgrade` is passed on instead of dropped."""
    close: bool = False
    """Ask the box to close after the answer, because the stream will not be used again."""


class ProxyRequest(NamedTuple):
    """A request ready for the box."""

    head: bytes
    """The whole head, to be sent as it is."""
    method: bytes
    body_length: int
    """Bytes of body to come from the client, 0 for none, `CHUNKED` where only its end tells."""
    own: OwnParams
    expects_continue: bool
    """The client waits for `100 Continue` before it sends its body: we answer it, the box never sees it."""
    upgrade: bytes
    """The protocol asked for, lower-cased (`websocket`); empty without an upgrade."""
    client_http11: bool
    client_keep_alive: bool
    idempotent: bool

    def body_reader(self, limits: Limits = LIMITS) -> BodyReader:
        """A reader for the client's raw body bytes (a lane whose server has not taken chunks apart already)."""
        if self.body_length == CHUNKED:
            return ChunkedReader(limits.chunk_line, limits.trailer_bytes)
        return LengthReader(self.body_length)


class _Draft:
    """What one pass over the fields finds."""

    __slots__ = ("coding", "connection", "expect", "forwarded", "host", "length", "proto", "shown_host", "upgrade")

    def __init__(self) -> None:
        self.host: bytes | None = None
        self.length: bytes | None = None
        self.coding: bytes | None = None
        self.expect: bytes | None = None
        self.upgrade: list[bytes] = []
        self.connection: list[bytes] = []
        self.forwarded: list[bytes] = []
        self.proto: bytes | None = None
        self.shown_host: bytes | None = None

    def take(self, rule: int, value: bytes, *, trusted: bool) -> bool:
        """Note a field with a meaning; whether it also passes on as it is."""
        if rule == HOST:
            if self.host is not None:
                raise bad_request("two Host fields")
            self.host = value.rstrip(b" \t")
        elif rule == CONNECTION:
            self.connection.append(value)
        elif rule == CONTENT_LENGTH:
            if self.length is not None:
                raise bad_request("two Content-Length fields")
            self.length = value.rstrip(b" \t")
        elif rule == TRANSFER_ENCODING:
            if self.coding is not None:
                raise bad_request("two Transfer-Encoding fields")
            self.coding = value.rstrip(b" \t").lower()
        elif rule == UPGRADE:
            self.upgrade.append(value)
        elif rule == EXPECT:
            self.expect = value.rstrip(b" \t").lower()
        elif trusted:
            return self._take_forwarded(rule, value)
        return False

    def _take_forwarded(self, rule: int, value: bytes) -> bool:
        if rule == X_FORWARDED_FOR:
            self.forwarded.append(value)
        elif rule == X_FORWARDED_PROTO:
            self.proto = value
        elif rule == X_FORWARDED_HOST:
            self.shown_host = value
        return rule == FORWARDED

    def body_length(self, *, http11: bool, limit: int) -> int:
        """Bytes of body or CHUNKED. Raises 400 for any doubt about where it ends (RFC 9112 §6), 413 over `limit`."""
        if self.coding is not None:
            if self.length is not None:
                raise bad_request("both Content-Length and Transfer-Encoding")
            if self.coding != b"chunked" or not http11:
                raise bad_request("an unknown transfer coding")
            return CHUNKED
        if self.length is None:
            return 0
        if _DIGITS.match(self.length) is None:
            raise bad_request("a bad Content-Length")
        length = int(self.length)
        if length > limit:
            raise ProxyError("PAYLOAD_TOO_LARGE", f"a body of {length} bytes")
        return length


def prepare(request: RequestHead, via: Via, limits: Limits = LIMITS) -> ProxyRequest:
    """Build the head for the box by the rules of api.md, "What the proxy must get right".

    Raises ProxyError: 400 for a head that two parsers could read differently, 405, 413, 414.
    """
    if request.method not in METHODS:
        raise ProxyError("METHOD_NOT_ALLOWED", "an unknown method")
    path, query = split_target(request.target, limits.target_bytes)
    path = box_path(path, via.mount)
    query, own = split_query(query)

    draft = _Draft()
    passed: list[Field] = []
    find = REQUEST_RULES.find
    for field in request.fields:
        name = field[0]
        rule = find(name)
        if rule is None:
            rule = REQUEST_RULES.learn(name)
        if rule == PASS or (rule != DROP and draft.take(rule, field[1], trusted=via.trusted)):
            passed.append(field)

    length = draft.body_length(http11=request.http11, limit=limits.request_body)
    host = _host(draft, http11=request.http11)
    options = list_members(draft.connection)
    nominated = set(options) - NOT_NOMINABLE
    if nominated:
        passed = without(passed, nominated)
    expects = _expects_continue(draft, http11=request.http11) and length != 0
    upgrade = _upgrade(draft, options, length) if via.upgrade and request.http11 else b""

    lines = [
        b"%b %b HTTP/1.1" % (request.method, path if query is None else path + b"?" + query),
        b"Host: " + host,
        *[name + b": " + value for name, value in passed],
        *_framing(length, request.method),
        *_ours(draft, via, host),
        *_link(upgrade, via),
        b"",
        b"",
    ]
    head = b"\r\n".join(lines)
    if not head.count(b"\n") == len(lines) - 1 == head.count(b"\r"):  # the last word, whoever checked before
        raise bad_request("a field with a line break")
    return ProxyRequest(
        head,
        request.method,
        length,
        own,
        expects,
        upgrade.lower(),
        request.http11,
        b"close" not in options if request.http11 else b"keep-alive" in options,
        request.method in IDEMPOTENT,
    )


def _host(draft: _Draft, *, http11: bool) -> bytes:
    """Host as sent. HTTP/1.0 may come without one; the box, which is spoken to in HTTP/1.1, needs some."""
    if draft.host is None:
        if http11:
            raise bad_request("no Host field")
        return b"localhost"
    if _HOST.match(draft.host) is None:
        raise bad_request("a bad Host field")
    return draft.host


def _expects_continue(draft: _Draft, *, http11: bool) -> bool:
    if draft.expect is None or not http11:  # HTTP/1.0 knows no Expect: ignored (RFC 9110 §10.1.1)
        return False
    if draft.expect != b"100-continue":
        raise bad_request("an unknown expectation")
    return True


def _upgrade(draft: _Draft, options: list[bytes], length: int) -> bytes:
    if b"upgrade" not in options or not draft.upgrade:
        return b""
    if length:
        raise bad_request("an upgrade with a body")
    return b", ".join(draft.upgrade)


def _framing(length: int, method: bytes) -> tuple[bytes, ...]:
    if length == CHUNKED:
        return (b"Transfer-Encoding: chunked",)
    if length or method in (b"POST", b"PUT", b"PATCH"):
        return (b"Content-Length: %d" % length,)
    return ()


def _ours(draft: _Draft, via: Via, host: bytes) -> list[bytes]:
    """X-Forwarded-*, the request id, the trace."""
    draft.forwarded.append(via.address.encode("latin-1"))
    lines = [
        b"X-Forwarded-For: " + b", ".join(draft.forwarded),
        b"X-Forwarded-Proto: " + (draft.proto or via.scheme.encode("latin-1")),
        b"X-Forwarded-Host: " + (draft.shown_host or host),
        b"X-Request-ID: " + via.request_id.encode("latin-1"),
    ]
    if via.traceparent is not None:
        lines.append(b"traceparent: " + via.traceparent.encode("latin-1"))
    return lines


def _link(upgrade: bytes, via: Via) -> tuple[bytes, ...]:
    if upgrade:
        return (b"Connection: Upgrade", b"Upgrade: " + upgrade)
    return (b"Connection: close",) if via.close else ()
