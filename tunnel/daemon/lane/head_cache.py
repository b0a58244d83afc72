"""Requests that clients send again and again, byte for byte: what their heads came to, kept under a hash of them.

What is kept depends on the head's bytes, on whether the client is a trusted proxy, and on settings: on no user, device
or credential beyond those that the bytes name (which box is the only one online, the grant tells). No token stands in
it, and whether the caller may is asked each time.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, NamedTuple

import orjson

from tunnel.contract import home_of
from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.route import LaneRequest, takes_endless
from tunnel.http import MOVING, Prepared, Via, outline

SIZE: Final = 2048
"""Heads kept; the one kept longest ago goes first: a head in use is back at its next two requests."""
HEAD_BYTES: Final = 2048
"""Longer heads are not kept."""
BODY_BYTES: Final = 8192
"""A body up to here may come in one piece with the head; with longer ones the head is the smaller part of the cost."""
_TOLD: Final = frozenset({b"origin", b"accept-language"})  # what is read of a head after its exchange began


class CachedRequest:
    """A request as it may go out at once."""

    __slots__ = (
        "cors", "facts", "grant", "head", "head_only", "key", "length", "mount", "plain_until", "prepared",
        "readable", "repeatable", "sharable",
    )  # fmt: skip

    def __init__(self, asked: LaneRequest, prepared: Prepared, cors: bytes) -> None:
        head = asked.head
        self.key = asked.key
        self.mount = asked.mount
        self.prepared = prepared
        self.length = prepared.request.body_length
        self.repeatable = prepared.request.idempotent and not self.length
        self.head_only = head.method == b"HEAD"
        self.cors = cors
        self.readable = cors.startswith(b"\r\nAccess-Control-Allow-Origin:")  # by the page that asks
        self.head = head._replace(fields=[field for field in head.fields if field[0].lower() in _TOLD])
        self.sharable = asked.sharable and not self.length and takes_endless(head)
        path = head.target.partition(b"?")[0].decode("latin-1")
        self.facts = b'"method":%b,"path":%b' % (orjson.dumps(head.method.decode("latin-1")), orjson.dumps(path))
        # Of the grant that it went out with last.
        self.grant: Grant | None = None
        self.plain_until = 0.0

    def met(self, grant: Grant) -> None:
        """Another grant than the last time: what depends on it has to be found anew."""
        self.grant = grant
        self.plain_until = 0.0


class HeadKey(NamedTuple):
    """A whole head that is not kept, until it is known what it comes to: its name and size, and `data` it began.

    `numbered` says that the name is that of the head less the value of its X-Request-ID.
    """

    name: bytes
    size: int
    data: bytes
    numbered: bool


def is_keepable(asked: LaneRequest, prepared: Prepared, *, numbered: bool) -> bool:
    """Whether nothing but what is hashed says how the request is served: no upgrade, no ticket, no id of its own."""
    request = prepared.request
    values = asked.said.values
    return (
        bool(asked.key)
        and (bool(asked.mount) or asked.head.method not in MOVING)  # their `Destination` depends on the grant's device
        and not (asked.upgrade or values[4])
        and (numbered or not values[3])
        and request.own.ticket is None
        and not request.private
        and request.client_http11
        and request.client_keep_alive
        and not request.expects_continue
        and asked.head.method != b"OPTIONS"
        and 0 <= request.body_length <= BODY_BYTES
    )


class HeadCache:
    """What heads came to. One for clients that are trusted proxies, one for all others."""

    __slots__ = ("_kept", "_once", "find")

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, CachedRequest] = OrderedDict()
        self._once: set[bytes] = set()
        self.find = self._kept.get
        """What is kept under a name, or None."""

    def __len__(self) -> int:
        return len(self._kept)

    def again(self, name: bytes) -> bool:
        """Whether that head was met before: the first time nothing is kept, since most heads never come again."""
        if name in self._once:
            self._once.discard(name)
            return True
        if len(self._once) >= SIZE:
            self._once.clear()
        self._once.add(name)
        return False

    def note(self, noted: HeadKey, asked: LaneRequest, grant: Grant, cors: bytes, *, trusted: bool) -> None:
        """Keep what a head comes to, if it was met before and nothing speaks against it."""
        if not self.again(noted.name):
            return
        home = home_of(grant.device_id, asked.mount)
        via = Via(scheme="http", address="", request_id="", trusted=trusted, mount=asked.mount, home=home)
        prepared = outline(asked.head, via, grant.limits)
        if is_keepable(asked, prepared, numbered=noted.numbered):
            self._kept[noted.name] = CachedRequest(asked, prepared, cors)
            if len(self._kept) > SIZE:
                self._kept.popitem(last=False)
