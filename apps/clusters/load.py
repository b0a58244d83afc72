"""What the members of clusters bear, shared by all processes through Redis (Redis or Valkey 7).

Keys below the prefix `{visiona}:cluster:` (times in Unix ms, by Redis' own clock: those of the hosts may differ)
  `out:<device>`     sorted set, lease → when it ends: the requests under way at a device, of whatever cluster
  `health:<device>`  hash of f(ailures in a row), u(ntil when it is benched); ends 10 minutes after its last failure
  `queue:<cluster>`  hash of time, v(ersion), and `tag:<device>` of each member (`apps.clusters.dispatch`)

A process renews the leases of what it carries every few seconds; those of one that was killed end by themselves. What
was read is decided upon outside (`dispatch.choose`) and taken only if the queue has not moved meanwhile.

The driver's errors (`redis.exceptions`) pass: `apps.common` maps them to 503.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from apps.clusters.dispatch import PROBE_MS, Choice, Member, bench_ms
from apps.clusters.selectors import Share
from apps.common import redis
from apps.common.redis import scripts

PREFIX: Final = redis.TAGGED + "cluster:"
LEASE_MS: Final = 15_000
"""How long a request counts after its process was last heard of; renewed every 2 s (`apps.proxy.exchanges.engine`)."""
HEALTH_SECONDS: Final = 600
QUEUE_SECONDS: Final = 3_600
_TRIES: Final = 4
"""How often a choice is made anew because another process was quicker; then it is taken as it is."""
_BENCHES: Final = tuple(bench_ms(failures) for failures in range(1, 7))

_CLOCK: Final = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
"""
"""Ahead of each script."""

# ARGV: cluster, devices … Answers time, version, now, then outstanding, tag, failures, benched until of each.
_LOOK: Final = """
local P = KEYS[1]
local queue = P .. 'queue:' .. ARGV[1]
local answer = redis.call('HMGET', queue, 'time', 'v')
answer[3] = now
for i = 2, #ARGV do
  local out = P .. 'out:' .. ARGV[i]
  redis.call('ZREMRANGEBYSCORE', out, '-inf', now)
  local health = redis.call('HMGET', P .. 'health:' .. ARGV[i], 'f', 'u')
  answer[#answer + 1] = redis.call('ZCARD', out)
  answer[#answer + 1] = redis.call('HGET', queue, 'tag:' .. ARGV[i])
  answer[#answer + 1] = health[1]
  answer[#answer + 1] = health[2]
end
return answer
"""

# ARGV: cluster, version seen (empty: whatever it is), device, lease, start, tag, ms that a probe may take (0: it is
# none), seconds that the queue is kept, ms that a lease lasts. Answers 1, or 0 if the queue has moved.
_TAKE: Final = """
local P = KEYS[1]
local queue, out = P .. 'queue:' .. ARGV[1], P .. 'out:' .. ARGV[3]
if ARGV[2] ~= '' and (redis.call('HGET', queue, 'v') or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', queue, 'time', ARGV[5], 'tag:' .. ARGV[3], ARGV[6])
redis.call('HINCRBY', queue, 'v', 1)
redis.call('EXPIRE', queue, ARGV[8])
redis.call('ZADD', out, now + ARGV[9], ARGV[4])
redis.call('PEXPIRE', out, 2 * ARGV[9])
local health = P .. 'health:' .. ARGV[3]
if ARGV[7] ~= '0' and redis.call('EXISTS', health) == 1 then redis.call('HSET', health, 'u', now + ARGV[7]) end
return 1
"""

# ARGV: ms that a lease lasts, then device, lease of each.
_RENEW: Final = """
for i = 2, #ARGV, 2 do
  local out = KEYS[1] .. 'out:' .. ARGV[i]
  redis.call('ZADD', out, now + ARGV[1], ARGV[i + 1])
  redis.call('PEXPIRE', out, 2 * ARGV[1])
end
"""

# ARGV: device, lease. The request is over; or, without a lease, a probe went well.
_LEAVE: Final = "return redis.call('ZREM', KEYS[1] .. 'out:' .. ARGV[1], ARGV[2])"

