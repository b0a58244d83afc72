"""Header fields: what each name means to a proxy, and the one parser that reads heads of both kinds.

It does not know requests from answers beyond the two rule tables, and no sockets. A rule is looked up once for each
spelling of a name and then remembered, so that the hot path is one dictionary access a field.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

Field = tuple[bytes, bytes]

_REMEMBERED: Final = 2048
"""Spellings kept a table: a bound, since names come from outside. Those over it are classified anew each time."""
_LONGEST: Final = 64
"""Bytes of a spelling that is kept: a field's name may be as long as a head."""


# What to do with a field on its way through. Plain integers: an Enum's attributes cost more than the look-up itself.
PASS: Final = 0
DROP: Final = 1
CONNECTION: Final = 2
CONTENT_LENGTH: Final = 3
TRANSFER_ENCODING: Final = 4
UPGRADE: Final = 5
HOST: Final = 6
EXPECT: Final = 7
FORWARDED: Final = 8  # dropped unless the peer is a trusted proxy
X_FORWARDED_FOR: Final = 9
X_FORWARDED_PROTO: Final = 10
X_FORWARDED_HOST: Final = 11
LOCATION: Final = 12
REFRESH: Final = 13
CACHE_CONTROL: Final = 14
VARY: Final = 15
SEC_WEBSOCKET: Final = 16  # passes with a 101 alone
DESTINATION: Final = 17
X_FORWARDED_PREFIX: Final = 18
REFERER: Final = 19
BOX_AUTHORIZATION: Final = 20

_HOP_BY_HOP: Final = {
    b"connection": CONNECTION,
    b"keep-alive": DROP,
    b"te": DROP,
    b"trailer": DROP,
    b"transfer-encoding": TRANSFER_ENCODING,
    b"upgrade": UPGRADE,
    b"http2-settings": DROP,
    b"content-length": CONTENT_LENGTH,
    b"x-request-id": DROP,  # ours is added
}

# Who the client is, in the words of one front or another: boxes would believe them as they do `X-Forwarded-For`.
_CLIENTS: Final = (
    b"cf-connecting-ip cf-connecting-ipv6 cf-pseudo-ipv4 client-ip do-connecting-ip fastly-client-ip fly-client-ip"
    b" remote-addr true-client-ip wl-proxy-client-ip x-appengine-user-ip x-azure-clientip x-azure-socketip x-client-ip"
    b" x-cluster-client-ip x-envoy-external-address x-forwarded x-original-forwarded-for x-originating-ip"
    b" x-proxyuser-ip x-real-ip x-remote-addr x-remote-ip"
)

_REQUEST: Final = (
    dict.fromkeys(_CLIENTS.split(b" "), FORWARDED)
    | _HOP_BY_HOP
    | {
        b"authorization": DROP,  # ours
        b"x-visiona-box-authorization": BOX_AUTHORIZATION,
        b"referer": REFERER,
        b"cookie": DROP,
        b"x-device-id": DROP,
        b"traceparent": DROP,  # ours is added
        b"host": HOST,
        b"expect": EXPECT,
        b"forwarded": FORWARDED,
        b"x-forwarded-for": X_FORWARDED_FOR,
        b"x-forwarded-proto": X_FORWARDED_PROTO,
        b"x-forwarded-host": X_FORWARDED_HOST,
        b"x-forwarded-prefix": X_FORWARDED_PREFIX,
        b"destination": DESTINATION,
    }
)

# What a box may say on the site's origin, by api.md, "What the proxy must get right". Whatever is not named speaks for
# an origin, a login or a cache that many share, or nobody knows what it speaks for: it is dropped. Beside these passes
# what begins with one of `_PREFIXES`.
_CONTENT: Final = (
    b"content-type content-encoding content-language content-disposition content-range content-digest content-md5"
    b" content-duration content-transfer-encoding mime-version repr-digest digest"
)
_CACHING: Final = b"age date etag expires last-modified pragma warning"
_OTHERS: Final = (
    b"allow dav deprecation link lock-token ms-author-via preference-applied range retry-after server server-timing"
    b" sunset via"
)
_PREFIXES: Final = (b"upload-", b"tus-", b"inference-", b"nv-", b"grpc-", b"x-", b"accept-")
# Of these what is ours, or commands a server that stands before us.
_NOT_PREFIXES: Final = (b"x-visiona-", b"x-accel-", b"x-sendfile", b"x-lighttpd-", b"x-litespeed-", b"x-reproxy-")
_NOT: Final = frozenset(
    b"x-request-id x-content-type-options x-frame-options x-permitted-cross-domain-policies accept-ch"
    b" accept-ch-lifetime".split(b" ")
)

