"""Which pages may read our answers, and what they may send and read: said once, for both programs.

Text alone: no requests, no settings.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

METHODS: Final = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
"""What a page may ask the API for; on routes of boxes, what it asks for."""
SENT: Final = (
    "accept", "accept-language", "authorization", "cache-control", "content-range", "content-type", "if-match",
    "if-modified-since", "if-none-match", "if-range", "last-event-id", "range", "traceparent", "x-device-id",
    "x-request-id", "x-requested-with",
)  # fmt: skip
"""The fields that it may send to the API."""
EXPOSED: Final = (
    "X-Request-ID", "Retry-After", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset", "ETag", "Content-Range",
    "Accept-Ranges",
)  # fmt: skip
"""The fields that it may read of our own answers; of a box's, all that it has (`tunnel.http`)."""
MAX_AGE: Final = 86400
_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_OWN_MACHINE: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ORIGIN: Final = re.compile(r"[A-Za-z]+://[^/?#\\\s]+\Z")
_METHOD: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}\Z")
_NAMES: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z, \t]{0,4096}\Z")

Origin = tuple[str, str, int]
"""Scheme (that of HTTP, for WebSockets too), host and port."""


def origin_of(url: str) -> Origin | None:
    """The origin that a URL or an `Origin` field names; None for what is none (`null`, a malformed one)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return scheme, parts.hostname, port if port is not None else _PORTS[scheme]


class Origins:
    """The pages that may: those that are named, of the site's own URLs; in development those of any local server."""

    def __init__(self, named: Iterable[str], *, development: bool) -> None:
        self._named = {origin for url in named if (origin := origin_of(url)) is not None}
        self._development = development

    def allow(self, origin: str) -> bool:
        """Whether pages of the origin, an `Origin` field, may read what we answer."""
        asked = origin_of(origin) if _ORIGIN.match(origin) else None
        return asked is not None and (asked in self._named or (self._development and asked[1] in _OWN_MACHINE))


def preflight_fields(origin: str, method: str, names: str, *, of_box: bool) -> list[tuple[str, str]]:
    """What a preflight of an allowed origin is told beside `Vary`.

    Args:
        method, names: its `Access-Control-Request-Method` and `-Headers`.
        of_box: on a route of a box the page may send what it asks for: a box knows more methods and fields than we.
    """
    methods, sent = ", ".join(METHODS), ", ".join(SENT)
    if of_box:
        methods = method if _METHOD.match(method) else methods
        sent = names if _NAMES.match(names) else sent
    fields = [
        ("Access-Control-Allow-Origin", origin),
        ("Access-Control-Allow-Methods", methods),
        ("Access-Control-Allow-Headers", sent),
        ("Access-Control-Max-Age", str(MAX_AGE)),
    ]
    return [(name, value) for name, value in fields if value]
