"""CORS on the public lane: the fields of answers, and preflights.

The same answers as the API gives by its middleware (`cloud/settings.py`, CORS_*).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tunnel.contract import SECURITY_FIELDS
from tunnel.http import Field

_METHODS: Final = b"DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
_HEADERS: Final = (
    b"accept, accept-language, authorization, cache-control, content-range, content-type, if-match, if-modified-since,"
    b" if-none-match, if-range, last-event-id, range, traceparent, x-device-id, x-request-id, x-requested-with"
)
_EXPOSED: Final = (
    b"X-Request-ID, Retry-After, RateLimit-Limit, RateLimit-Remaining, RateLimit-Reset, ETag, Content-Range,"
    b" Accept-Ranges"
)
_VARY: Final = b"Vary: Origin\r\n"
_SECURITY: Final = tuple((name.encode("ascii"), value.encode("ascii")) for name, value in SECURITY_FIELDS)
_MAX_AGE: Final = 86400


class Cors:
    """The fields that let pages of the allowed origins read an answer; with them go those that `always` names."""

    def __init__(self, origins: Sequence[str], always: Sequence[Field] = ()) -> None:
        self._none: list[Field] = [*always]
        self._known: dict[bytes, list[Field]] = {}
        for origin in origins:
            raw = origin.encode("latin-1")
            self._known[raw] = [
                (b"Access-Control-Allow-Origin", raw),
                (b"Access-Control-Expose-Headers", _EXPOSED),
                *always,
            ]

    def fields(self, origin: bytes) -> list[Field]:
        """For a box's answer to a page of `origin` (empty: none told), which names `Vary` by itself."""
        return self._known.get(origin, self._none)

    def lines(self, origin: bytes) -> bytes:
        """For an answer of our own, as header lines, each with its CRLF."""
        return _VARY + b"".join(b"%b: %b\r\n" % field for field in self.fields(origin))

    def preflight(self, origin: bytes, request_id: str, *, keep_alive: bool) -> bytes:
        """The whole answer to a preflight, which needs no credential and never reaches a box."""
        fields = [(b"Vary", b"Origin"), (b"Content-Length", b"0"), *_SECURITY, *self._none]
        if origin in self._known:
            fields += [
                (b"Access-Control-Allow-Origin", origin),
                (b"Access-Control-Allow-Methods", _METHODS),
                (b"Access-Control-Allow-Headers", _HEADERS),
                (b"Access-Control-Max-Age", b"%d" % _MAX_AGE),
            ]
        fields += [
            (b"X-Request-ID", request_id.encode("latin-1")),
            (b"Connection", b"keep-alive" if keep_alive else b"close"),
        ]
        return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
