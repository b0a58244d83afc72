"""Where a request to a cluster goes, and where next when that fails: one object a request.

It joins who serves the cluster (PostgreSQL), who of them is online (the registry), what they bear (`load`) and the
decision (`dispatch`). It knows no HTTP; whoever carries the request tells it what became of it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Final

import redis.exceptions
import structlog

from apps.clusters import load
from apps.clusters.dispatch import Choice, choose
from apps.clusters.load import Lease, Load
from apps.clusters.selectors import Share, shares_of
from apps.common.errors import DomainError
from apps.devices.selectors import RETRY_OFFLINE_SECONDS
from apps.tunnels import registry
from apps.tunnels.registry import Entry

logger = structlog.get_logger(__name__)

MAX_MOVES: Final = 8
"""How many members a request is offered to at most."""
FAULTS: Final = frozenset(
    {"AGENT_UNREACHABLE", "AGENT_BAD_RESPONSE", "TUNNEL_DISCONNECTED", "TUNNEL_UNAVAILABLE", "TUNNEL_TIMEOUT"}
)
"""What is the member's fault, or its tunnel's. What a box answers is none, whatever its status."""


class Dispatcher:
    """The way of one request. Call `first`, then `next` after each failure, and `over` in any case."""

    def __init__(self, owner_id: uuid.UUID, cluster_id: uuid.UUID) -> None:
        """Raises DomainError NOT_FOUND for a cluster that is not the owner's. One query."""
        self._cluster = str(cluster_id)
        self._shares: Sequence[Share] = shares_of(owner_id, cluster_id)
        self._tried: set[str] = set()
        self._moves = 0
        self._lease: Lease | None = None
        self._moving: Entry | None = None

    def first(self) -> Entry:
        """Who takes the request. Raises DomainError TUNNEL_DISCONNECTED if none is online, and the errors of Redis."""
        found = self._pick() or self._moving  # whoever carries the request waits for that one
        if found is None:
            raise DomainError("TUNNEL_DISCONNECTED", retry_after=RETRY_OFFLINE_SECONDS)
        return found

    def next(self, code: str) -> Entry | None:
        """Who takes it after the last one failed with `code`; None: nobody is left. Raises the errors of Redis.

        Nobody is asked twice, but one who has a new tunnel since.
        """
        self._finish(code)
        return self._pick() if self._moves < MAX_MOVES else None

    def answered(self) -> None:
        """The member began to answer."""
        lease = self._lease
        if lease is not None and lease.probe:
            self._tell(lambda: load.clear(lease))

    def over(self, code: str = "") -> None:
        """The request is over; with an error's code if it failed at the last. Idempotent."""
        self._tell(lambda: self._finish(code))

    def _pick(self) -> Entry | None:
        entries = registry.lookup([share.device_id for share in self._shares], moving=True) if self._shares else {}
        self._moving = next((entry for entry in entries.values() if not entry.session), None)
        unfit = self._tried | {""}
        there = {device: entry for device, entry in entries.items() if entry.session not in unfit}
        shares = [share for share in self._shares if share.device_id in there]
        if not shares:
            return None
        self._lease = load.take(self._cluster, shares, _decide)
        if self._lease is None:
            return None
        found = there[self._lease.device_id]
        self._tried.add(found.session)
        self._moves += 1
        return found

    def _finish(self, code: str) -> None:
        lease, self._lease = self._lease, None
        if lease is None:
            return
        if code in FAULTS:
            load.bench(lease)
            logger.info("member_benched", cluster=self._cluster, device=lease.device_id, code=code)
        load.leave(lease)

    def _tell(self, act: Callable[[], None]) -> None:
        """Counters that cannot be reached cost no request: leases end by themselves."""
        try:
            act()
        except redis.exceptions.RedisError as error:
            logger.warning("load_not_told", cluster=self._cluster, error=type(error).__name__)


def _decide(seen: Load) -> Choice | None:
    return choose(seen.members, time=seen.time, now_ms=seen.now_ms)
