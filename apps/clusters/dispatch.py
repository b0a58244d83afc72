"""Which member of a cluster a request goes to: pure decisions, no Redis, no clock.

Weighted least-outstanding: a member takes a request only while its requests under way, divided by its weight, stay
below what they would be at the least loaded member with one more. Of those that may take it, the one whose turn it is
by weighted fair queuing (start-time fair queuing, Goyal, Vin and Cheng 1996): each has a tag that grows by 1/weight
with each request it is given, the smallest tag is next, and the tag of one that was away begins at the present. So
shares are by weight however few requests are under way, a slow member gets what it can bear, and none is flooded when
it is back.

A member that failed is benched: left out until a moment that moves away with each further failure. Then one request
probes it; its success ends the bench, until then no other is sent. When all are benched, the one whose bench ends first
is asked all the same: a guess is better than a certain refusal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

BENCH_FIRST_MS: Final = 1_000
BENCH_MAX_MS: Final = 30_000
PROBE_MS: Final = 5_000
"""How long a probe may go without an answer before another one is sent."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member that is online, as the counters tell. `tag` is its place in the queue, `benched_until` in Unix ms."""

    device_id: str
    weight: int
    outstanding: int = 0
    tag: float = 0.0
    failures: int = 0
    benched_until: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Who takes the request. `start` is the queue's new time, `tag` the member's new place; `probe`: it was benched."""

    device_id: str
    start: float
    tag: float
    probe: bool


def choose(members: Sequence[Member], *, time: float, now_ms: int) -> Choice | None:
    """Who takes the next request; None if there is none to ask. `time` is the queue's: the `start` of the last one."""
    if not members:
        return None
    fit = [member for member in members if member.benched_until <= now_ms]
    if not fit:
        fit = [min(members, key=lambda member: (member.benched_until, member.device_id))]
    ceiling = min((member.outstanding + 1) / member.weight for member in fit)
    free = [member for member in fit if member.outstanding / member.weight < ceiling]
    # Of equal tags the heaviest first, then by id: two that look at once see the same order.
    taken = min(free, key=lambda member: (max(member.tag, time), -member.weight, member.device_id))
    start = max(taken.tag, time)
    return Choice(taken.device_id, start, start + 1 / taken.weight, probe=taken.failures > 0)


def bench_ms(failures: int) -> int:
    """How long a member is left out after so many failures in a row."""
    return min(BENCH_MAX_MS, BENCH_FIRST_MS << min(max(0, failures - 1), 16))
