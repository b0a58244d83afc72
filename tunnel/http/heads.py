"""A client's request head: read from raw bytes (fast lane), or taken over from another parser (the DRF view's server).

It does not know what becomes of it, nor answers, sockets and clocks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import httptools

from tunnel.http.errors import ProxyError, bad_request
from tunnel.http.fields import Field, HeadSink, match_token, match_value
from tunnel.http.limits import LIMITS, Limits

METHODS: Final = frozenset(
    b"GET HEAD POST PUT DELETE OPTIONS TRACE PATCH COPY LOCK MKCOL MOVE PROPFIND PROPPATCH SEARCH UNLOCK BIND REBIND"
    b" UNBIND ACL REPORT MKACTIVITY CHECKOUT MERGE M-SEARCH NOTIFY SUBSCRIBE UNSUBSCRIBE PURGE MKCALENDAR LINK UNLINK"
    b" QUERY".split()
)
"""What llhttp knows, less CONNECT: the same on both lanes. Others get 405."""

_UNUSUAL: Final = re.compile(rb"[a-z#]")
"""Methods are case-sensitive and none is written so; the server of the other lane takes them for no HTTP (gunicorn)."""
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
            if match_token(method) is None or _UNUSUAL.search(method) or not 3 <= len(method) <= 20:
                raise bad_request("no method")
            raise ProxyError("METHOD_NOT_ALLOWED", "an unknown method")
        if target[:1] != b"/":
            raise bad_request("the target is not in origin form")
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
