"""The daemon put together: who runs in which nursery, in which order it starts, and in which order it ends.

Three nurseries, outermost first. `background`: what must outlive the tunnels (log, events, admission, the tunnels'
watchdog). `sessions`: the connections of both ports. `accepting`: the two accept loops, heartbeat, the switch's
watchdog. Closing: docs/closing.md.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from typing import Final

import trio

from tunnel.contract import CLOSE_RESTART, CLOSE_SHUTDOWN
from tunnel.contract import Heartbeat as HeartbeatMessage
from tunnel.daemon.agents.session import rfc3339
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.http.accept import HttpServer
from tunnel.daemon.lane.fd_passing import PassedConnection
from tunnel.daemon.ports import Ports
from tunnel.daemon.public import Listener
from tunnel.daemon.wiring import wire
from tunnel.logs import JsonLog

_CLOSE_SECONDS: Final = 5.0  # for all sessions to say goodbye
_GOODBYE_SECONDS: Final = 3.0  # for Django to learn of the drain before anybody is turned away
_FLUSH_SECONDS: Final = 3.0  # to tell Django how they ended


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
        self._drain_asked = trio.Event()
        self._lameduck = trio.CancelScope()
        self._lameduck_seconds = config.lameduck_seconds
        self._goodbye = trio.CancelScope()
        self._grace = trio.CancelScope()
        self._close_code = CLOSE_RESTART
        self._grace_seconds = config.drain_seconds
        self.parts = wire(config, ports, log, describe=self._describe, drain=self.drain)

    @property
    def streams_fast(self) -> int:
        """Exchanges under way on the fast lane."""
        return len(self.parts.lane)

    @property
    def handshakes(self) -> int:
        """Agents that are not in yet: reading their head, being authenticated, answered."""
        return self.parts.slots.taken

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
        parts = self.parts
        async with parts.control, trio.open_nursery() as outer:
            outer.start_soon(self._log.run)
            outer.start_soon(parts.events.run)
            outer.start_soon(parts.admission.run)
            outer.start_soon(parts.peers.run)
            outer.start_soon(parts.watchdog.run)
            await outer.start(parts.background.run)
            async with trio.open_nursery() as sessions, trio.open_nursery() as accepting:
                await sessions.start(parts.exchanges.run)
                sessions.start_soon(parts.lane.run)
                self._accept(accepting, sessions)
                self._tell_that_it_listens()
                task_status.started(self._ports)
                await self._drain_asked.wait()
                await self._be_lameduck()
                await self._end()
                accepting.cancel_scope.cancel()
                sessions.cancel_scope.cancel()
            left = await parts.events.flush(_FLUSH_SECONDS)
            self._log.info("stopped", events_lost=left)
            outer.cancel_scope.cancel()

    def _accept(self, accepting: trio.Nursery, sessions: trio.Nursery) -> None:
        """Start what lets work in, in `accepting`; connections are tasks of `sessions`."""
        parts = self.parts
        accepting.start_soon(parts.public.run, sessions)
        accepting.start_soon(parts.internal.run, sessions)
        if parts.fd_passing is not None:
            accepting.start_soon(parts.fd_passing.run, partial(_adopt, parts.public, parts.listener))
        accepting.start_soon(parts.heartbeat.run)
        accepting.start_soon(parts.relay.watch, parts.sessions.all, parts.lane.shed)
        accepting.start_soon(parts.drain.watch, parts.sessions.all)

    def _tell_that_it_listens(self) -> None:
        config = self.config
        self._log.info(
            "listening",
            public=f"{config.public_host}:{self._ports.public_port}",
            internal=f"{config.internal_host}:{self._ports.internal_port}",
            url=self.node_url,
            role=config.role,
            version=self._version,
        )

    async def _be_lameduck(self) -> None:
        """Not ready, but everything is taken still: load balancers learn late that they are to go elsewhere."""
        self.parts.metrics.leaving = True
        if self._lameduck_seconds:
            self._log.info("lameduck", seconds=self._lameduck_seconds)
            with self._lameduck:
                await trio.sleep(self._lameduck_seconds)
            self._lameduck_seconds = 0.0

    async def _end(self) -> None:
        parts = self.parts
        # 1. Django sends nothing more either; what comes all the same is refused, or passed on to the daemon that has
        # the device by then.
        parts.metrics.draining = True
        with self._goodbye:
            await parts.heartbeat.say_goodbye(_GOODBYE_SECONDS)
        streams = len(parts.relay) + self.streams_fast
        self._log.info("draining", sessions=len(parts.sessions), streams=streams, grace=self._grace_seconds)
        # 2. The public port is closed: agents and clients come to another daemon from now on.
        parts.lane.drain()
        if parts.fd_passing is not None:
            parts.fd_passing.close()
        parts.public.close()
        # 3. Agents are told to go, a few at a time. What is in flight finishes, and a tunnel is closed when its streams
        # have: an agent that is closed earlier would lose them. A second signal cuts it short.
        reason = "restart" if self._close_code == CLOSE_RESTART else "shutdown"
        self._grace.deadline = trio.current_time() + self._grace_seconds
        with self._grace:
            await parts.drain.all(parts.sessions.all(), code=self._close_code, reason=reason, grace=self._grace_seconds)
            await parts.relay.wait_empty()
            await parts.lane.wait_empty()
        # 4. Whoever is left.
        for session in parts.sessions.all():
            session.close(self._close_code, reason)
        with trio.move_on_after(_CLOSE_SECONDS):
            await parts.listener.wait_empty()
        self._log.info("drained", cut=len(parts.relay) + self.streams_fast, sessions_left=len(parts.sessions))

    def _describe(self) -> HeartbeatMessage:
        return HeartbeatMessage(
            node=self.config.node,
            url=self.node_url,
            version=self._version,
            started_at=self._started_at,
            sessions_count=len(self.parts.sessions),
            digest=self.parts.sessions.digest,
            streams_count=len(self.parts.relay) + self.streams_fast,
            draining=self.parts.metrics.draining,
            sessions=None,
        )
