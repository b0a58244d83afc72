"""Closing tunnels: by the daemon's internal API at once, and by the next heartbeat if that fails."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import structlog

from apps.common.errors import DomainError
from apps.tunnels import daemon, registry
from apps.tunnels.registry import Held

logger = structlog.get_logger(__name__)

CLOSE_BUDGET_SECONDS: Final = 1.5
"""How long a caller waits for daemons to close at once; what is left is closed by their next heartbeats."""
PENDING_AT_ONCE: Final = 32
"""How many closes of a node one run of the worker tries directly."""
_CALLS_AT_ONCE: Final = 8


def end_devices(epochs: Mapping[str, int], *, code: int, reason: str, request_id: str = "") -> int:
    """Take devices (id → epoch) offline for good up to that epoch and close their tunnels.

    Returns how many tunnels were left to a heartbeat. Raises the errors of Redis.
    """
    held = registry.end(epochs)
    return close(held, code=code, reason=reason, request_id=request_id)


def close(held: Sequence[Held], *, code: int, reason: str, request_id: str = "") -> int:
    """Close sessions where they are, within CLOSE_BUDGET_SECONDS. Returns how many were left to a heartbeat.

    The registry is not touched: a session that is closed is taken out by the daemon's own event. Raises the errors of
    Redis.
    """
    registry.request_close(held, code=code, reason=reason)
    reachable = [item for item in held if item.node_url]
    if not reachable:
        return len(held)
    if len(reachable) == 1:
        done = int(_close_one(reachable[0], code, reason, request_id))
        return len(held) - done
    deadline = time.monotonic() + CLOSE_BUDGET_SECONDS
    executor = ThreadPoolExecutor(min(_CALLS_AT_ONCE, len(reachable)), thread_name_prefix="close")
    try:
        calls = [executor.submit(_close_one, item, code, reason, request_id) for item in reachable]
        done = 0
        for call in calls:
            try:
                done += call.result(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                break
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    return len(held) - done


def _close_one(item: Held, code: int, reason: str, request_id: str) -> bool:
    try:
        closed = daemon.close_session(item.node_url, item.session, code, reason, request_id=request_id)
    except DomainError as error:
        logger.warning("tunnel_close_deferred", node=item.node, session=item.session, code=error.code)
        return False
    if closed:
        registry.forget_close(item.node, item.session)
    return closed  # not known there: gone, or its agent is still shaking hands, which the next heartbeat will tell


def close_pending(*, request_id: str = "") -> int:
    """Try again, directly, the closes that wait for a heartbeat. Returns how many were carried out."""
    done = 0
    for node in registry.nodes():
        for pending in registry.pending_closes(node.node)[:PENDING_AT_ONCE]:
            held = Held("", node.node, pending.session, node.url)
            done += int(_close_one(held, pending.code, pending.reason, request_id))
    return done


def close_user(user_id: str, *, code: int, reason: str, request_id: str = "") -> int:
    """Close every tunnel of a user's devices. Returns how many were left to a heartbeat. Raises the errors of Redis."""
    online = registry.lookup_user(user_id)
    return end_devices(
        {device: entry.epoch for device, entry in online.items()}, code=code, reason=reason, request_id=request_id
    )
