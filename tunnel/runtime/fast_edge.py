"""What the fast lane says for itself: CORS, preflights, refusals, ids. Pure: no sockets, no clock.

The same answers as the API gives by its middleware (`cloud/settings.py`, CORS_*).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Final

from tunnel.config import Network
from tunnel.contract import SECURITY_FIELDS
from tunnel.http import Field, ProxyError, RequestHead, error_response
from tunnel.runtime.agent_head import forwarded_address
from tunnel.runtime.fast_auth import Denied

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
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_POOL: Final = 4096


def is_request_id(value: bytes) -> bool:
    """Whether an inbound `X-Request-ID` is one that is kept."""
    return _REQUEST_ID.match(value) is not None


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


class Proxies:
    """Whom we believe when it says for whom it asks."""

    def __init__(self, trusted: Sequence[Network]) -> None:
        self._trusted = trusted

    def trusts(self, address: str) -> bool:
        """Whether an address is a trusted proxy's."""
        if not self._trusted:
            return False
        parsed = ip_address(address)
        return any(parsed in network for network in self._trusted)

    def client_of(self, address: str, head: RequestHead) -> str:
        """Whose request it is: the address of whoever is connected, unless that is a trusted proxy's."""
        if not self.trusts(address):
            return address
        told = [value.decode("latin-1") for name, value in head.fields if name.lower() == b"x-forwarded-for"]
        return forwarded_address(address, told, self._trusted)


class Ids:
    """Random ids, cut from blocks of randomness: a system call a request would cost more than the id."""

    def __init__(self) -> None:
        self._hex = ""
        self._raw = b""
        self._at = 0

    def take(self, digits: int) -> str:
        """That many random hex digits."""
        at = self._at
        if at + digits > len(self._hex):
            at = self._more()
        self._at = at + digits
        return self._hex[at : at + digits]

    def _more(self) -> int:
        self._hex = secrets.token_hex(_POOL)
        self._raw = self._hex.encode()
        return 0

    def pair(self) -> tuple[bytes, bytes]:
        """A request id and a `traceparent` for a request that came with neither."""
        at = self._at
        if at + 68 > len(self._raw):
            at = self._more()
        self._at = at + 68
        raw = self._raw
        return b"req_" + raw[at : at + 20], b"00-%b-%b-00" % (raw[at + 20 : at + 52], raw[at + 52 : at + 68])

    def request_id(self, inbound: bytes) -> str:
        """The inbound `X-Request-ID` if it is well formed, else a new one."""
        if inbound and is_request_id(inbound):
            return inbound.decode("ascii")
        return "req_" + self.take(20)

    def traceparent(self, inbound: bytes) -> str:
        """Of our own call (W3C Trace Context §3.2): within the caller's trace if it sent one, else a new one."""
        match = _TRACEPARENT.match(inbound) if inbound else None
        if match and match.group(1) != b"0" * 32 and match.group(2) != b"0" * 16:
            return f"00-{match.group(1).decode()}-{self.take(16)}-{match.group(3).decode()}"
        return f"00-{self.take(32)}-{self.take(16)}-00"


class _OnlyGet(ProxyError):
    """`/ws/*` by another method."""


def no_upgrade(method: bytes) -> ProxyError:
    """Why `/ws/*` is refused to who may have it: the method first, as on all routes."""
    if method != b"GET":
        return _OnlyGet("METHOD_NOT_ALLOWED", "a WebSocket is asked for by GET")
    return ProxyError("UPGRADE_REQUIRED", "no upgrade was asked for")


def told(
    error: ProxyError, request_id: str, *, language: str, keep_alive: bool, head_only: bool, extra: bytes
) -> bytes:
    """The whole answer that tells a refusal; Django's own ones with Django's words, which it says in English here."""
    if error.status == 426:
        extra += b"Upgrade: websocket\r\n"
    elif isinstance(error, _OnlyGet):
        extra += b"Allow: GET\r\n"
    message = None
    if isinstance(error, Denied):
        message, extra = error.message if language == "en" else None, extra + error.headers
    return error_response(
        error,
        request_id,
        language="zh-hant" if language == "zh-hant" else "en",
        keep_alive=keep_alive,
        head_only=head_only,
        extra=extra,
        message=message,
    )
