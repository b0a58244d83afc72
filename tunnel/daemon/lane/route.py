"""What a request on the fast lane asks for: which box, who asks, in which way. Pure reading of a head.

It does not decide who may, and does not know what becomes of it.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import unquote_to_bytes

from tunnel.contract import AuthorizeRequest
from tunnel.contract.authority import percent_encoded
from tunnel.daemon.lane.authorizer import key_of
from tunnel.http import ProxyError, RequestHead, is_device_id, is_no_range, own_params

NOBODY: Final = "-"
"""Asked for instead of what is no device id: so the answer is 401 or 404, in the order that all routes keep."""
_D: Final = b"/d/"
_FRONT_END: Final = re.compile(rb"/(?:api/devices/([^/]+)/proxy(?=/|\Z)|api/(?:cameras|inference)(?:/|\Z)|(ws)/)")
"""A path (without its query) that port 3721 has too: mounted at a device, else path for path, some for WebSockets."""

_NAMES: Final = {
    b"authorization": 0,
    b"origin": 1,
    b"host": 2,
    b"x-request-id": 3,
    b"traceparent": 4,
    b"upgrade": 5,
    b"connection": 6,
    b"range": 7,
    b"accept-language": 8,
    b"access-control-request-method": 9,
}
_SPELLED: Final[dict[bytes, int]] = {}
_SPELLINGS: Final = 1024


def _place(name: bytes) -> int:
    """Where a field's value is noted, -1: nowhere. Remembered by spelling, within a bound."""
    place = _NAMES.get(name.lower(), -1)
    if len(_SPELLED) < _SPELLINGS:
        _SPELLED[name] = place
    return place


class HeadFields:
    """The fields of a head that concern us; the first of each name, empty where absent."""

    __slots__ = ("values",)

    def __init__(self, head: RequestHead) -> None:
        values = [b""] * 10
        find = _SPELLED.get
        for name, value in head.fields:
            place = find(name)
            if place is None:
                place = _place(name)
            if place >= 0 and not values[place]:
                values[place] = value
        self.values = values

    @property
    def origin(self) -> bytes:
        return self.values[1]

    @property
    def upgrade(self) -> bool:
        """It asks for a WebSocket."""
        return self.values[5].strip().lower() == b"websocket" and b"upgrade" in [
            word.strip() for word in self.values[6].lower().split(b",")
        ]


class LaneRequest:
    """A request, read: `device` is lower-case text ("": none named), `mount` the prefix that the box doesn't see, empty
    where paths pass as they are."""

    __slots__ = ("device", "head", "key", "kind", "lacks_upgrade", "mount", "said", "token", "upgrade")

    def __init__(
        self,
        head: RequestHead,
        said: HeadFields,
        device: str,
        mount: bytes,
        ticket: str | None,
        *,
        for_sockets: bool = False,
    ) -> None:
        self.head = head
        self.said = said
        self.device = device
        self.mount = mount
        values = said.values
        authorization = values[0]
        self.upgrade = bool(values[5]) and head.method == b"GET" and head.http11 and said.upgrade
        self.lacks_upgrade = for_sockets and not self.upgrade
        """It asks for none where there is nothing else."""
        self.token = ""
        self.kind = b"none"
        token = b""  # as it is meant: however it is spelled, one credential has one grant
        if authorization[:7].lower() == b"bearer ":
            self.kind = b"bearer"
            token = authorization[7:].strip()
            self.token = token.decode("latin-1")
        elif authorization:
            self.kind = b"bearer"  # another scheme is no credential of ours, and not none either
        elif ticket is not None:
            self.kind = b"ticket"
            self.token = ticket
        if self.kind == b"ticket":
            self.key = b""
        elif self.upgrade or self.kind == b"none":  # the Origin counts
            way = b"ws" if self.upgrade else b""
            self.key = key_of(self.kind, token, device.encode(), way, values[1], values[2])
        else:
            self.key = key_of(self.kind, token, device.encode())

    @property
    def sharable(self) -> bool:
        """Whether it may be one of many on the same answer, as far as its method and fields say."""
        return self.head.method == b"GET" and is_no_range(self.said.values[7]) and not self.upgrade

    def request(self, node: str, address: str, request_id: str) -> AuthorizeRequest:
        """The question to Django."""
        values = self.said.values
        path = self.head.target[len(self.mount) :].partition(b"?")[0]
        if path[:1] != b"/":  # the root, or below a mount that is spelled otherwise, which no box will be shown
            path = b"/"
        return AuthorizeRequest(
            node=node,
            kind=self.kind.decode(),  # type: ignore[typeddict-item]  # one of the three that are set above
            token=self.token,
            device=self.device,
            method=self.head.method.decode("latin-1"),
            path=percent_encoded(path).decode("ascii"),
            websocket=self.upgrade,
            origin=values[1].decode("latin-1"),
            host=values[2].decode("latin-1"),
            address=address,
            request_id=request_id,
        )


