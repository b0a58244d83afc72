"""The request side: a client's head in, the head for the box out.

It does not know the answer, sockets or clocks, nor how a head is read (`heads`). What a head comes to is told once, by
`outline`; what differs from one sending of the same head to the next is filled in by `Prepared`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NamedTuple

from tunnel.http.body import BodyReader, ChunkedReader, LengthReader
from tunnel.http.errors import ProxyError, bad_request, too_large
from tunnel.http.fields import (
    BOX_AUTHORIZATION,
    CONNECTION,
    CONTENT_LENGTH,
    DESTINATION,
    DROP,
    EXPECT,
    FORWARDED,
    HOST,
    NOT_NOMINABLE,
    PASS,
    REFERER,
    REQUEST_RULES,
    TRANSFER_ENCODING,
    UPGRADE,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PREFIX,
    X_FORWARDED_PROTO,
    Field,
    list_members,
    without,
)
from tunnel.http.heads import METHODS, RequestHead
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.location import destination
from tunnel.http.target import OwnParams, box_path, split_query, split_target

CHUNKED: Final = -1
"""`body_length` of a body that is sent in chunks."""

IDEMPOTENT: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})
"""RFC 9110 §9.2.2."""

MOVING: Final = frozenset({b"COPY", b"MOVE"})
"""Whose `Destination` is a place of the box's (RFC 4918 §10.3)."""

_CREDENTIAL_BYTES: Final = 8192
_OF_PROXIES: Final = frozenset({FORWARDED, X_FORWARDED_FOR, X_FORWARDED_PROTO, X_FORWARDED_HOST})
_WORDED: Final = frozenset({DESTINATION, REFERER, X_FORWARDED_PREFIX, BOX_AUTHORIZATION})
_BOUND: Final = (b"ntlm", b"negotiate")

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")


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
    home: bytes = b""
    """Without a mount: raw prefix below which all of the box's paths are shown, for where its answers lead."""
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
    hosts: tuple[bytes, ...]
    """The names by which the box may call us in what it answers: of its Host field and of X-Forwarded-Host."""
    private: bool = False
    """The box is shown a credential of the caller's (BOX_AUTHORIZATION): the head is kept nowhere, the answer is shared
    with nobody."""
    bound: bool = False
    """That credential counts for the whole connection to the box (`NTLM`, `Negotiate`): nobody else may use it then."""

    def body_reader(self, limits: Limits = LIMITS) -> BodyReader:
        """A reader for the client's raw body bytes (a lane whose server has not taken chunks apart already)."""
        if self.body_length == CHUNKED:
            return ChunkedReader(limits.chunk_line, limits.trailer_bytes)
        return LengthReader(self.body_length)


class _Worded:
    """What goes out in other words than it came: of hardly any request."""

    __slots__ = ("authorization", "destination", "prefix", "referer")

    def __init__(self) -> None:
        self.authorization: bytes | None = None
        """For the box."""
        self.destination: list[Field] = []
        self.prefix = b""
        """Of a trusted proxy's own."""
        self.referer: list[Field] = []


class _Draft:
    """What one pass over the fields finds."""

    __slots__ = (
        "coding", "connection", "expect", "forwarded", "host", "length", "proto", "shown_host", "upgrade", "worded",
    )  # fmt: skip

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
        self.worded: _Worded | None = None

    def take(self, rule: int, field: Field, *, trusted: bool) -> bool:
        """Note a field with a meaning; whether it also passes on as it is."""
        value = field[1]
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
        else:
            return self._take_worded(rule, field, trusted=trusted)
        return False

    def _take_worded(self, rule: int, field: Field, *, trusted: bool) -> bool:
        if trusted and rule in _OF_PROXIES:
            return self._take_forwarded(rule, field[1])
        if rule not in _WORDED:
            return False
        worded = self.worded = self.worded or _Worded()
        name, value = field
        if rule == DESTINATION:
            worded.destination.append(field)
        elif rule == REFERER:
            worded.referer.append((name, _referer(value)))
        elif rule == X_FORWARDED_PREFIX and trusted:
            worded.prefix = value.strip(b" \t").rstrip(b"/")
        elif rule == BOX_AUTHORIZATION:
            if worded.authorization is not None:
                raise bad_request("two credentials for the box")
            if len(value) > _CREDENTIAL_BYTES:
                raise ProxyError("HEADERS_TOO_LARGE", f"a credential for the box of {len(value)} bytes")
            worded.authorization = value.strip(b" \t")
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
            raise too_large(limit, f"a body of {length} bytes")
        return length


class Prepared:
    """What a head comes to, with holes for what differs from one sending of the same head to the next.

    It depends on nothing but the head, the `Via` less its texts `address`, `request_id` and `traceparent`, and limits.
    """

    __slots__ = ("_after", "_before", "_breaks", "_end", "line", "request")

    def __init__(self, before: list[bytes], after: list[bytes], end: list[bytes], request: ProxyRequest) -> None:
        self.line = before[0]
        """The request line for the box."""
        self._before = b"\r\n".join(before)
        self._after = b"\r\n".join([b"", *after])
        self._end = b"\r\n".join([b"", *end, b"", b""])
        self._breaks = len(before) + len(after) + len(end) + 1
        self.request = request
        """All but the head for the box, which is empty here."""

    def head(self, address: bytes, request_id: bytes, traceparent: bytes | None) -> bytes:
        """The head for the box. Raises ProxyError 400 for a line break in any part: the last word, whoever checked."""
        if traceparent is None:
            head = b"".join((self._before, address, self._after, request_id, self._end))
            breaks = self._breaks
        else:
            traced = (self._before, address, self._after, request_id, b"\r\ntraceparent: ", traceparent, self._end)
            head = b"".join(traced)
            breaks = self._breaks + 1
        if not head.count(b"\n") == breaks == head.count(b"\r"):
            raise bad_request("a field with a line break")
        return head


