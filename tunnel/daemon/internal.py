"""The internal port: the forward API, sessions, drain, metrics and probes. Contract: docs/internal-api.md."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import orjson
import trio

from tunnel.contract import (
    CLOSE_RESTART,
    CONTRACT_VERSION,
    H_AGENT_FEATURES,
    H_CONTRACT,
    H_DEVICE_ID,
    H_SHARE,
    H_TUNNEL_SESSION,
    UPGRADE_EXCHANGE,
    UPGRADE_STREAM,
    verify_secret,
)
from tunnel.daemon.agents.handshakes import PendingHandshakes
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import CLOSING_CODES, TunnelSession
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.control.heartbeat import HeartbeatLoop
from tunnel.daemon.http.accept import Rest
from tunnel.daemon.http.messages import Refusal, Request, answer, head, send_and_close, success
from tunnel.daemon.lane.lane import PublicLane
from tunnel.daemon.metrics import CONTENT_TYPE, Metrics
from tunnel.daemon.relay.relay import Relay
from tunnel.daemon.share.key import key_of_share
from tunnel.daemon.share.peer import RemoteSubscription
from tunnel.daemon.share.shares import SharedStreams
from tunnel.net.sockets import ByteStream

_SESSION: Final = "/internal/session/"
_PAGE: Final = 100
_MAX_PAGE: Final = 1000
_MAX_BODY: Final = 1 << 20
_BODY_SECONDS: Final = 5.0
_ARRIVAL_SECONDS: Final = 0.8  # Django waits 1 s for an answer; what is not closed by then the next heartbeat closes
_PING_SECONDS: Final = 2.0
_DIGITS: Final = re.compile(r"[0-9]{1,9}\Z")


class InternalApi:
    """Routes of the internal port. `drain` begins the orderly end, as SIGTERM does."""

    def __init__(
        self,
        config: TunnelConfig,
        *,
        sessions: Registry[TunnelSession],
        arrivals: PendingHandshakes,
        switch: Relay,
        metrics: Metrics,
        heartbeat: HeartbeatLoop,
        drain: Callable[[], None],
        handed_over: Callable[[TunnelSession], None],
        fast: PublicLane,
        shares: SharedStreams,
    ) -> None:
        self._secrets = config.secrets
        self._node = config.node
        self._sessions = sessions
        self._arrivals = arrivals
        self._open_seconds = config.open_seconds
        self._switch = switch
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._drain = drain
        self._handed_over = handed_over
        self._fast = fast
        self._shares = shares

    async def serve(self, request: Request, stream: ByteStream, peer: str) -> Rest | None:
        """One connection; what is returned carries a stream. Raises Refusal."""
        path = request.path
        if path.startswith("/internal/"):
            self._check_secret(request)
            self._check_contract(request)
            if path == "/internal/forward/raw":
                self._check_method(request, "POST")
                return await self._forward(request, stream)
            if path == "/internal/exchange":
                self._check_method(request, "POST")
                return await self._exchanges(request, stream, peer)
            if path == "/internal/authz/invalidate":
                self._check_method(request, "POST")
                body = await self._invalidate(request, stream)
            else:
                if path.startswith(_SESSION):
                    await self._arrived(path.removeprefix(_SESSION))
                body = await self._pinged(request) or self._internal(request)
        elif path == "/metrics":
            if not _is_loopback(peer):
                self._check_secret(request)
            self._check_method(request, "GET")
            body = answer(200, self._metrics.render(), request.request_id, kind=CONTENT_TYPE)
        else:
            body = self._probe(request)
            if request.method == "HEAD":
                body = body[: body.index(b"\r\n\r\n") + 4]
        await send_and_close(stream, body)
        return None

    def _check_secret(self, request: Request) -> None:
        scheme, _, secret = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not verify_secret(secret.strip(), self._secrets):
            raise Refusal("UNAUTHENTICATED", "this route needs the internal secret")

    @staticmethod
    def _check_contract(request: Request) -> None:
        spoken = (request.header(H_CONTRACT.lower()) or str(CONTRACT_VERSION)).strip()
        known = [str(version) for version in (CONTRACT_VERSION, CONTRACT_VERSION - 1)]
        if spoken not in known:
            raise Refusal("BAD_REQUEST", f"{H_CONTRACT}: this daemon speaks {' and '.join(known)}")

    @staticmethod
    def _check_method(request: Request, *allowed: str) -> None:
        if request.method not in allowed:
            raise Refusal(
                "METHOD_NOT_ALLOWED", "this method is not allowed here", headers=[("Allow", ", ".join(allowed))]
            )

    def _probe(self, request: Request) -> bytes:
        if request.path == "/healthz":
            self._check_method(request, "GET", "HEAD")
            if not self._heartbeat.beating:
                raise Refusal("TUNNEL_UNAVAILABLE", "the task that sends heartbeats stands still", retry_after=5)
            return answer(200, b'{"status":"ok"}', request.request_id)
        if request.path == "/readyz":
            self._check_method(request, "GET", "HEAD")
            if self._metrics.leaving:
                raise Refusal("TUNNEL_UNAVAILABLE", "draining", retry_after=5)
            if not self._heartbeat.accepted:
                raise Refusal("TUNNEL_UNAVAILABLE", "the API does not accept heartbeats", retry_after=1)
            return answer(200, b'{"status":"ready"}', request.request_id)
        raise Refusal("NOT_FOUND", "there is nothing here")

    def _internal(self, request: Request) -> bytes:
        path = request.path
        if path == "/internal/sessions":
            self._check_method(request, "GET")
            return self._page(request)
        if path == "/internal/drain":
            self._check_method(request, "POST")
            self._drain()
            return success({"draining": True, "streams": len(self._switch)}, request.request_id)
        if path.startswith(_SESSION):
            self._check_method(request, "GET", "DELETE")
            session = self._sessions.get(path.removeprefix(_SESSION))
            if session is None:
                raise Refusal("NOT_FOUND", "no such session on this node")
            if request.method == "GET":
                return success(self._facts(session), request.request_id)
            if request.query.get("handover") == "1":
                self._handed_over(session)
                return success(None, request.request_id)
            code = _whole(request, "code", CLOSE_RESTART)
            if code not in CLOSING_CODES:
                raise Refusal("VALIDATION_ERROR", "code: not a close code of ours", details={"code": ["unknown"]})
            session.close(code, request.query.get("reason", "")[:100])
            return success(None, request.request_id)
        raise Refusal("NOT_FOUND", "there is nothing here")

    async def _invalidate(self, request: Request, stream: ByteStream) -> bytes:
        told = await _json_body(request, stream)
        names: dict[str, list[str]] = {}
        for name in ("users", "logins", "devices"):
            values = told.get(name, []) if isinstance(told, dict) else None
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise Refusal("VALIDATION_ERROR", f"{name}: a list of strings", details={name: ["a list of strings"]})
            names[name] = values
        dropped, ended = self._fast.invalidate(**names)
        return success({"dropped": dropped, "ended": ended}, request.request_id)

    def _page(self, request: Request) -> bytes:
        limit = _whole(request, "limit", _PAGE)
        if not 1 <= limit <= _MAX_PAGE:
            raise Refusal("VALIDATION_ERROR", f"limit: 1 to {_MAX_PAGE}", details={"limit": [f"1 to {_MAX_PAGE}"]})
        page, following = self._sessions.page(request.query.get("after", ""), limit)
        meta = {"total": len(self._sessions), "next": following}
        return success([session.fact() for session in page], request.request_id, meta=meta)

    def _facts(self, session: TunnelSession) -> dict[str, Any]:
        seen = session.connection.statistics()
        return {
            **session.fact(),
            "node": self._node,
            "streams_opened": seen.streams_opened,
            "resets_in": seen.resets_in,
            "resets_out": seen.resets_out,
            "window_stalls": seen.window_stalls,
            "glitches": seen.glitches,
            "buffered": seen.buffered,
            "closing": session.closing,
            "peer_going_away": session.connection.peer_going_away,
        }

    async def _pinged(self, request: Request) -> bytes | None:
        """The facts of a session whose agent was asked for a sign of life; None for any other request."""
        if request.method != "GET" or request.query.get("ping") != "1" or not request.path.startswith(_SESSION):
            return None
        session = self._sessions.get(request.path.removeprefix(_SESSION))
        if session is None:
            return None
        answers = await session.connection.answers(_PING_SECONDS)
        return success({**self._facts(session), "answers": answers}, request.request_id)

    async def _forward(self, request: Request, stream: ByteStream) -> Rest:
        if not request.asks_for(UPGRADE_STREAM):
            raise Refusal(
                "UPGRADE_REQUIRED", f"this route needs Upgrade: {UPGRADE_STREAM}", headers=[("Upgrade", UPGRADE_STREAM)]
            )
        if request.header("content-length") not in (None, "0") or request.header("transfer-encoding") is not None:
            raise Refusal("BAD_REQUEST", "the upgrade request has no body")
        deadline = trio.current_time() + self._open_seconds
        session = await self._chosen(request)
        if session.leaving:
            raise Refusal("TUNNEL_DISCONNECTED", "this tunnel is going away", retry_after=1)
        lent = await self._lent(request, session, deadline)
        tunnel = lent or await self._switch.open(session, deadline)
        try:
            await stream.send_all(
                head(
                    101,
                    request.request_id,
                    [
                        ("Connection", "Upgrade"),
                        ("Upgrade", UPGRADE_STREAM),
                        (H_TUNNEL_SESSION, session.id),
                        (H_AGENT_FEATURES, ",".join(session.identity.features)),
                    ],
                )
            )
        except BaseException:
            tunnel.reset()
            raise
        if isinstance(tunnel, RemoteSubscription):
            return partial(tunnel.carry, stream, request.rest, request.request_id)
        return partial(self._switch.carry, session, tunnel, stream, request.rest, request.request_id)

    async def _exchanges(self, request: Request, stream: ByteStream, peer: str) -> Rest:
        """From here on a connection of records."""
        if not request.asks_for(UPGRADE_EXCHANGE):
            raise Refusal(
                "UPGRADE_REQUIRED",
                f"this route needs Upgrade: {UPGRADE_EXCHANGE}",
                headers=[("Upgrade", UPGRADE_EXCHANGE)],
            )
        if request.header("content-length") not in (None, "0") or request.header("transfer-encoding") is not None:
            raise Refusal("BAD_REQUEST", "the upgrade request has no body")
        lines = [("Connection", "Upgrade"), ("Upgrade", UPGRADE_EXCHANGE)]
        await stream.send_all(head(101, request.request_id, lines))
        return partial(self._fast.serve_exchanges, stream, request.rest, peer)

    async def _lent(self, request: Request, session: TunnelSession, deadline: float) -> RemoteSubscription | None:
        """A place among the viewers of one answer, for another daemon that asks for one. Raises Refusal."""
        said, shares = request.header(H_SHARE.lower()), self._shares
        if said is None:
            return None
        key = key_of_share(said, session)
        if key is None or shares.is_plain(key):
            return None
        return await RemoteSubscription.at(shares, self._switch, session, key, deadline)

    async def _arrived(self, session_id: str) -> None:
        """Give the handshake of that session a moment to end: Django may know, and close, what is not in yet."""
        with trio.move_on_after(_ARRIVAL_SECONDS):
            await self._arrivals.wait_session(session_id)

    async def _chosen(self, request: Request) -> TunnelSession:
        """The session that is named. One whose handshake is under way is waited for, as long as an open may take."""
        session_id, device_id = request.header(H_TUNNEL_SESSION.lower()), request.header(H_DEVICE_ID.lower())
        if not session_id and not device_id:
            raise Refusal("BAD_REQUEST", f"name {H_TUNNEL_SESSION} or {H_DEVICE_ID}")
        session = self._named(session_id, device_id)
        if session is None:
            with trio.move_on_after(self._open_seconds) as waiting:
                if session_id:
                    await self._arrivals.wait_session(session_id)
                else:
                    await self._arrivals.wait_device(device_id or "")
            session = self._named(session_id, device_id)
            if session is None and waiting.cancelled_caught:
                raise Refusal("TUNNEL_TIMEOUT", "the agent was not admitted in time")
        if session is None:
            raise Refusal("NOT_FOUND", "no such session on this node")
        return session

    def _named(self, session_id: str | None, device_id: str | None) -> TunnelSession | None:
        return self._sessions.get(session_id) if session_id else self._sessions.of_device(device_id or "")


async def _json_body(request: Request, stream: ByteStream) -> object:
    """The request's JSON, of a known and bounded length. Raises Refusal."""
    length = _DIGITS.match(request.header("content-length") or "")
    if length is None or request.header("transfer-encoding") is not None:
        raise Refusal("BAD_REQUEST", "this route takes a JSON body of a known length")
    if int(length.group()) > _MAX_BODY:
        raise Refusal("PAYLOAD_TOO_LARGE", f"more than {_MAX_BODY} bytes")
    body = request.rest
    with trio.move_on_after(_BODY_SECONDS):
        while len(body) < int(length.group()):
            more = await stream.receive_some()
            if not more:
                break
            body += more
    if len(body) != int(length.group()):
        raise Refusal("BAD_REQUEST", "the body has not the length that was said")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refusal("BAD_REQUEST", "no JSON") from None


def _whole(request: Request, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise Refusal("VALIDATION_ERROR", f"{name}: not a whole number", details={name: ["not a whole number"]})
    return int(text)


def _is_loopback(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
