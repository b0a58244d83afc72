"""What another process of ours says of an exchange that it forwards: read, checked, and as the lane's own words.

Pure reading of a `BEGIN` (`tunnel.contract.exchange`); it knows no connection.
"""

from __future__ import annotations

from typing import Any, Final, get_type_hints

import orjson

from tunnel.contract import Authorized, AuthorizeRequest, ExchangeCall, RecordError, request_id_from, split_begin
from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.route import HeadFields
from tunnel.http import Field, Limits, ProxyError, RequestHead, RequestParser, Via, is_device_id, match_value

_TYPES: Final[dict[str, Any]] = {
    name: hint for name, hint in get_type_hints(ExchangeCall).items() if name not in ("scheme", "fields")
}


class NoCall(ProxyError):
    """What our own processes never say: nothing can be read from the connection any more."""


class Forwarded:
    """One call: who may, from where, and what the site says beside the box. Raises ProxyError for what is none."""

    __slots__ = ("call", "fields", "head")

    def __init__(self, payload: bytes) -> None:
        try:
            said, raw = split_begin(payload)
            call = orjson.loads(said)
            fields = _checked(call)
        except (RecordError, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise NoCall("BAD_REQUEST", f"no call: {error!r}") from error
        head = RequestParser().feed(raw)
        if head is None:
            raise ProxyError("BAD_REQUEST", "a head that is cut short")
        self.call: ExchangeCall = call
        self.head: RequestHead = head
        self.fields = fields

    def grant(self, limits: Limits, node: str, now: float) -> Grant:
        """What Django said, as if it had been asked."""
        call, values = self.call, HeadFields(self.head).values
        asked = AuthorizeRequest(
            node=node,
            kind="login" if call["login"] else "none",
            token=call["login"],
            device=call["device_id"],
            method=self.head.method.decode("latin-1"),
            path="/",
            websocket=call["upgrade"],
            origin=values[1].decode("latin-1"),
            host=values[2].decode("latin-1"),
            address=call["address"],
            request_id=call["request_id"],
        )
        said = Authorized(
            allowed=True,
            device_id=call["device_id"],
            epoch=call["epoch"],
            session=call["session"],
            node_url=call["node_url"],
            user_id=call["user_id"],
            login=call["login"],
            ttl=0.0,
            body_max=call["body_max"],
            moving=call["moving"],
        )
        return Grant(b"", asked, said, limits, now)

    def via(self) -> Via:
        """What is known of the request besides its head."""
        call = self.call
        return Via(
            scheme=call["scheme"],
            address=call["peer"],
            request_id=call["request_id"],
            traceparent=call["traceparent"] or None,
            trusted=call["trusted"],
            mount=call["mount"].encode("latin-1"),
            home=call["home"].encode("latin-1"),
            upgrade=call["upgrade"],
        )


def _checked(call: Any) -> list[Field]:
    """The site's fields of a call whose every part is what it should be. Raises ValueError and its kin."""
    for name, kind in _TYPES.items():
        if type(call[name]) is not kind:
            raise ValueError(f"{name}: {type(call[name]).__name__}")
    if call["scheme"] not in ("http", "https") or not is_device_id(call["device_id"].encode("latin-1")):
        raise ValueError("scheme, device_id")
    if request_id_from(call["request_id"]) != call["request_id"] or type(call["fields"]) is not list:
        raise ValueError("request_id, fields")
    fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in call["fields"]]
    if call["names_device"]:
        fields.append((b"X-VisionA-Device-Id", call["device_id"].encode("latin-1")))
    texts = [call["request_id"], call["traceparent"], call["peer"], call["mount"], call["home"], call["device_id"]]
    clean = [text.encode("latin-1") for text in texts] + [part for field in fields for part in field]
    if any(match_value(each) is None for each in clean):
        raise ValueError("a control byte")
    return fields
