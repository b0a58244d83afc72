"""The daemon put together: who runs in which nursery, in which order it starts, and in which order it ends.

Three nurseries, outermost first. `background`: what must outlive the tunnels (log, events, admission, the tunnels'
watchdog). `sessions`: the connections of both ports. `accepting`: the two accept loops, heartbeat, the switch's
watchdog. Closing: docs/closing.md.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

import trio

from tunnel.contract import CLOSE_RESTART, CLOSE_SHUTDOWN, Admitted, Credential
from tunnel.contract import Heartbeat as HeartbeatMessage
from tunnel.daemon.agents.drain import Drain
from tunnel.daemon.agents.handshakes import PendingHandshakes
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import TunnelSession, never_connected, rfc3339
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.control.admission import Admission
from tunnel.daemon.control.client import ControlPlane
from tunnel.daemon.control.events import EventQueue
from tunnel.daemon.control.heartbeat import HeartbeatLoop
from tunnel.daemon.http.accept import HttpServer, Slots
from tunnel.daemon.http.capacity import ConnectionLimit
from tunnel.daemon.http.forwarded import TrustedProxies
from tunnel.daemon.http.messages import HSTS
from tunnel.daemon.internal import InternalApi
from tunnel.daemon.lane.fd_passing import AVAILABLE, FdPassing, PassedConnection
from tunnel.daemon.lane.lane import PublicLane
from tunnel.daemon.metrics import Metrics
from tunnel.daemon.ports import Ports
from tunnel.daemon.public import Listener, identity_of
from tunnel.daemon.relay.relay import Relay
from tunnel.daemon.share.shares import SharedStreams
from tunnel.daemon.upstream.remote import PeerUpstreams
from tunnel.logs import JsonLog
from tunnel.net.descriptors import connections_possible
from tunnel.net.watchdog import Watchdog

_CLOSE_SECONDS: Final = 5.0  # for all sessions to say goodbye
_GOODBYE_SECONDS: Final = 3.0  # for Django to learn of the drain before anybody is turned away
_FLUSH_SECONDS: Final = 3.0  # to tell Django how they ended
_CLOSING_AT_ONCE: Final = 1000


def _adopt(public: HttpServer, listener: Listener, handed: PassedConnection) -> None:
    """Serve a client's connection that a sibling gave away."""
    public.adopt(handed.sock, handed.address, partial(listener.adopted, handed))


