"""The public port: agents at /tunnel/connect, from the upgrade request to the end of their session.

Who may come in is Django's decision (`admission`), which connection of a device counts the registry's.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from tunnel.contract import (
    CLOSE_REPLACED,
    CLOSE_RESTART,
    FEATURE_HANDOVER,
    H_ANSWER_DEVICE_ID,
    H_ANSWER_SESSION,
    H_ANSWER_SESSION_TOKEN,
    H_REQUEST_ID,
    TUNNEL_PATH,
    Admitted,
    Credential,
    Refused,
    Replaced,
)
from tunnel.daemon.agents.handshakes import PendingHandshake, PendingHandshakes
from tunnel.daemon.agents.head import check_upgrade, credential, upgrade_head
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import Identity, TunnelSession, never_connected
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.control.admission import Admission
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.daemon.control.events import EventQueue
from tunnel.daemon.http.accept import Rest
from tunnel.daemon.http.capacity import ConnectionLimit
from tunnel.daemon.http.forwarded import client_address
from tunnel.daemon.http.messages import HSTS, Refusal, Request, refusal, request_of, send_and_close
from tunnel.daemon.lane.fd_passing import PassedConnection
from tunnel.daemon.lane.lane import PublicLane
from tunnel.daemon.lane.route import is_lane_path
from tunnel.daemon.metrics import Metrics
from tunnel.http import RequestParser
from tunnel.logs import JsonLog
from tunnel.mux.connection import Connection
from tunnel.net.sockets import ByteStream
from tunnel.net.watchdog import Watchdog
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.websocket.handshake import HandshakeError, server_transport
from tunnel.websocket.transports import SocketTransport

_ANSWER_SECONDS: Final = 10.0  # to write the 101
_DRAINING_RETRY: Final = 5


class Listener:
    """Routes of the public port. `spawn` starts background work that outlives a connection."""

    def __init__(
        self,
        config: TunnelConfig,
        *,
        node_url: str,
        admission: Admission,
        sessions: Registry[TunnelSession],
        arrivals: PendingHandshakes,
        outbox: EventQueue,
        control: ControlPlane,
        metrics: Metrics,
        log: JsonLog,
        spawn: Callable[..., None],
        handed_over: Callable[[TunnelSession], None],
        fast: PublicLane,
        watchdog: Watchdog,
        room: ConnectionLimit,
    ) -> None:
        self._config = config
        self._admission = admission
        self._sessions = sessions
        self._arrivals = arrivals
        self._outbox = outbox
        self._control = control
        self._metrics = metrics
        self._log = log
        self._spawn = spawn
        self._handed_over = handed_over
        self._fast = fast
        self._watchdog = watchdog
        self._room = room
        self._ours = HSTS if config.hsts else ()
        self._max_sessions = min(config.max_sessions, room.most_agents)
        self._role = Role.CLIENT if config.role == "client" else Role.SERVER
        self._limits = SessionConfig(max_outbound_streams=config.max_streams, open_timeout=config.open_seconds)
        self._admitting = 0
        self._empty = trio.lowlevel.ParkingLot()
        self._node_url = node_url

    async def wait_empty(self) -> None:
        """Return when no session is held."""
        while len(self._sessions):
            await self._empty.park()

    async def serve(self, request: Request, stream: ByteStream, peer: str) -> Rest:
        """One connection up to its upgrade; what is returned carries the tunnel. Raises Refusal."""
        if request.path != TUNNEL_PATH:
            if is_lane_path(request.path):
                if not self._room.enter():
                    raise Refusal("OVERLOADED", "too many connections; try again shortly", retry_after=1)
                return partial(self._lane, request, stream, peer)
            raise Refusal("NOT_FOUND", "there is nothing here")
        session_id = str(uuid.uuid4())
        with self._arrivals.expect(session_id) as arrival:
            try:
                check_upgrade(request)
                address = client_address(peer, request, self._config.trusted_proxies)
                identity, admitted = await self._admit(
                    credential(request, session=session_id, address=address), arrival
                )
            except Refusal as refusal:
                self._refused(request, peer, refusal)
                raise
            self._room.admitted(stream)
            transport = await self._answered(request, stream, identity, admitted)
            return partial(self._hold, self._begin(identity, admitted, transport))

    async def adopted(self, handed: PassedConnection, stream: ByteStream) -> None:
        """A client's connection that a sibling gave away, with the request that it had read."""
        parser = RequestParser()
        head = parser.feed(handed.data)
        if head is not None:
            await self._lane(request_of(head, parser.rest), stream, handed.address, handed.turns)

    async def _lane(self, request: Request, stream: ByteStream, peer: str, turns: int = 0) -> None:
        """The fast lane, up to a request of an agent's on the same connection: a proxy may keep one for both."""
        left = await self._fast.serve(request.raw, request.rest, stream, peer, turns)
        if left is None:
            return
        agents = request_of(*left)
        try:
            hold = await self.serve(agents, stream, peer)
        except Refusal as problem:
            await send_and_close(stream, refusal(problem, agents.request_id, self._ours))
        else:
            await hold()

    def _refused(self, request: Request, peer: str, refusal: Refusal) -> None:
        self._metrics.refusals.labels(refusal.code).inc()
        self._log.info(
            "connect_refused", request_id=request.request_id, address=peer, status=refusal.status, code=refusal.code
        )

    async def _answered(
        self, request: Request, stream: ByteStream, identity: Identity, admitted: Admitted
    ) -> SocketTransport:
        """The upgraded connection; if the agent does not get there, Django is told that the session never was."""
        try:
            return await self._upgrade(request, stream, identity, admitted)
        except (HandshakeError, trio.BrokenResourceError, trio.TooSlowError):
            self._outbox.put(never_connected(identity, "lost"))
            raise trio.BrokenResourceError("the agent left during the handshake") from None
        except BaseException:
            self._outbox.put(never_connected(identity, "drain"))
            raise

    async def _admit(self, asked: Credential, arrival: PendingHandshake) -> tuple[Identity, Admitted]:
        self._check_not_draining()
        if len(self._sessions) + self._admitting >= self._max_sessions:
            raise Refusal("OVERLOADED", "this daemon holds as many tunnels as it may", retry_after=30)
        self._admitting += 1
        try:
            answer = await self._admission.admit(asked)
        finally:
            self._admitting -= 1
        if not answer["ok"]:
            raise _told(answer)
        identity = identity_of(asked, answer)
        arrival.device_id = identity.device_id
        try:
            self._check_not_draining()
        except Refusal:  # the drain began while Django was asked
            self._outbox.put(never_connected(identity, "drain"))
            raise
        return identity, answer

    def _check_not_draining(self) -> None:
        if self._metrics.draining:
            raise Refusal("TUNNEL_UNAVAILABLE", "this daemon is going away; connect again", retry_after=_DRAINING_RETRY)

    async def _upgrade(
        self, request: Request, stream: ByteStream, identity: Identity, admitted: Admitted
    ) -> SocketTransport:
        headers = [
            (H_ANSWER_DEVICE_ID, identity.device_id),
            (H_ANSWER_SESSION, identity.session),
            (H_REQUEST_ID, request.request_id),
            *self._ours,
        ]
        if admitted["session_token"]:
            headers.append((H_ANSWER_SESSION_TOKEN, admitted["session_token"]))
        with trio.fail_after(_ANSWER_SECONDS):
            return await server_transport(stream.sock, upgrade_head(request), request.rest, headers, stream.send_all)

    def _begin(self, identity: Identity, admitted: Admitted, transport: SocketTransport) -> TunnelSession:
        connection = Connection(
            transport,
            role=self._role,
            config=self._limits,
            accept_streams=False,
            name=identity.session,
            watchdog=self._watchdog,
        )
        session = TunnelSession(identity, connection, self._spawn)
        for older in self._sessions.add(session):
            if older.id == identity.handover and FEATURE_HANDOVER in older.identity.features:
                self._handed_over(older)
            else:
                older.close(CLOSE_REPLACED, "replaced by a newer connection")
        if admitted["replaced"]:
            self._close_replaced(admitted["replaced"])
        self._metrics.connects.inc()
        self._outbox.put(session.event("connected"))
        self._log.info("connect", **_facts(session), user=identity.user_id, features=list(identity.features))
        return session

    async def _hold(self, session: TunnelSession) -> None:
        try:
            await session.run()
        finally:
            self._sessions.remove(session.id)
            if not len(self._sessions):
                self._empty.unpark_all()
            reason, code, text = session.ending()
            self._metrics.ended(session, reason)
            event = session.event("disconnected")
            self._outbox.put(event)
            self._log.info(
                "disconnect",
                **_facts(session),
                reason=reason,
                code=code,
                text=text,
                seconds=round(trio.current_time() - session.started, 3),
                bytes_in=event["bytes_in"],
                bytes_out=event["bytes_out"],
                streams=event["streams"],
            )

    def _close_replaced(self, replaced: Replaced) -> None:
        if replaced["node_url"] == self._node_url:
            here = self._sessions.get(replaced["session"])
            if here is not None:
                here.close(CLOSE_REPLACED, "replaced by a newer connection")
        else:
            self._spawn(self._close_elsewhere, replaced)

    async def _close_elsewhere(self, replaced: Replaced) -> None:
        handed_over = replaced.get("handover", False)
        code = CLOSE_RESTART if handed_over else CLOSE_REPLACED
        try:
            await self._control.close_elsewhere(
                replaced["node_url"], replaced["session"], code, handed_over=handed_over
            )
        except ControlUnavailable as error:
            # that node is down, and its sessions with it, or its next heartbeat is told to close this one
            self._log.warning("replaced_not_closed", session=replaced["session"], error=str(error))


def identity_of(asked: Credential, admitted: Admitted) -> Identity:
    """Who was admitted."""
    return Identity(
        session=asked["session"],
        device_id=admitted["device_id"],
        user_id=admitted["user_id"],
        epoch=admitted["epoch"],
        address=asked["address"],
        agent=asked.get("agent", ""),
        features=tuple(asked.get("features", ())),
        request_id=asked.get("request_id", ""),
        handover=asked.get("handover", ""),
        local=asked.get("local", ""),
    )


def _told(answer: Refused) -> Refusal:
    status = answer["status"]
    return Refusal(
        answer["code"],
        answer["message"],
        status=status if 400 <= status <= 599 else 503,
        retry_after=answer.get("retry_after"),
    )


def _facts(session: TunnelSession) -> dict[str, object]:
    who = session.identity
    return {
        "request_id": who.request_id,
        "device": who.device_id,
        "session": who.session,
        "epoch": who.epoch,
        "address": who.address,
        "agent": who.agent,
    }
