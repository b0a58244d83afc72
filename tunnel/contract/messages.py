"""Messages of the internal calls between daemon and control plane (JSON; docs/internal-api.md).

Standard library only; types, and the one digest that both sides make of the same facts.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any, Final, Literal, NotRequired, TypedDict

MAX_CREDENTIALS: Final = 256


class Credential(TypedDict):
    """One agent that asks to be admitted: an element of `POST /internal/tunnel/authenticate` `{node, credentials}`."""

    token: str
    session: str  # the id (UUID text) that the daemon chose for this tunnel session
    address: str  # the agent's IP address
    request_id: NotRequired[str]
    agent: NotRequired[str]  # name/version, empty for the prototype's agents that say nothing
    features: NotRequired[list[str]]
    instance: NotRequired[str]
    serial: NotRequired[str]
    chip: NotRequired[str]
    firmware: NotRequired[str]
    handover: NotRequired[str]  # the session, at a daemon that drains, that this one takes over from
    local: NotRequired[str]  # host:port that the agent makes reachable, as it says
    local_listening: NotRequired[bool]  # whether anything listens there; left out by an agent that did not look


class Replaced(TypedDict):
    """An older session of the same device on another node, which the daemon closes there with 4409."""

    node_url: str
    session: str
    handover: NotRequired[bool]  # it was handed over: told so instead, finishes its streams and closes with 1012


class Admitted(TypedDict):
    """The answer for an admitted credential, `data.results[i]`."""

    ok: Literal[True]
    device_id: str
    user_id: str
    epoch: int  # raised with each admission; a lower one changes nothing any more
    session_token: str | None  # new or rotated, to be stored by the agent; None: go on as you are
    replaced: Replaced | None


class Refused(TypedDict):
    """The answer for a refused credential, `data.results[i]`; sent to the agent as the JSON error envelope."""

    ok: Literal[False]
    status: int
    code: str
    message: str
    retry_after: NotRequired[int]  # seconds


class SessionFact(TypedDict):
    """One live tunnel session as the daemon tells it in a full heartbeat and at `GET /internal/sessions`."""

    session: str
    device_id: str
    user_id: str
    epoch: int
    connected_at: str  # RFC 3339
    address: str
    agent: str
    features: list[str]
    streams: int
    bytes_in: int
    bytes_out: int
    rtt_ms: float | None


class Heartbeat(TypedDict):
    """`POST /internal/tunnel/heartbeat`, every 10 s; `sessions` only when the last answer asked for it."""

    node: str
    url: str
    version: str
    started_at: str
    sessions_count: int
    streams_count: int
    draining: bool
    sessions: list[SessionFact] | None
    digest: NotRequired[str]  # of the sessions that it holds: `sessions_digest`


def session_mark(session: str, device: str) -> int:
    """What one session adds (by exclusive or) to the digest of a node's sessions."""
    return int.from_bytes(blake2b(f"{session} {device}".encode(), digest_size=16).digest())


def sessions_digest(mark: int) -> str:
    """The digest as heartbeats carry it, of all marks together; 0: there is none."""
    return f"{mark:032x}"


class CloseOrder(TypedDict):
    """A session that the daemon is to close, with a WebSocket close code."""

    session: str
    code: int
    reason: str


class HeartbeatAnswer(TypedDict):
    """The answer `data` to a heartbeat."""

    close: list[CloseOrder]
    send_sessions: bool  # the next heartbeat, sent at once, carries the full list


class TunnelEvent(TypedDict):
    """An element of `POST /internal/tunnel/events` `{node, events}`; applied only while `epoch` is the device's."""

    type: Literal["connected", "disconnected"]
    device_id: str
    session: str
    epoch: int
    at: str
    reason: str  # "" for connected; else replaced, revoked, disabled, liveness, abuse, closed, drain, error…
    code: int | None
    address: str
    agent: str
    request_id: str
    bytes_in: int
    bytes_out: int
    streams: int  # opened in the session's whole life
    answered: NotRequired[bool]  # of a disconnect: whether the agent was there to answer the close


class AuthorizeRequest(TypedDict):
    """`POST /internal/authorize`: may this caller reach this device? Asked by a daemon for its fast lane."""

    node: str
    # login: a running stream is asked for again by the `login` of its first answer (a ticket cannot be shown twice)
    kind: Literal["bearer", "ticket", "login", "none"]
    token: str  # the login token, JWT, ticket or `login`; "" for none (the static development user)
    device: str  # a device id as text; "" when the caller named none
    method: str
    path: str  # as the box will see it, raw, without the query
    websocket: bool
    origin: str  # the Origin header, "" when absent
    host: str  # the Host header
    address: str
    request_id: str
    spend: NotRequired[bool]  # False: who may not is to be told so, and nothing else: a ticket is left as it is


class Authorized(TypedDict):
    """The answer `data` for an allowed caller; kept by the daemon for `ttl` seconds (a ticket's: for this use)."""

    allowed: Literal[True]
    device_id: str
    epoch: int
    session: str  # the tunnel session that the registry knows; "" while it is on its way from one daemon to another
    node_url: str  # internal URL of the daemon that holds it
    user_id: str
    login: str  # names the login session, for invalidation and kind `login`; "" where there is none (then kind `none`)
    ttl: float
    body_max: int
    reusable: NotRequired[bool]  # it was a ticket that may be shown again: the same request, from the same page
    moving: NotRequired[bool]  # the daemon that holds it drains: there will soon be another session


class Forbidden(TypedDict):
    """The answer `data` for a refused caller; sent to it as the JSON error envelope."""

    allowed: Literal[False]
    status: int
    code: str
    message: str
    details: NotRequired[Any]
    retry_after: NotRequired[int]
    headers: NotRequired[dict[str, str]]  # further ones for the client, of 429 alone


class Invalidate(TypedDict):
    """`POST /internal/authz/invalidate` on a daemon: drop cached authorisations and end the streams they carry."""

    users: list[str]
    logins: list[str]
    devices: list[str]