class Daemon:
    """One node. `run` it; `drain` ends it in order."""

    def __init__(self, config: TunnelConfig, ports: Ports, log: JsonLog, *, version: str) -> None:
        self.config = config
        self._ports = ports
        self._log = log
        self._version = version
        self._started_at = rfc3339(datetime.now(UTC))
        self.node_url = config.url(ports.internal_port)
        self.sessions: Registry[TunnelSession] = Registry()
        self.metrics = Metrics(self.sessions)
        self.switch = Relay(
            self.metrics,
            log,
            idle_seconds=config.idle_seconds,
            buffer_bytes=config.buffer_bytes,
        )
        self.admission: Admission | None = None
        self.fast: PublicLane | None = None
        self._slots = Slots(config.max_handshakes, wait_seconds=config.queue_seconds)
        self._drain_asked = trio.Event()
        self._lameduck = trio.CancelScope()
        self._lameduck_seconds = config.lameduck_seconds
        self._goodbye = trio.CancelScope()
        self._grace = trio.CancelScope()
        self._close_code = CLOSE_RESTART
        self._grace_seconds = config.drain_seconds
        self._background: trio.Nursery | None = None
        self._closing = trio.CapacityLimiter(_CLOSING_AT_ONCE)
        self._departures = Drain(self._attend, grace=config.drain_seconds)

    @property
    def streams_fast(self) -> int:
        """Exchanges under way on the fast lane."""
        return 0 if self.fast is None else len(self.fast)

    @property
    def handshakes(self) -> int:
        """Agents that are not in yet: reading their head, being authenticated, answered."""
        return self._slots.taken

    @property
    def draining(self) -> bool:
        """Whether it was told to end."""
        return self._drain_asked.is_set()

    def drain(self) -> None:
        """As SIGTERM: end in order, agents are told 1012 (restart).

        Returns at once. Each further call ends the wait that is under way: the lame-duck time, then the grace.
        """
        self._ask(CLOSE_RESTART, self.config.drain_seconds, self.config.lameduck_seconds)

    def interrupt(self) -> None:
        """As SIGINT: the same at once and with a short grace, agents are told 1001 (shutdown)."""
        self._ask(CLOSE_SHUTDOWN, self.config.interrupt_grace, 0.0)

    def _ask(self, code: int, grace: float, lameduck: float) -> None:
        if self._drain_asked.is_set():
            if self._lameduck_seconds:
                self._lameduck_seconds = 0.0
                self._lameduck.cancel()
            else:
                self._goodbye.cancel()
                self._grace.cancel()
            return
        self._close_code, self._grace_seconds, self._lameduck_seconds = code, grace, lameduck
        self._drain_asked.set()

    async def run(self, *, task_status: trio.TaskStatus[Ports] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until drained. Tells its ports through `task_status` once both are served."""
        config = self.config
        control = ControlPlane(config.api_url, config.secrets[0], call_seconds=config.call_seconds)
        outbox = EventQueue(control, config.node, self._log)
        self.metrics.outbox = outbox
        heart = HeartbeatLoop(
            control,
            self.sessions,
            self.metrics,
            self._log,
            interval=config.heartbeat_seconds,
            patience=config.call_seconds,
            describe=self._describe,
        )
        self.metrics.heart = heart

        def abandoned(asked: Credential, admitted: Admitted) -> None:
            outbox.put(never_connected(identity_of(asked, admitted), "lost"))

        admission = Admission(
            control,
            config.node,
            self._log,
            limit=config.max_handshakes,
            seconds=config.admit_seconds,
            on_abandoned=abandoned,
            on_unsure=lambda: heart.beat_soon(full=True),
        )
        self.admission = admission
        arrivals = PendingHandshakes()
        sockets = connections_possible()
        room = ConnectionLimit(
            config.max_sessions + 10 * config.max_handshakes,
            sockets,
            elsewhere=lambda: internal_port.connections,
            trusts=TrustedProxies(config.trusted_proxies).trusts,
        )
        self.metrics.room = room
        fast = PublicLane(
            config,
            control=control,
            sessions=self.sessions,
            arrivals=arrivals,
            log=self._log,
            full=lambda: self.switch.over_budget,
            room=room,
        )
        fast.node_url = self.node_url
        remote = PeerUpstreams(config.secrets[0], open_seconds=config.open_seconds)
        fast.remote = remote
        self.fast = fast
        hands = None
        if config.family is not None and AVAILABLE:
            hands = fast.hands = FdPassing(config.family, self._log)
        self.switch.shed = fast.shed
        self.metrics.fast = fast
        shares = SharedStreams(fast, self._log, events=config.share_events)
        fast.share = shares.take_over
        fast.plain = shares.plain_until
        self.metrics.shares = shares
        watchdog = Watchdog()
        listener = Listener(
            config,
            admission=admission,
            sessions=self.sessions,
            arrivals=arrivals,
            outbox=outbox,
            control=control,
            metrics=self.metrics,
            log=self._log,
            spawn=self._spawn,
            handed_over=self._departures.handed_over,
            fast=fast,
            watchdog=watchdog,
            room=room,
        )
        listener.node_url = self.node_url
        internal = InternalApi(
            config,
            sessions=self.sessions,
            arrivals=arrivals,
            switch=self.switch,
            metrics=self.metrics,
            drain=self.drain,
            handed_over=self._departures.handed_over,
            fast=fast,
        )
        public = self._public(listener, room)
        internal_port = self._internal(internal, sockets)
        async with control, trio.open_nursery() as background:
            self._background = background
            background.start_soon(self._log.run)
            background.start_soon(outbox.run)
            background.start_soon(admission.run)
            background.start_soon(remote.run)
            background.start_soon(watchdog.run)
            async with trio.open_nursery() as sessions, trio.open_nursery() as accepting:
                await sessions.start(fast.run)
                accepting.start_soon(public.run, sessions)
                accepting.start_soon(internal_port.run, sessions)
                if hands is not None:
                    accepting.start_soon(hands.run, partial(_adopt, public, listener))
                accepting.start_soon(heart.run)
                accepting.start_soon(self.switch.watch, self.sessions.all)
                accepting.start_soon(self._departures.watch, self.sessions.all)
                self._log.info(
                    "listening",
                    public=f"{config.public_host}:{self._ports.public_port}",
                    internal=f"{config.internal_host}:{self._ports.internal_port}",
                    url=self.node_url,
                    role=config.role,
                    version=self._version,
                )
                task_status.started(self._ports)
                await self._drain_asked.wait()
                await self._be_lameduck()
                await self._end(heart, listener, public)
                accepting.cancel_scope.cancel()
                sessions.cancel_scope.cancel()
            left = await outbox.flush(_FLUSH_SECONDS)
            self._log.info("stopped", events_lost=left)
            background.cancel_scope.cancel()

    async def _be_lameduck(self) -> None:
        """Not ready, but everything is taken still: load balancers learn late that they are to go elsewhere."""
        self.metrics.leaving = True
        if self._lameduck_seconds:
            self._log.info("lameduck", seconds=self._lameduck_seconds)
            with self._lameduck:
                await trio.sleep(self._lameduck_seconds)
            self._lameduck_seconds = 0.0

    async def _end(self, heart: HeartbeatLoop, listener: Listener, public: HttpServer) -> None:
        # 1. Django sends nothing more either; what comes all the same is refused, or passed on to the daemon that has
        # the device by then.
        self.metrics.draining = True
        with self._goodbye:
            await heart.say_goodbye(_GOODBYE_SECONDS)
        streams = len(self.switch) + self.streams_fast
        self._log.info("draining", sessions=len(self.sessions), streams=streams, grace=self._grace_seconds)
        # 2. The public port is closed: agents and clients come to another daemon from now on.
        if self.fast is not None:
            self.fast.drain()
            if self.fast.hands is not None:
                self.fast.hands.close()
        public.close()
        # 3. Agents are told to go, a few at a time. What is in flight finishes, and a tunnel is closed when its streams
        # have: an agent that is closed earlier would lose them. A second signal cuts it short.
        reason = "restart" if self._close_code == CLOSE_RESTART else "shutdown"
        self._grace.deadline = trio.current_time() + self._grace_seconds
        with self._grace:
            await self._departures.all(
                self.sessions.all(), code=self._close_code, reason=reason, grace=self._grace_seconds
            )
            await self.switch.wait_empty()
            if self.fast is not None:
                await self.fast.wait_empty()
        # 4. Whoever is left.
        for session in self.sessions.all():
            session.close(self._close_code, reason)
        with trio.move_on_after(_CLOSE_SECONDS):
            await listener.wait_empty()
        self._log.info("drained", cut=len(self.switch) + self.streams_fast, sessions_left=len(self.sessions))

    def _spawn(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Background work that a decision started: closing a session, here or elsewhere; bounded in number."""
        if self._background is not None:
            self._background.start_soon(self._limited, work, *args)

    def _attend(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """The same for what mostly waits, once a session: it takes no turn from those that close."""
        if self._background is not None:
            self._background.start_soon(self._guarded, work, *args)

    async def _limited(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        async with self._closing:
            await self._guarded(work, *args)

    async def _guarded(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        try:
            await work(*args)
        except Exception as error:  # noqa: BLE001 - the background must not die of one session
            self._log.error("background_crashed", work=getattr(work, "__qualname__", ""), error=repr(error))

    def _public(self, listener: Listener, room: ConnectionLimit) -> HttpServer:
        config = self.config
        return HttpServer(
            self._ports.public,
            listener.serve,
            self._log,
            name="public",
            slots=self._slots,
            head_seconds=config.head_seconds,
            max_connections=config.max_sessions + 10 * config.max_handshakes,
            room=room,
            ours=HSTS if config.hsts else (),
        )

    def _internal(self, internal: InternalApi, sockets: int) -> HttpServer:
        config = self.config
        return HttpServer(
            self._ports.internal,
            internal.serve,
            self._log,
            name="internal",
            slots=Slots(config.max_internal, wait_seconds=config.queue_seconds),
            head_seconds=config.head_seconds,
            max_connections=min(config.max_internal + 1024, sockets // 2),
        )

    def _describe(self) -> HeartbeatMessage:
        return HeartbeatMessage(
            node=self.config.node,
            url=self.node_url,
            version=self._version,
            started_at=self._started_at,
            sessions_count=len(self.sessions),
            digest=self.sessions.digest,
            streams_count=len(self.switch) + self.streams_fast,
            draining=self.metrics.draining,
            sessions=None,
        )
