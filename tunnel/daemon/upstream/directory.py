"""Where a device's session is reached: in this process, or at the daemon that holds it. It knows no clients."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import trio

from tunnel.daemon.agents.handshakes import PendingHandshakes
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.upstream.interfaces import Route, Upstream
from tunnel.daemon.upstream.local import LocalUpstream
from tunnel.http import ProxyError


class DeviceRoute(Route, Protocol):
    """Django's word on where a device is: which admission of it, as which session, at which daemon."""

    @property
    def device_id(self) -> str:
        """The device."""

    @property
    def epoch(self) -> int:
        """The number of its admission: the highest one counts."""


R = TypeVar("R", bound=DeviceRoute)


class UpstreamDirectory(Generic[R]):
    """The ways to boxes.

    Args:
        node_url: the internal URL of this daemon.
        peers: the way to a session that another daemon holds.
        full: whether no new streams may be opened here, for all buffers are full.
        refresh: what Django says now (route, session that is no good, last moment); None: nothing better.
        open_seconds: for a stream to be opened, and for an agent to be in.
    """

    def __init__(
        self,
        sessions: Registry[TunnelSession],
        arrivals: PendingHandshakes,
        *,
        node_url: str,
        peers: Callable[[Route], Upstream],
        full: Callable[[], bool],
        refresh: Callable[[R, str, float], Awaitable[R | None]],
        open_seconds: float,
    ) -> None:
        self._sessions = sessions
        self._arrivals = arrivals
        self._node_url = node_url
        self._peers = peers
        self._full = full
        self._refresh = refresh
        self._open_seconds = open_seconds
        self._local: dict[TunnelSession, LocalUpstream] = {}

    def __repr__(self) -> str:
        return f"<UpstreamDirectory local={len(self._local)}>"

    def locals(self) -> list[LocalUpstream]:
        """The ways to sessions of this process that were gone so far."""
        return list(self._local.values())

    def here(self, route: R) -> LocalUpstream | None:
        """The way to the device's session, if it is here, the one that counts, and the one that the route is about."""
        session = self._sessions.of_device(route.device_id)
        if session is None or session.identity.epoch != route.epoch or session.leaving or session.closing:
            return None
        return self._local_of(session)

    def reach(self, route: R) -> Upstream | None:
        """The way to the device's session, if it counts here or is another daemon's; None: see `wait_reach`."""
        here = self._counting(route)
        if here is None and route.node_url != self._node_url:
            return self._peers(route)
        return here

    async def wait_reach(self, route: R, until: float) -> Upstream:
        """The way to the device's session, wherever it is; by Django's newer word where the route is outdated.

        `until` is the last moment to look for another one. Raises ProxyError TUNNEL_DISCONNECTED.
        """
        while True:
            if route.node_url == self._node_url:
                with trio.move_on_at(min(until, trio.current_time() + self._open_seconds)):
                    await self._arrivals.wait_session(route.session)
            if (upstream := self.reach(route)) is not None:
                return upstream
            fresh = await self._refresh(route, route.session, until)
            if fresh is None:
                raise ProxyError("TUNNEL_DISCONNECTED", "no daemon holds the device's tunnel")
            route = fresh

    async def newer(self, route: R, upstream: Upstream, until: float) -> Upstream | None:
        """The way to a session of the device that came after that of `upstream`, as far as is known here or to Django.

        One on its way is waited for, `until` that moment. Raises ProxyError TUNNEL_DISCONNECTED.
        """
        if (here := self._counting(route)) is not None and here.session != upstream.session:
            return here
        fresh = await self._refresh(route, upstream.session, until)
        found = None if fresh is None else await self.wait_reach(fresh, until)
        return None if found is None or found.session == upstream.session else found

    def close_idle(self) -> None:
        """Close the idle streams of the sessions here."""
        for upstream in self._local.values():
            upstream.close()

    def expire(self) -> None:
        """Close what idled too long, and forget the sessions that have ended."""
        for session, upstream in list(self._local.items()):
            if upstream.over:
                del self._local[session]
            else:
                upstream.expire()

    def _counting(self, route: R) -> LocalUpstream | None:
        """The way to the device's session if it counts here: the route's, or a newer one."""
        session = self._sessions.of_device(route.device_id)
        if session is None or session.closing or session.leaving or session.epoch < route.epoch:
            return None
        return self._local_of(session)

    def _local_of(self, session: TunnelSession) -> LocalUpstream:
        return self._local.get(session) or self._local.setdefault(session, LocalUpstream(session, self._full))
