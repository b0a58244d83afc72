"""All parts of a daemon, built once and in order: whatever a part needs is handed to it, nothing is set afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from tunnel.contract import Admitted, Credential, Heartbeat
from tunnel.daemon.agents.drain import Drain
from tunnel.daemon.agents.handshakes import PendingHandshakes
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import TunnelSession, never_connected
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
from tunnel.daemon.lane.access import Access
from tunnel.daemon.lane.authorizer import Authorizer
from tunnel.daemon.lane.fd_passing import AVAILABLE, FdPassing
from tunnel.daemon.lane.lane import PublicLane
from tunnel.daemon.metrics import Metrics
from tunnel.daemon.ports import Ports
from tunnel.daemon.public import Listener, identity_of
from tunnel.daemon.relay.relay import Relay
from tunnel.daemon.share.shares import SharedStreams
from tunnel.daemon.upstream.directory import UpstreamDirectory
from tunnel.daemon.upstream.remote import PeerUpstreams
from tunnel.http import Limits
from tunnel.logs import JsonLog
from tunnel.net.background import Background
from tunnel.net.descriptors import connections_possible
from tunnel.net.watchdog import Watchdog

_CLOSING_AT_ONCE: Final = 1000


@dataclass(frozen=True, slots=True)
class Parts:
    """What a daemon consists of. `node` starts and ends it."""

    sessions: Registry[TunnelSession]
    metrics: Metrics
    control: ControlPlane
    events: EventQueue
    heartbeat: HeartbeatLoop
    admission: Admission
    relay: Relay
    peers: PeerUpstreams
    fd_passing: FdPassing | None
    room: ConnectionLimit
    lane: PublicLane
    drain: Drain
    watchdog: Watchdog
    listener: Listener
    slots: Slots
    public: HttpServer
    internal: HttpServer
    background: Background
    """What must outlive the tunnels: closing them, here and elsewhere."""
    exchanges: Background
    """What a step of an exchange left over."""


def wire(
    config: TunnelConfig, ports: Ports, log: JsonLog, *, describe: Callable[[], Heartbeat], drain: Callable[[], None]
) -> Parts:
    """Build a daemon's parts. Must be called within Trio.

    Args:
        describe: the heartbeat of this moment, without its list of sessions.
        drain: begins the orderly end.
    """
    node_url = config.url(ports.internal_port)
    sessions: Registry[TunnelSession] = Registry()
    background = Background(partial(_crashed, log, "background_crashed"), most=_CLOSING_AT_ONCE)
    exchanges = Background(partial(_crashed, log, "work_crashed"))
    control = ControlPlane(config.api_url, config.secrets[0], call_seconds=config.call_seconds)
    events = EventQueue(control, config.node, log)
    metrics = Metrics(sessions, lambda: (heartbeat, events, lane, shares, room))
    heartbeat = HeartbeatLoop(
        control,
        sessions,
        metrics,
        log,
        interval=config.heartbeat_seconds,
        patience=config.call_seconds,
        describe=describe,
    )

    def abandoned(asked: Credential, admitted: Admitted) -> None:
        events.put(never_connected(identity_of(asked, admitted), "lost"))

    admission = Admission(
        control,
        config.node,
        log,
        limit=config.max_handshakes,
        seconds=config.admit_seconds,
        on_abandoned=abandoned,
        on_unsure=lambda: heartbeat.beat_soon(full=True),
    )
    relay = Relay(metrics, log, idle_seconds=config.idle_seconds, buffer_bytes=config.buffer_bytes)
    arrivals = PendingHandshakes()
    departures = Drain(background.attend, grace=config.drain_seconds)
    peers = PeerUpstreams(config.secrets[0], open_seconds=config.open_seconds)
    fd_passing = FdPassing(config.family, log) if config.family is not None and AVAILABLE else None
    sockets = connections_possible()
    most = config.max_sessions + 10 * config.max_handshakes
    proxies = TrustedProxies(config.trusted_proxies)
    room = ConnectionLimit(most, sockets, elsewhere=lambda: internal.connections, trusts=proxies.trusts)
    authorizer = Authorizer(control, log, exchanges.spawn, limits=limits_of(config))
    access = Access(config, authorizer, sessions, node_url=node_url)
    upstreams = UpstreamDirectory(
        sessions,
        arrivals,
        node_url=node_url,
        peers=peers,
        full=lambda: relay.over_budget,
        refresh=access.refresh,
        open_seconds=config.open_seconds,
    )
    shares = SharedStreams(exchanges.spawn, log, events=config.share_events)
    lane = PublicLane(
        config,
        access=access,
        upstreams=upstreams,
        proxies=proxies,
        log=log,
        room=room,
        background=exchanges,
        share=shares.take_over,
        plain=shares.plain_until,
        hands=fd_passing,
    )
    watchdog = Watchdog()
    listener = Listener(
        config,
        node_url=node_url,
        admission=admission,
        sessions=sessions,
        arrivals=arrivals,
        outbox=events,
        control=control,
        metrics=metrics,
        log=log,
        spawn=background.spawn,
        handed_over=departures.handed_over,
        fast=lane,
        watchdog=watchdog,
        room=room,
    )
    slots = Slots(config.max_handshakes, wait_seconds=config.queue_seconds)
    public = HttpServer(
        ports.public,
        listener.serve,
        log,
        name="public",
        slots=slots,
        head_seconds=config.head_seconds,
        max_connections=most,
        room=room,
        ours=HSTS if config.hsts else (),
    )
    api = InternalApi(
        config,
        sessions=sessions,
        arrivals=arrivals,
        switch=relay,
        metrics=metrics,
        heartbeat=heartbeat,
        drain=drain,
        handed_over=departures.handed_over,
        fast=lane,
        shares=shares,
    )
    internal = HttpServer(
        ports.internal,
        api.serve,
        log,
        name="internal",
        slots=Slots(config.max_internal, wait_seconds=config.queue_seconds),
        head_seconds=config.head_seconds,
        max_connections=min(config.max_internal + 1024, sockets // 2),
    )
    return Parts(
        sessions=sessions,
        metrics=metrics,
        control=control,
        events=events,
        heartbeat=heartbeat,
        admission=admission,
        relay=relay,
        peers=peers,
        fd_passing=fd_passing,
        room=room,
        lane=lane,
        drain=departures,
        watchdog=watchdog,
        listener=listener,
        slots=slots,
        public=public,
        internal=internal,
        background=background,
        exchanges=exchanges,
    )


def limits_of(config: TunnelConfig) -> Limits:
    """What the exchanges of the public lane go by, where Django's word says nothing else."""
    return Limits(
        request_body=config.body_max,
        open_seconds=config.open_seconds,
        head_seconds=config.answer_seconds,
        idle_seconds=config.exchange_idle_seconds,
        upgraded_idle_seconds=config.upgraded_idle_seconds,
    )


def _crashed(log: JsonLog, event: str, work: str, error: Exception) -> None:
    log.error(event, work=work, error=repr(error))
