"""The messages of `/internal/*` as they come in: parsed strictly, bounded, typed by the contract.

A message that is malformed is the daemon's bug and is refused whole (BAD_REQUEST); what an agent said of itself inside
a well-formed credential is judged one by one by `apps.devices.admission_rules`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

from apps.common.errors import DomainError
from apps.common.moments import read_moment
from tunnel.contract import MAX_CREDENTIALS, AuthorizeRequest, Credential, Heartbeat, SessionFact, TunnelEvent

MAX_EVENTS: Final = 1000
MAX_SESSIONS: Final = 20_000
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_URL: Final = re.compile(r"https?://[!-~]{1,255}\Z")
_BIGINT: Final = (1 << 63) - 1
Item = TypeVar("Item")


def _bad(where: str, what: str) -> DomainError:
    return DomainError("BAD_REQUEST", "The message is not one of the contract.", details={where: [what]})


class Fields:
    """The fields of one JSON object; `where` names it in refusals."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, Mapping):
            raise _bad(where, "Must be an object.")
        self.value = value
        self.where = where

    def _get(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        found = self.value.get(name, default)
        if found is None or not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            raise _bad(f"{self.where}.{name}", "Missing, or of the wrong type.")
        return found

    def text(self, name: str, limit: int, default: str | None = None) -> str:
        found: str = self._get(name, str, default)
        if len(found) > limit:
            raise _bad(f"{self.where}.{name}", f"Longer than {limit} characters.")
        return found.replace("\0", "")

    def uuid(self, name: str) -> str:
        found = self.text(name, 36)
        if not _UUID.match(found):
            raise _bad(f"{self.where}.{name}", "Not a UUID.")
        return found.lower()

    def moment(self, name: str) -> str:
        """An RFC 3339 time with its offset, as text."""
        found = self.text(name, 40)
        try:
            read_moment(found)
        except ValueError:
            raise _bad(f"{self.where}.{name}", "Not an RFC 3339 time with its offset.") from None
        return found

    def count(self, name: str, high: int = _BIGINT) -> int:
        found: int = self._get(name, int, None)
        if not 0 <= found <= high:
            raise _bad(f"{self.where}.{name}", "Out of range.")
        return found

    def flag(self, name: str) -> bool:
        found: bool = self._get(name, bool, None)
        return found

    def number_or_none(self, name: str) -> float | None:
        if self.value.get(name) is None:
            return None
        found = float(self._get(name, (int, float), None))
        if not math.isfinite(found):
            raise _bad(f"{self.where}.{name}", "Out of range.")
        return found

    def texts(self, name: str, limit: int, most: int) -> list[str]:
        found: list[Any] = self._get(name, list, [])
        if len(found) > most or not all(isinstance(item, str) and len(item) <= limit for item in found):
            raise _bad(f"{self.where}.{name}", f"Must be at most {most} texts of at most {limit} characters.")
        return [item.replace("\0", "") for item in found]

    def items(self, name: str, low: int, high: int, read: Callable[[Fields], Item]) -> list[Item]:
        found: list[Any] = self._get(name, list, None)
        if not low <= len(found) <= high:
            raise _bad(f"{self.where}.{name}", f"Must have {low} to {high} items.")
        return [read(Fields(item, f"{name}.{index}")) for index, item in enumerate(found)]


def read_credentials(body: Any) -> tuple[str, list[Credential]]:
    """The node, and the 1 to 256 credentials that it asks for."""
    message = Fields(body, "body")
    return message.uuid("node"), message.items("credentials", 1, MAX_CREDENTIALS, _credential)


def _credential(item: Fields) -> Credential:
    credential = Credential(
        token=item.text("token", 4096),
        session=item.uuid("session"),
        address=item.text("address", 64),
        request_id=item.text("request_id", 64, ""),
        agent=item.text("agent", 4096, ""),
        features=item.texts("features", 64, 64),
        instance=item.text("instance", 4096, ""),
        serial=item.text("serial", 4096, ""),
        chip=item.text("chip", 4096, ""),
        firmware=item.text("firmware", 4096, ""),
        handover=item.text("handover", 4096, ""),
        local=item.text("local", 4096, ""),
    )
    if item.value.get("local_listening") is not None:
        credential["local_listening"] = item.flag("local_listening")
    return credential


def read_heartbeat(body: Any) -> Heartbeat:
    """One heartbeat, with or without the full list."""
    message = Fields(body, "body")
    url = message.text("url", 255)
    if not _URL.match(url):
        raise _bad("body.url", "Not an http URL.")
    full = message.value.get("sessions") is not None
    beat = Heartbeat(
        node=message.uuid("node"),
        url=url.rstrip("/"),
        version=message.text("version", 64),
        started_at=message.moment("started_at"),
        sessions_count=message.count("sessions_count"),
        streams_count=message.count("streams_count"),
        draining=message.flag("draining"),
        sessions=message.items("sessions", 0, MAX_SESSIONS, _session) if full else None,
    )
    if message.value.get("digest") is not None:
        beat["digest"] = message.text("digest", 64)
    return beat


def _session(item: Fields) -> SessionFact:
    return SessionFact(
        session=item.uuid("session"),
        device_id=item.uuid("device_id"),
        user_id=item.uuid("user_id"),
        epoch=item.count("epoch"),
        connected_at=item.moment("connected_at"),
        address=item.text("address", 64),
        agent=item.text("agent", 4096),
        features=item.texts("features", 64, 64),
        streams=item.count("streams"),
        bytes_in=item.count("bytes_in"),
        bytes_out=item.count("bytes_out"),
        rtt_ms=item.number_or_none("rtt_ms"),
    )


def read_authorize(body: Any) -> AuthorizeRequest:
    """May this caller reach this device?"""
    message = Fields(body, "body")
    kind = message.text("kind", 16)
    if kind not in ("bearer", "ticket", "login", "none"):
        raise _bad("body.kind", "None of bearer, ticket, login, none.")
    path = message.text("path", 1 << 16)
    if not path.startswith("/") or not path.isascii():
        raise _bad("body.path", "Not a raw path.")
    ask = AuthorizeRequest(
        node=message.uuid("node"),
        kind=cast("Any", kind),
        token=message.text("token", 1 << 14),  # a JWT
        device=message.text("device", 4096),
        method=message.text("method", 64),
        path=path,
        websocket=message.flag("websocket"),
        origin=message.text("origin", 1 << 15, ""),
        host=message.text("host", 1 << 15, ""),
        address=message.text("address", 64),
        request_id=message.text("request_id", 64, ""),
    )
    if message.value.get("spend") is not None:
        ask["spend"] = message.flag("spend")
    return ask


def read_events(body: Any) -> tuple[str, list[TunnelEvent]]:
    """The node, and the connects and disconnects that it tells, in their order."""
    message = Fields(body, "body")
    return message.uuid("node"), message.items("events", 0, MAX_EVENTS, _event)


def _event(item: Fields) -> TunnelEvent:
    kind = item.text("type", 16)
    if kind not in ("connected", "disconnected"):
        raise _bad(f"{item.where}.type", "Neither connected nor disconnected.")
    code = item.value.get("code")
    event = TunnelEvent(
        type=cast("Any", kind),
        device_id=item.uuid("device_id"),
        session=item.uuid("session"),
        epoch=item.count("epoch"),
        at=item.moment("at"),
        reason=item.text("reason", 200),
        code=None if code is None else item.count("code", 9999),
        address=item.text("address", 64),
        agent=item.text("agent", 4096),
        request_id=item.text("request_id", 64, ""),
        bytes_in=item.count("bytes_in"),
        bytes_out=item.count("bytes_out"),
        streams=item.count("streams"),
    )
    if item.value.get("answered") is not None:
        event["answered"] = item.flag("answered")
    return event