def prepare(request: RequestHead, via: Via, limits: Limits = LIMITS) -> ProxyRequest:
    """The request for the box by the rules of api.md, "What the proxy must get right". Raises as `outline`."""
    prepared = outline(request, via, limits)
    traceparent = None if via.traceparent is None else via.traceparent.encode("latin-1")
    head = prepared.head(via.address.encode("latin-1"), via.request_id.encode("latin-1"), traceparent)
    return prepared.request._replace(head=head)


def outline(request: RequestHead, via: Via, limits: Limits = LIMITS) -> Prepared:
    """What a head comes to for the box.

    Raises ProxyError: 400 for a head that two parsers could read differently, 405, 413, 414.
    """
    if request.method not in METHODS:
        raise ProxyError("METHOD_NOT_ALLOWED", "an unknown method")
    path, query = split_target(request.target, limits.target_bytes)
    path = box_path(path, via.mount)
    query, own = split_query(query, request.fields)

    draft = _Draft()
    passed: list[Field] = []
    find = REQUEST_RULES.find
    for field in request.fields:
        name = field[0]
        rule = find(name)
        if rule is None:
            rule = REQUEST_RULES.learn(name)
        if rule == PASS or (rule != DROP and draft.take(rule, field, trusted=via.trusted)):
            passed.append(field)

    length = draft.body_length(http11=request.http11, limit=limits.request_body)
    host = _host(draft, http11=request.http11)
    hosts = (host,) if draft.shown_host is None else (host, draft.shown_host)
    worded = draft.worded
    if worded is not None:
        passed += worded.referer
        passed += _placed(worded.destination, request.method, via, hosts)
    options = list_members(draft.connection)
    nominated = set(options) - NOT_NOMINABLE
    if nominated:
        passed = without(passed, nominated)
    authorization, prefix = b"", via.mount
    if worded is not None:
        prefix = worded.prefix + prefix
        authorization = worded.authorization or b""
        if authorization:  # behind what a nomination takes off
            passed.append((b"Authorization", authorization))
    expects = _expects_continue(draft, http11=request.http11) and length != 0
    upgrade = _upgrade(draft, options, length) if via.upgrade and request.http11 else b""
    before = [
        b"%b %b HTTP/1.1" % (request.method, path if query is None else path + b"?" + query),
        b"Host: " + host,
        *[name + b": " + value for name, value in passed],
        *_framing(length, request.method),
        b"X-Forwarded-For: " + b"".join([value + b", " for value in draft.forwarded]),
    ]
    after = [
        b"X-Forwarded-Proto: " + (draft.proto or via.scheme.encode("latin-1")),
        b"X-Forwarded-Host: " + (draft.shown_host or host),
        b"X-Request-ID: ",
    ]
    if prefix:
        after.insert(2, b"X-Forwarded-Prefix: " + prefix)
    ready = ProxyRequest(
        b"",
        request.method,
        length,
        own,
        expects,
        upgrade.lower(),
        request.http11,
        b"close" not in options if request.http11 else b"keep-alive" in options,
        request.method in IDEMPOTENT,
        hosts,
    )
    if authorization:
        ready = ready._replace(private=True, bound=authorization.lower().startswith(_BOUND))
    return Prepared(before, after, _link(upgrade, via), ready)


def _host(draft: _Draft, *, http11: bool) -> bytes:
    """Host as sent. HTTP/1.0 may come without one; the box, which is spoken to in HTTP/1.1, needs some."""
    if draft.host is None:
        if http11:
            raise bad_request("no Host field")
        return b"localhost"
    if _HOST.match(draft.host) is None:
        raise bad_request("a bad Host field")
    return draft.host


def _placed(fields: list[Field], method: bytes, via: Via, hosts: tuple[bytes, ...]) -> list[Field]:
    """`Destination` as the box knows it; to other methods than WebDAV's it may mean anything. Raises ProxyError 400."""
    if method not in MOVING:
        return fields
    return [
        (name, destination(value.rstrip(b" \t"), mount=via.mount, home=via.home, hosts=hosts)) for name, value in fields
    ]


def _referer(value: bytes) -> bytes:
    """Without what of its query is ours: a page that was shown by a ticket names it there."""
    front, mark, query = value.partition(b"?")
    if not mark:
        return value
    query, hash_, fragment = query.partition(b"#")
    kept, _ = split_query(query)
    return front + (b"" if kept is None else mark + kept) + hash_ + fragment


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


def _link(upgrade: bytes, via: Via) -> list[bytes]:
    if upgrade:
        return [b"Connection: Upgrade", b"Upgrade: " + upgrade]
    return [b"Connection: close"] if via.close else []
