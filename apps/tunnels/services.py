"""Closing tunnels, and ending what was authorised: by the daemons' internal API at once.

A tunnel that could not be closed now is closed by the next heartbeat; an authorisation that could not be dropped ends
by itself within `VISIONA_AUTHORIZE_SECONDS`, for a daemon then asks anew.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Final

import redis.exceptions
import structlog

from apps.common.errors import DomainError
from apps.tunnels import daemon, registry
from apps.tunnels.registry import Entry, Held
from tunnel.contract import Invalidate

_Call = Callable[[], bool]
logger = structlog.get_logger(__name__)

CLOSE_BUDGET_SECONDS: Final = 1.5
"""How long a caller waits for daemons to close at once; what is left is closed by their next heartbeats."""
PENDING_AT_ONCE: Final = 32
"""How many closes of a node one run of the worker tries directly."""
INVALIDATE_BUDGET_SECONDS: Final = 1.0
"""How long a caller waits for daemons to drop authorisations; their time to live covers the rest."""
PING_SECONDS: Final = 2.0
"""Seconds that an agent has for a sign of life (data.md, "Redeeming a pairing token")."""
PINGS_AT_ONCE: Final = 32
"""Agents that one call pings at most; others count as not asked, since the call, which admits agents, has to end."""
_CALLS_AT_ONCE: Final = 8
"""Calls that run at once to one daemon."""
_THREADS: Final = 64


def end_devices(epochs: Mapping[str, int], *, code: int, reason: str, request_id: str = "") -> int:
    """Take devices (id → epoch) offline for good up to that epoch and close their tunnels.

    Returns how many tunnels were left to a heartbeat. Raises the errors of Redis.
    """
    return _end(epochs, users=(), code=code, reason=reason, request_id=request_id)


def epochs_to_end(epochs: Mapping[str, int]) -> dict[str, int]:
    """Device → the epoch up to which it ends: the table's, or the registry's where the table has lost some.

    Called under the devices' locks, under which admissions raise them. Without Redis the table's own: what it does not
    end, the worker and the heartbeats find.
    """
    try:
        known = registry.epochs(epochs)
    except redis.exceptions.RedisError:
        known = {}
    return {device: max(epoch, known.get(device, 0)) for device, epoch in epochs.items()}


def _end(epochs: Mapping[str, int], *, users: Sequence[str], code: int, reason: str, request_id: str) -> int:
    held = registry.end(epochs)
    drops = _invalidations(Invalidate(users=list(users), logins=[], devices=list(epochs)), request_id)
    return _close(held, code, reason, request_id, beside=drops)


def close(held: Sequence[Held], *, code: int, reason: str, request_id: str = "") -> int:
    """Close sessions where they are, within CLOSE_BUDGET_SECONDS. Returns how many were left to a heartbeat.

    The registry is not touched: a session that is closed is taken out by the daemon's own event. Raises the errors of
    Redis.
    """
    return _close(held, code, reason, request_id, beside=())


def _close(
    held: Sequence[Held], code: int, reason: str, request_id: str, *, beside: Sequence[tuple[str, _Call]]
) -> int:
    """As `close`. `beside` are further calls, made in the same time."""
    registry.request_close(held, code=code, reason=reason)
    reachable = [item for item in held if item.node_url]
    calls = [(item.node_url, partial(_close_one, item, code, reason, request_id)) for item in reachable]
    return len(held) - sum(_all_at_once([*beside, *calls], CLOSE_BUDGET_SECONDS)[len(beside) :])


def ping(entries: Sequence[Entry]) -> dict[str, bool | None]:
    """Session → whether its agent gives a sign of life; None where its daemon could not be asked, or cannot ask.

    All at once, PING_SECONDS and a moment in all.
    """
    asked = entries[:PINGS_AT_ONCE]
    if not asked:
        return {}
    executor = ThreadPoolExecutor(len(asked), thread_name_prefix="pings")
    try:
        running = {entry.session: executor.submit(_ping_one, entry) for entry in asked}
        wait(running.values(), timeout=PING_SECONDS + CLOSE_BUDGET_SECONDS)
        return {session: each.result() if each.done() else None for session, each in running.items()}
    finally:
        executor.shutdown(wait=False, cancel_futures=True)


def _ping_one(entry: Entry) -> bool | None:
    try:
        return daemon.ping(entry.node_url, entry.session, seconds=PING_SECONDS)
    except DomainError as error:
        logger.warning("ping_not_possible", node=entry.node, session=entry.session, code=error.code)
        return None


def invalidate(
    *, users: Sequence[str] = (), logins: Sequence[str] = (), devices: Sequence[str] = (), request_id: str = ""
) -> int:
    """Have every live daemon drop what it keeps of these users, logins (token hashes) and devices, and end its streams.

    Call it after the commit, or the daemons would ask and be told the old answer. Returns how many daemons did so.
    Raises the errors of Redis.
    """
    what = Invalidate(users=list(users), logins=list(logins), devices=list(devices))
    return sum(_all_at_once(_invalidations(what, request_id), INVALIDATE_BUDGET_SECONDS))


def _invalidations(what: Invalidate, request_id: str) -> list[tuple[str, _Call]]:
    if not any((what["users"], what["logins"], what["devices"])):
        return []
    return [(node.url, partial(_invalidate_one, node.url, what, request_id)) for node in registry.nodes()]


def _invalidate_one(node_url: str, what: Invalidate, request_id: str) -> bool:
    try:
        return daemon.invalidate(node_url, what, request_id=request_id)
    except DomainError as error:
        logger.warning("invalidate_left_to_expiry", node_url=node_url, code=error.code)
        return False


def _all_at_once(calls: Sequence[tuple[str, _Call]], budget: float) -> list[bool]:
    """Run bounded calls, each with the URL of its daemon, in parallel for `budget` seconds; which were done by then.

    Each daemon has threads of its own: calls to one that does not answer keep none to another waiting. What is not
    begun in time is not done. A single call runs here.
    """
    if len(calls) <= 1:
        return [call() for _, call in calls]
    done, over = [False] * len(calls), threading.Event()

    def work(lane: Sequence[int]) -> None:
        for index in lane:
            if over.is_set():
                return
            done[index] = calls[index][1]()

    lanes = _lanes([node_url for node_url, _ in calls])
    executor = ThreadPoolExecutor(min(_THREADS, len(lanes)), thread_name_prefix="daemons")
    try:
        running = [executor.submit(work, lane) for lane in lanes]
        for each in wait(running, timeout=budget).done:
            each.result()
        return list(done)
    finally:
        over.set()
        executor.shutdown(wait=False, cancel_futures=True)


def _lanes(nodes: Sequence[str]) -> list[list[int]]:
    """Places in the list, by what runs one after another: _CALLS_AT_ONCE lanes a node, the first of each node first."""
    by_node: dict[str, list[int]] = {}
    for index, node_url in enumerate(nodes):
        by_node.setdefault(node_url, []).append(index)
    lanes = [mine[start::_CALLS_AT_ONCE] for start in range(_CALLS_AT_ONCE) for mine in by_node.values()]
    return [lane for lane in lanes if lane]


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
    """Try again, directly, the closes that wait for a heartbeat. Returns how many were carried out.

    In CLOSE_BUDGET_SECONDS in all: this is a job of every five seconds, and places for jobs are few.
    """
    calls = []
    for node in registry.nodes():
        for pending in registry.pending_closes(node.node)[:PENDING_AT_ONCE]:
            held = Held("", node.node, pending.session, node.url)
            calls.append((node.url, partial(_close_one, held, pending.code, pending.reason, request_id)))
    return sum(_all_at_once(calls, CLOSE_BUDGET_SECONDS))


def close_user(user_id: str, *, code: int, reason: str, request_id: str = "") -> int:
    """Close every tunnel of a user's devices, and end what the user was authorised for.

    Returns how many tunnels were left to a heartbeat. Raises the errors of Redis.
    """
    online = registry.lookup_user(user_id)
    epochs = {device: entry.epoch for device, entry in online.items()}
    return _end(epochs, users=[user_id], code=code, reason=reason, request_id=request_id)
