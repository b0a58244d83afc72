"""A client's request head: read from raw bytes (fast lane), or taken over from another parser (the DRF view's server).

It does not know what becomes of it, nor answers, sockets and clocks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools

from tunnel.contract.authority import origin_form
from tunnel.http.errors import ProxyError, bad_request
from tunnel.http.fields import Field, HeadSink, match_token, match_value
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.target import split_target

METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND"
    b" UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK"
    b" QUERY".split()
)
"""What llhttp knows, less CONNECT: the same on both lanes. Others get 405."""

_UNUSUAL: Final = re.compile(rb"[a-z#]")
"""Methods are case-sensitive and none is written so; the server of the other lane takes them for no HTTP (gunicorn)."""
_EMPTY_LINES: Final = 2
"""Before a request: what a sloppy client writes behind a body (RFC 9112 §2.2)."""
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

    __slots__ = ("_empty_lines", "_held", "_limits", "_line_ended", "_scanned", "head", "rest")

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._limits = limits
        self._held: bytes | bytearray = b""  # of a head that is not whole
        self._scanned = 0  # bytes of it that were looked through
        self._line_ended = False  # the request line is whole
        self._empty_lines = 0
        self.head: RequestHead | None = None
        self.rest: bytes = b""
        """What came after the head: the beginning of the body, or of the next request."""

    @property
    def started(self) -> bool:
        """Whether a byte of the request came (an idle connection may be closed without an answer)."""
        return bool(self._held)

    def feed(self, data: bytes) -> RequestHead | None:
        """The head once it is whole, else None. Raises ProxyError 400, 405, 414 or 431."""
        begun: bytes | bytearray = data
        if self._held:
            self._held += data  # in place: it is a bytearray by now
            begun = self._held
        if begun[:1] == b"\r":
            begun = self._without_empty_lines(begun)
        end = begun.find(b"\r\n\r\n", max(0, self._scanned - 3), self._limits.head_bytes)
        if end < 0:
            held = begun if isinstance(begun, bytearray) else bytearray(begun)
            self._held = held
            self._check_part(held)
            return None
        self.rest = bytes(begun[end + 4 :])
        self._held = b""
        self.head = self._parse(bytes(begun[: end + 4]))
        return self.head

    def _without_empty_lines(self, begun: bytes | bytearray) -> bytes | bytearray:
        """What stands behind the empty lines before a request. Raises ProxyError 400 for more than a few."""
        start = 0
        while begun[start : start + 2] == b"\r\n":
            start += 2
            self._empty_lines += 1
            if self._empty_lines > _EMPTY_LINES:
                raise bad_request("empty lines and no request")
        if start:
            self._scanned = 0
        return begun[start:] if start else begun

    def _check_part(self, held: bytearray) -> None:
        """Refuse early what can no longer become a head: more than the limit, a bare LF."""
        if held == b"\r":  # of an empty line
            return
        if not self._line_ended:
            newline = held.find(b"\n", self._scanned)
            self._line_ended = newline >= 0
            if newline == 0 or (newline > 0 and held[newline - 1] != 13):
                raise bad_request("a bare LF in the head")
        if held.find(b"\n\n", max(0, self._scanned - 1)) >= 0:
            raise bad_request("a bare LF in the head")
        self._scanned = len(held)
        if not self._line_ended and len(held) > self._limits.target_bytes + 64:
            raise ProxyError("URI_TOO_LONG", "a request line without an end")
        if len(held) >= self._limits.head_bytes:
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
            if match_token(method) is None or _UNUSUAL.search(method) or not 3 <= len(method) <= 20:
                raise bad_request("no method")
            raise ProxyError("METHOD_NOT_ALLOWED", "an unknown method")
        if target[:1] == b"/" and target.isascii():
            fields = self._fields(raw, target)
        else:  # llhttp reads neither raw UTF-8 nor whose host a target names: it gets the root in its place
            fields = self._fields(b"%b / %b%b" % (method, version, raw[len(line) :]), b"/")
            target = _own_target(target, fields)
        return RequestHead(method, target, fields, _VERSIONS[version])

    def _fields(self, raw: bytes, target: bytes) -> list[Field]:
        """The fields of one whole head, of which `target` is the target."""
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
        return sink.fields


def _own_target(target: bytes, fields: list[Field]) -> bytes:
    """A target that is no plain path, in origin form: raw UTF-8, or the absolute form of the one host in `fields`."""
    hosts = [value for name, value in fields if name.lower() == b"host"]
    own = target if target[:1] == b"/" else origin_form(target, hosts[0]) if len(hosts) == 1 else None
    if own is None:
        raise bad_request("the target is not in origin form")
    split_target(own, len(own))
    return own