_ANSWER: Final = (
    dict.fromkeys(b" ".join((_CONTENT, _CACHING, _OTHERS)).split(b" "), PASS)
    | _HOP_BY_HOP
    | {
        b"location": LOCATION,
        b"content-location": LOCATION,
        b"refresh": REFRESH,
        b"cache-control": CACHE_CONTROL,
        b"vary": VARY,
    }
)


def _request_rule(lower: bytes) -> int:
    if lower.startswith((b"proxy-", b"x-visiona-")):
        return _REQUEST.get(lower, DROP)
    if lower.startswith(b"x-forwarded-"):
        return _REQUEST.get(lower, FORWARDED)
    return _REQUEST.get(lower, PASS)


def _answer_rule(lower: bytes) -> int:
    if lower.startswith(b"sec-websocket-"):
        return SEC_WEBSOCKET
    if lower.startswith(_PREFIXES):
        return DROP if lower in _NOT or lower.startswith(_NOT_PREFIXES) else PASS
    return _ANSWER.get(lower, DROP)


class RuleTable:
    """Name as spelled -> rule. One instance a direction, for the life of the process; safe for threads."""

    __slots__ = ("_classify", "_known", "find")

    def __init__(self, classify: Callable[[bytes], int], names: Iterable[bytes]) -> None:
        """`names` are known from the start as they are mostly spelled: no crowd of other names keeps them out."""
        self._classify = classify
        self._known: dict[bytes, int] = {}
        for name in names:
            for spelling in (name, name.title()):
                self._known[spelling] = classify(name)
        self.find = self._known.get
        """The rule of a spelling met before, else None: then call `learn`."""

    def learn(self, name: bytes) -> int:
        """The rule of `name`, remembered while there is room.

        A name with `_` is taken for the one with `-` in its place, and passes only if that one passes as it is: servers
        like CGI read both as the same variable.
        """
        lower = name.lower()
        rule = self._classify(lower.replace(b"_", b"-"))
        if rule != PASS and b"_" in lower:
            rule = DROP
        if len(self._known) < _REMEMBERED and len(name) <= _LONGEST:
            self._known[name] = rule
        return rule


REQUEST_RULES: Final = RuleTable(_request_rule, _REQUEST)
ANSWER_RULES: Final = RuleTable(_answer_rule, _ANSWER)

match_token: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z").match
"""Matches a token (RFC 9110 §5.6.2), else gives None. A bound method, since it runs for every field."""
match_value: Final = re.compile(rb"[\t\x20-\x7e\x80-\xff]*\Z").match
"""Matches what may stand in a field (RFC 9110 §5.5): no control bytes but the tab."""


def list_members(values: Iterable[bytes]) -> list[bytes]:
    """The members of a comma list over all its fields, lower-cased, empty ones left out."""
    return [member for value in values for part in value.split(b",") if (member := part.strip(b" \t").lower())]


def without(fields: Iterable[Field], names: set[bytes]) -> list[Field]:
    """`fields` less those whose lower-cased name is in `names` (what `Connection` nominated)."""
    return [field for field in fields if field[0].lower() not in names]


def is_no_range(value: bytes) -> bool:
    """Whether a `Range` asks for all there is: players and viewers (ffmpeg, OpenCV) always send `bytes=0-`."""
    return not value or value.replace(b" ", b"").lower() == b"bytes=0-"


NOT_NOMINABLE: Final = frozenset(
    {b"close", b"keep-alive", b"upgrade", b"host", b"content-length", b"transfer-encoding"}
)
"""Options of `Connection` that name no field to drop, and fields that a nomination must not take away."""


class HeadSink:
    """The callbacks that httptools calls while it reads one head."""

    __slots__ = ("complete", "fields", "url")

    def __init__(self) -> None:
        self.fields: list[Field] = []
        self.url = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One whole field."""
        self.fields.append((name, value))

    def on_headers_complete(self) -> None:
        """The empty line."""
        self.complete = True
