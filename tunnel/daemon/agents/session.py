"""One admitted agent: its facts, its connection, and how it ends.

It does not know who admitted it or what is sent through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import trio

from tunnel.contract import (
    CLOSE_ABUSE,
    CLOSE_DISABLED,
    CLOSE_LIVENESS,
    CLOSE_REPLACED,
    CLOSE_RESTART,
    CLOSE_REVOKED,
    CLOSE_SHUTDOWN,
    SessionFact,
    TunnelEvent,
)
from tunnel.mux.connection import Connection
from tunnel.mux.errors import EndReason
from tunnel.protocol.errors import EndKind

_REASONS: Final = {
    CLOSE_REVOKED: "revoked",
    CLOSE_DISABLED: "disabled",
    CLOSE_LIVENESS: "liveness",
    CLOSE_REPLACED: "replaced",
    CLOSE_ABUSE: "abuse",
    CLOSE_RESTART: "drain",
    CLOSE_SHUTDOWN: "drain",
}
CLOSING_CODES: Final = frozenset(_REASONS) | {1000}
"""Codes with which an operator or Django may close a session."""


def rfc3339(at: datetime) -> str:
    """UTC with milliseconds and `Z`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a session is, as admitted. `features` are what the agent announced; `request_id` that of its connect.

    `handover` is the session that the agent says it takes over from, "" for none; `local` the address that it says it
    makes reachable, "" of an agent that says none.
    """

    session: str
    device_id: str
    user_id: str
    epoch: int
    address: str
    agent: str
    features: tuple[str, ...]
    request_id: str
    handover: str = ""
    local: str = ""


class TunnelSession:
    """A live tunnel. `run` carries it; `close` ends it from anywhere, without waiting."""

    __slots__ = (
        "_close_order",
        "_crash",
        "_spawn",
        "acknowledges",
        "connected_at",
        "connection",
        "forwards",
        "identity",
        "leaving",
        "parting",
        "started",
    )

    def __init__(self, identity: Identity, connection: Connection, spawn: Callable[..., None]) -> None:
        self.identity = identity
        self.connection = connection
        self.connected_at = datetime.now(UTC)
        self.started = trio.current_time()
        self.acknowledges = True  # False: it was seen not to say at once that it has taken a stream
        self.forwards = 0  # streams that the switch carries for it now
        self.parting = False  # its agent was told to go: no stream is kept for later any more
        self.leaving = False  # it takes no new streams
        self._spawn = spawn
        self._close_order: tuple[int, str] | None = None
        self._crash = ""

    def __repr__(self) -> str:
        state = "closing" if self.closing else "open"
        return f"<TunnelSession {self.id} of {self.device_id} epoch={self.epoch} {state}>"

    @property
    def id(self) -> str:
        return self.identity.session

    @property
    def device_id(self) -> str:
        return self.identity.device_id

    @property
    def epoch(self) -> int:
        return self.identity.epoch

    @property
    def closing(self) -> bool:
        """Whether it takes no more streams because it was told to end."""
        return self._close_order is not None

    def close(self, code: int, reason: str = "") -> None:
        """End the session with a WebSocket close code; the first call decides. Returns at once.

        A code that is none of ours becomes 1000: some codes may not travel (RFC 6455 §7.4).
        """
        if self._close_order is None:
            code = code if code in CLOSING_CODES else 1000
            self._close_order = (code, reason)
            self._spawn(self.connection.aclose, code, reason)

    async def run(self) -> None:
        """Carry the session until it has ended. Raises only for a bug of ours."""
        try:
            await self.connection.run()
        except Exception as error:
            self._crash = repr(error)
            raise

    def ending(self) -> tuple[str, int | None, str]:
        """(reason, close code, sentence) of a session that has ended: reasons as in `TunnelEvent`."""
        end = self.connection.end_reason
        if self._crash:
            return "error", CLOSE_SHUTDOWN, self._crash
        if self._close_order is not None and (end is None or not end.remote):
            code, text = self._close_order
            return _REASONS.get(code, "closed"), code, text
        if end is None:
            return "error", None, "ended without a reason"
        return _reason(end), end.close_code, end.text

    def fact(self) -> SessionFact:
        """The session as a full heartbeat and the internal API tell it."""
        who, seen = self.identity, self.connection.statistics()
        return SessionFact(
            session=who.session,
            device_id=who.device_id,
            user_id=who.user_id,
            epoch=who.epoch,
            connected_at=rfc3339(self.connected_at),
            address=who.address,
            agent=who.agent,
            features=list(who.features),
            streams=seen.streams_open,
            bytes_in=seen.bytes_in,
            bytes_out=seen.bytes_out,
            rtt_ms=None if seen.rtt is None else round(seen.rtt * 1000, 3),
        )

    def event(self, kind: str) -> TunnelEvent:
        """`connected` or `disconnected`, as posted to Django."""
        who, seen = self.identity, self.connection.statistics()
        reason, code = ("", None) if kind == "connected" else self.ending()[:2]
        event = TunnelEvent(
            type="connected" if kind == "connected" else "disconnected",
            device_id=who.device_id,
            session=who.session,
            epoch=who.epoch,
            at=rfc3339(datetime.now(UTC)),
            reason=reason,
            code=code,
            address=who.address,
            agent=who.agent,
            request_id=who.request_id,
            bytes_in=seen.bytes_in,
            bytes_out=seen.bytes_out,
            streams=seen.streams_opened,
        )
        if kind != "connected":
            event["answered"] = self.connection.peer_closed
        return event


def _reason(end: EndReason) -> str:
    if end.kind is EndKind.LIVENESS:
        return "liveness"
    if end.kind is EndKind.ABUSE:
        return "abuse"
    if end.kind is EndKind.PROTOCOL:
        return "error"
    if end.kind is EndKind.TRANSPORT or end.close_code == 1006:
        return "lost"
    return "closed" if end.remote else "drain"


def never_connected(identity: Identity, reason: str) -> TunnelEvent:
    """The `disconnected` event of a session that Django admitted and that never came to be."""
    return TunnelEvent(
        type="disconnected",
        device_id=identity.device_id,
        session=identity.session,
        epoch=identity.epoch,
        at=rfc3339(datetime.now(UTC)),
        reason=reason,
        code=None,
        address=identity.address,
        agent=identity.agent,
        request_id=identity.request_id,
        bytes_in=0,
        bytes_out=0,
        streams=0,
    )