def read(head: RequestHead) -> LaneRequest:
    """Which box a head is for. Raises ProxyError 404 for what is no route of this lane."""
    target = head.target
    path, mark, _query = target.partition(b"?")
    if path.startswith(_D):
        end = path.find(b"/", len(_D))
        mount = path if end < 0 else path[:end]
        return _mounted(head, mount, mount[len(_D) :], queried=bool(mark))
    route = _front_end(path)
    if route is None:
        raise ProxyError("NOT_FOUND", "no route of this lane")
    if route[1]:
        return _mounted(head, route[0], unquote_to_bytes(route[1]), queried=bool(mark))
    said = HeadFields(head)
    own = own_params(target)
    device = _named(head, own.device_id, by_ticket=own.ticket is not None and not said.values[0])
    return LaneRequest(head, said, device, b"", own.ticket, for_sockets=route[2] is not None)


def _front_end(path: bytes) -> re.Match[bytes] | None:
    """Which of the routes that port 3721 has too: it decodes a path before it looks, and so does nginx."""
    route = _FRONT_END.match(path)
    return route if route is not None or b"%" not in path else _FRONT_END.match(unquote_to_bytes(path))


def _mounted(head: RequestHead, mount: bytes, raw: bytes, *, queried: bool) -> LaneRequest:
    """Below `mount`, to the device whose id `raw` should be."""
    ticket = own_params(head.target).ticket if queried else None
    device = raw.decode("ascii").lower() if is_device_id(raw) else NOBODY
    return LaneRequest(head, HeadFields(head), device, mount, ticket)


def _named(head: RequestHead, queried: str | None, *, by_ticket: bool) -> str:
    """The device that `X-Device-Id` names, else the query; "": none. A ticket's is not asked for by an empty field."""
    fields = [value for name, value in head.fields if name.lower() == b"x-device-id"]
    if not fields:
        return queried or ""
    named = b",".join(fields).strip()
    if is_device_id(named):
        return named.decode("ascii").lower()
    return "" if by_ticket and not named else NOBODY


def is_lane_path(path: str) -> bool:
    """Whether a path (raw, without the query) belongs to the public lane."""
    raw = path.encode("latin-1")
    return raw.startswith(_D) or _front_end(raw) is not None


def field_of(head: RequestHead, wanted: bytes) -> bytes:
    """The first field of that lower-case name, empty where absent."""
    return next((value for name, value in head.fields if name.lower() == wanted), b"")


def is_bodyless(head: RequestHead) -> bool:
    """Whether the request surely has no body and its connection may go on: what a refusal needs to know."""
    for name, value in head.fields:
        lower = name.lower()
        if lower == b"transfer-encoding" or (lower == b"content-length" and value.strip() != b"0"):
            return False
        if lower == b"connection" and b"close" in value.lower():
            return False
    return head.http11


def takes_endless(head: RequestHead) -> bool:
    """Whether the client takes an endless answer, and asks for no condition."""
    accepted = []
    for name, value in head.fields:
        lower = name.lower()
        if lower.startswith(b"if-") or lower == b"last-event-id":
            return False
        if lower == b"accept":
            accepted.append(value)
    if not accepted:
        return True
    said = b",".join(accepted).lower()
    return b"*/*" in said or b"multipart/" in said or b"text/event-stream" in said
