"""Who may, as the public lane asks it: from a request to Django's word on it, kept or asked for."""

from __future__ import annotations

from typing import Final

import trio

from tunnel.contract import AuthorizeRequest
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.lane.authorizer import Authorizer, Grant, key_of_ticket
from tunnel.daemon.lane.refusals import no_upgrade
from tunnel.daemon.lane.route import LaneRequest
from tunnel.http import Limits, ProxyError, Via, outline

_ANY_BODY: Final = Limits(request_body=1 << 62)
"""Before it is known how large a body may be."""


class Access:
    """Grants for the requests of this daemon's public lane. `node_url` is its internal URL."""

    def __init__(
        self, config: TunnelConfig, authorizer: Authorizer, sessions: Registry[TunnelSession], *, node_url: str
    ) -> None:
        self._node = config.node
        self._node_url = node_url
        self._open_seconds = config.open_seconds
        self._drain_seconds = config.drain_seconds
        self._sessions = sessions
        self._draining = False
        self.authorizer = authorizer

    def __repr__(self) -> str:
        return f"<Access {'draining ' if self._draining else ''}{self.authorizer!r}>"

    def drain(self) -> None:
        """From now on others have the devices of this daemon."""
        self._draining = True

    @property
    def patience(self) -> float:
        """Seconds to wait for a device that moves; while we drain no longer than its client can be told."""
        seconds = self._open_seconds
        return min(seconds, self._drain_seconds / 2) if self._draining else seconds

    def kept(self, asked: LaneRequest) -> Grant | None:
        """The grant that is kept for a request, if nobody need be asked."""
        if not asked.key:
            return None
        grant = self.authorizer.kept(asked.key)
        if grant is None or trio.current_time() >= grant.refresh_at or self._outdated(grant):
            return None
        return grant

    async def grant(self, asked: LaneRequest, *, address: str, request_id: str) -> Grant:
        """The grant for a request of a client at `address`, asked for if need be. Raises ProxyError."""
        authorizer = self.authorizer
        question = asked.request(self._node, address, request_id)
        if asked.kind == b"ticket" and not asked.lacks_upgrade:
            await self._check_before_spending(asked, question)
        if asked.kind == b"ticket":
            grant = authorizer.kept(key_of_ticket(question))
        else:
            grant = authorizer.kept(asked.key, question) if asked.key else None
        if grant is None or self._outdated(grant):
            if not asked.lacks_upgrade:
                grant = await authorizer.settled(asked.key, question, seconds=self.patience)
            else:  # /ws/* without an upgrade: a ticket is not spent for that
                if asked.kind != b"ticket":
                    await authorizer.ask(asked.key, question)
                raise no_upgrade(asked.head.method)
        return grant

    async def _check_before_spending(self, asked: LaneRequest, question: AuthorizeRequest) -> None:
        """Raise ProxyError for what no box will be asked: it spends no ticket, and who may not is told that first."""
        try:
            outline(asked.head, Via("http", "", "", mount=asked.mount, upgrade=asked.upgrade), _ANY_BODY)
        except ProxyError:
            await self.authorizer.ask(asked.key, {**question, "spend": False})
            raise

    async def refresh(self, grant: Grant, than: str, until: float) -> Grant | None:
        """What Django says now about the same caller; None: nothing better than session `than` is known."""
        seconds = until - trio.current_time()
        if seconds <= 0:
            return None
        self.authorizer.forget(grant)
        leaving = self._node_url if self._draining else ""
        try:
            new = await self.authorizer.settled(grant.key, grant.again, seconds=seconds, than=than, leaving=leaving)
        except ProxyError:
            return None  # what was wrong with the way tells the client more
        return None if new.session == than else new

    def _outdated(self, grant: Grant) -> bool:
        """The device was admitted anew since: it may be somebody else's by now."""
        session = self._sessions.of_device(grant.device_id)
        return session is not None and session.epoch > grant.epoch