# ARGV: device, 1 for a probe, seconds to keep it, then the benches. Of requests that fail together one counts.
_BENCH: Final = """
local health = KEYS[1] .. 'health:' .. ARGV[1]
local till = tonumber(redis.call('HGET', health, 'u') or '0')
if till > now and ARGV[2] == '0' then return 0 end
local failures = redis.call('HINCRBY', health, 'f', 1)
redis.call('HSET', health, 'u', now + ARGV[3 + math.min(failures, #ARGV - 3)])
redis.call('EXPIRE', health, ARGV[3])
return failures
"""


@dataclass(frozen=True, slots=True)
class Lease:
    """A request that is counted at a device."""

    device_id: str
    name: str
    probe: bool


@dataclass(frozen=True, slots=True)
class Load:
    """What was read: the members, the queue's time, and its version. `now_ms` is Redis' time then, in Unix ms."""

    members: tuple[Member, ...]
    time: float
    version: str
    now_ms: int


def _run(source: str, *args: str | float) -> Any:
    return scripts.run(_CLOCK + source, [PREFIX], args)


def look(cluster_id: str, shares: Sequence[Share]) -> Load:
    """What the devices of `shares` bear. One call to Redis."""
    answer = _run(_LOOK, cluster_id, *(share.device_id for share in shares))
    members = []
    for index, share in enumerate(shares):
        out, tag, failures, until = answer[3 + 4 * index : 7 + 4 * index]
        members.append(
            Member(share.device_id, share.weight, int(out), float(tag or 0), int(failures or 0), int(until or 0))
        )
    return Load(tuple(members), float(answer[0] or 0), answer[1] or "0", int(answer[2]))


def take(cluster_id: str, shares: Sequence[Share], decide: Callable[[Load], Choice | None]) -> Lease | None:
    """Let `decide` choose from what the members bear, and count the request there.

    None if it chose nobody. Two calls to Redis, two more each time that another process was quicker.
    """
    for left in reversed(range(_TRIES)):
        load = look(cluster_id, shares)
        choice = decide(load)
        if choice is None:
            return None
        lease = Lease(choice.device_id, secrets.token_hex(8), choice.probe)
        taken = _run(
            _TAKE,
            cluster_id,
            load.version if left else "",
            lease.device_id,
            lease.name,
            repr(choice.start),
            repr(choice.tag),
            PROBE_MS if choice.probe else 0,
            QUEUE_SECONDS,
            LEASE_MS,
        )
        if taken:
            leases.add(lease)
            return lease
    return None


def leave(lease: Lease) -> None:
    """The request is over."""
    leases.discard(lease)
    _run(_LEAVE, lease.device_id, lease.name)


def bench(lease: Lease) -> None:
    """The member failed: it is left out for a while."""
    _run(_BENCH, lease.device_id, int(lease.probe), HEALTH_SECONDS, *_BENCHES)


def clear(lease: Lease) -> None:
    """The member that was probed answers: its bench is over."""
    redis.client().delete(f"{PREFIX}health:{lease.device_id}")


class Leases:
    """The leases of this process. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: set[Lease] = set()

    def add(self, lease: Lease) -> None:
        """From now on it is renewed."""
        with self._lock:
            self._held.add(lease)

    def discard(self, lease: Lease) -> None:
        """It is renewed no more."""
        with self._lock:
            self._held.discard(lease)

    def forget(self) -> None:
        """In a forked child: they are the parent's."""
        self._lock = threading.Lock()
        self._held = set()

    def renew(self) -> int:
        """Keep all of them for LEASE_MS more; how many there are. One call to Redis."""
        with self._lock:
            held = list(self._held)
        if not held:
            return 0
        _run(_RENEW, LEASE_MS, *(text for lease in held for text in (lease.device_id, lease.name)))
        with self._lock:
            ended = [lease for lease in held if lease not in self._held]
        for lease in ended:  # it ended while it was renewed: it must not count once more
            _run(_LEAVE, lease.device_id, lease.name)
        return len(held)


leases: Final = Leases()
"""The process's own."""
os.register_at_fork(after_in_child=leases.forget)
