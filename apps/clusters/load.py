"""What the members of clusters bear, shared by all processes through Redis (Redis or Valkey 7).

Keys below the prefix `{visiona}:cluster:` (times in Unix ms)
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
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from apps.clusters.dispatch import PROBE_MS, Choice, Member, bench_ms
from apps.clusters.selectors import Share
from apps.common import redis, scripts

PREFIX: Final = "{visiona}:cluster:"
LEASE_MS: Final = 15_000
"""How long a request counts after its process was last heard of; renewed every 2 s (`apps.proxy.engine`)."""
HEALTH_SECONDS: Final = 600
QUEUE_SECONDS: Final = 3_600
_TRIES: Final = 4
"""How often a choice is made anew because another process was quicker; then it is taken as it is."""
_BENCHES: Final = tuple(bench_ms(failures) for failures in range(1, 7))

# ARGV: cluster, now, devices … Answers time, version, then outstanding, tag, failures, benched until of each.
_LOOK: Final = """
local P, now = KEYS[1], ARGV[2]
local queue = P .. 'queue:' .. ARGV[1]
local answer = redis.call('HMGET', queue, 'time', 'v')
for i = 3, #ARGV do
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

# ARGV: cluster, version seen (empty: whatever it is), device, lease, when it ends, start, tag, probed until (0: no
# probe), seconds that the queue is kept, ms that a lease lasts. Answers 1, or 0 if the queue has moved.
_TAKE: Final = """
local P = KEYS[1]
local queue, out = P .. 'queue:' .. ARGV[1], P .. 'out:' .. ARGV[3]
if ARGV[2] ~= '' and (redis.call('HGET', queue, 'v') or '0') ~= ARGV[2] then return 0 end
redis.call('HSET', queue, 'time', ARGV[6], 'tag:' .. ARGV[3], ARGV[7])
redis.call('HINCRBY', queue, 'v', 1)
redis.call('EXPIRE', queue, ARGV[9])
redis.call('ZADD', out, ARGV[5], ARGV[4])
redis.call('PEXPIRE', out, 2 * ARGV[10])
local health = P .. 'health:' .. ARGV[3]
if ARGV[8] ~= '0' and redis.call('EXISTS', health) == 1 then redis.call('HSET', health, 'u', ARGV[8]) end
return 1
"""

# ARGV: device, lease. The request is over; or, without a lease, a probe went well.
_LEAVE: Final = "return redis.call('ZREM', KEYS[1] .. 'out:' .. ARGV[1], ARGV[2])"

# ARGV: device, now, 1 for a probe, seconds to keep it, then the benches. Of requests that fail together one counts.
_BENCH: Final = """
local health, now = KEYS[1] .. 'health:' .. ARGV[1], tonumber(ARGV[2])
local till = tonumber(redis.call('HGET', health, 'u') or '0')
if till > now and ARGV[3] == '0' then return 0 end
local failures = redis.call('HINCRBY', health, 'f', 1)
redis.call('HSET', health, 'u', now + ARGV[4 + math.min(failures, #ARGV - 4)])
redis.call('EXPIRE', health, ARGV[4])
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
    """What was read: the members, the queue's time, and its version."""

    members: tuple[Member, ...]
    time: float
    version: str


def _run(source: str, *args: str | float) -> Any:
    return scripts.run(source, [PREFIX], args)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def look(cluster_id: str, shares: Sequence[Share], now_ms: int) -> Load:
    """What the devices of `shares` bear. One call to Redis."""
    answer = _run(_LOOK, cluster_id, now_ms, *(share.device_id for share in shares))
    members = []
    for index, share in enumerate(shares):
        out, tag, failures, until = answer[2 + 4 * index : 6 + 4 * index]
        members.append(
            Member(share.device_id, share.weight, int(out), float(tag or 0), int(failures or 0), int(until or 0))
        )
    return Load(tuple(members), float(answer[0] or 0), answer[1] or "0")


def take(cluster_id: str, shares: Sequence[Share], decide: Callable[[Load, int], Choice | None]) -> Lease | None:
    """Let `decide` choose from what the members bear (and the time, Unix ms), and count the request there.

    None if it chose nobody. Two calls to Redis, two more each time that another process was quicker.
    """
    for left in reversed(range(_TRIES)):
        now_ms = _now_ms()
        load = look(cluster_id, shares, now_ms)
        choice = decide(load, now_ms)
        if choice is None:
            return None
        lease = Lease(choice.device_id, secrets.token_hex(8), choice.probe)
        taken = _run(
            _TAKE,
            cluster_id,
            load.version if left else "",
            lease.device_id,
            lease.name,
            now_ms + LEASE_MS,
            repr(choice.start),
            repr(choice.tag),
            now_ms + PROBE_MS if choice.probe else 0,
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
    _run(_BENCH, lease.device_id, _now_ms(), int(lease.probe), HEALTH_SECONDS, *_BENCHES)


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
        until = _now_ms() + LEASE_MS
        pipe = redis.client().pipeline(transaction=False)
        for lease in held:
            key = f"{PREFIX}out:{lease.device_id}"
            pipe.zadd(key, {lease.name: until})
            pipe.pexpire(key, 2 * LEASE_MS)
        pipe.execute()
        with self._lock:
            ended = [lease for lease in held if lease not in self._held]
        for lease in ended:  # it ended while it was renewed: it must not count once more
            _run(_LEAVE, lease.device_id, lease.name)
        return len(held)


leases: Final = Leases()
"""The process's own."""
os.register_at_fork(after_in_child=leases.forget)
