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
POLICY: Final = 13  # Content-Security-Policy: kept, and ours is added once

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

_REQUEST: Final = _HOP_BY_HOP | {
    b"authorization": DROP,
    b"cookie": DROP,
    b"x-device-id": DROP,
    b"traceparent": DROP,  # ours is added
    b"host": HOST,
    b"expect": EXPECT,
    b"forwarded": FORWARDED,
    b"x-forwarded-for": X_FORWARDED_FOR,
    b"x-forwarded-proto": X_FORWARDED_PROTO,
    b"x-forwarded-host": X_FORWARDED_HOST,
}

# Besides what api.md lists, three more fields that speak for the whole origin, which is ours and not the box's.
_ANSWER: Final = _HOP_BY_HOP | {
    b"set-cookie": DROP,
    b"set-cookie2": DROP,
    b"clear-site-data": DROP,
    b"strict-transport-security": DROP,
    b"service-worker-allowed": DROP,
    b"x-content-type-options": DROP,  # ours is added
    b"alt-svc": DROP,
    b"nel": DROP,
    b"report-to": DROP,
    b"content-security-policy": POLICY,
    b"location": LOCATION,
}


def _request_rule(lower: bytes) -> int:
    if lower.startswith(b"proxy-"):
        return DROP
    if lower.startswith(b"x-forwarded-"):
        return _REQUEST.get(lower, FORWARDED)
    return _REQUEST.get(lower, PASS)


def _answer_rule(lower: bytes) -> int:
    if lower.startswith((b"proxy-", b"access-control-")):
        return DROP
    return _ANSWER.get(lower, PASS)


class RuleTable:
    """Name as spelled -> rule. One instance a direction, for the life of the process; safe for threads."""

    __slots__ = ("_classify", "_known", "find")

    def __init__(self, classify: Callable[[bytes], int]) -> None:
        self._classify = classify
        self._known: dict[bytes, int] = {}
        self.find = self._known.get
        """The rule of a spelling met before, else None: then call `learn`."""

    def learn(self, name: bytes) -> int:
        """The rule of `name`, remembered while there is room.

        A name with `_` passes, unless with `-` in its place it is one that does not pass: CGI-like servers on the box
        read both as the same variable.
        """
        lower = name.lower()
        rule = self._classify(lower)
        if rule == PASS and b"_" in lower and self._classify(lower.replace(b"_", b"-")) not in _HARMLESS:
            rule = DROP
        if len(self._known) < _REMEMBERED:
            self._known[name] = rule
        return rule


_HARMLESS: Final = frozenset({PASS, LOCATION, POLICY})

REQUEST_RULES: Final = RuleTable(_request_rule)
ANSWER_RULES: Final = RuleTable(_answer_rule)

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
