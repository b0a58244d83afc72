"""One watchdog for any number of tunnels: who has to be looked at when, and the one task that looks.

A task and a cancel scope for each tunnel cost a quarter of what an idle one costs (benchmarks/NOTES.md). The daemon
runs one of these for all of its tunnels, an agent one for its own. What is due is the tunnel's to say; a look never
waits, so that none holds up the others, and one that fails ends its own tunnel only.
"""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

import trio

_PAUSE: Final = 0.05
"""Seconds between two rounds, so that one waking serves all tunnels that come due meanwhile: a ping of 15 s may be so
much later. One that nobody came before is looked at on time."""
_CROWD: Final = 32  # looks, each of some 50 µs, before other tasks have their turn
_SPARE: Final = 64  # outdated entries that are not worth clearing away

T = TypeVar("T")


class Schedule(Generic[T]):
    """Who is due when, on any clock. Pure. An entry is never moved: it is outdated, and passed over when it comes."""

    __slots__ = ("_dues", "_heap", "_numbers")

    def __init__(self) -> None:
        self._dues: dict[T, float] = {}
        self._heap: list[tuple[float, int, T]] = []
        self._numbers = count()  # those due at the same moment in the order of asking; members have none

    def __repr__(self) -> str:
        return f"<Schedule {len(self._dues)} due, {len(self._heap)} entries>"

    def __len__(self) -> int:
        return len(self._dues)

    def put(self, who: T, due: float) -> None:
        """Have `who` taken at `due` at the latest; an earlier date that stands already remains."""
        if self._dues.get(who, math.inf) <= due:
            return
        self._dues[who] = due
        heapq.heappush(self._heap, (due, next(self._numbers), who))
        if len(self._heap) > 2 * len(self._dues) + _SPARE:
            self._heap = [entry for entry in self._heap if self._dues.get(entry[2]) == entry[0]]
            heapq.heapify(self._heap)

    def drop(self, who: T) -> None:
        """Forget `who`. Idempotent."""
        self._dues.pop(who, None)

    def first(self) -> float:
        """When somebody is due at the earliest; infinity without anybody."""
        heap = self._heap
        while heap:
            due, _, who = heap[0]
            if self._dues.get(who) == due:
                return due
            heapq.heappop(heap)
        return math.inf

    def take(self, now: float, most: int) -> list[T]:
        """Up to `most` of those due by `now`, the longest due first. They are gone until they are put in again."""
        taken: list[T] = []
        while len(taken) < most and self.first() <= now:
            who = heapq.heappop(self._heap)[2]
            del self._dues[who]
            taken.append(who)
        return taken


class Watched(Protocol):
    """What a watchdog looks at."""

    def look(self, now: float) -> float:
        """Do what is due, without waiting. When to come again; infinity: never."""
        ...

    def crashed(self, error: Exception) -> None:
        """`look` raised this, which is a bug of ours: end yourself, and only yourself."""
        ...


class Watchdog:
    """`run` it in a nursery that outlives what it watches."""

    def __init__(self) -> None:
        self._schedule: Schedule[Watched] = Schedule()
        self._sleep = trio.CancelScope()
        self._looked = -math.inf

    def __repr__(self) -> str:
        return f"<Watchdog of {len(self._schedule)}>"

    def __len__(self) -> int:
        return len(self._schedule)

    def watch(self, who: Watched, due: float) -> None:
        """Look at `who` at `due` (Trio's clock) at the latest, and then whenever it says."""
        self._schedule.put(who, due)
        if due < self._sleep.deadline:
            self._sleep.deadline = max(due, self._looked + _PAUSE)

    def leave(self, who: Watched) -> None:
        """Look at it no more. Idempotent."""
        self._schedule.drop(who)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with trio.CancelScope(deadline=max(self._schedule.first(), self._looked + _PAUSE)) as self._sleep:
                await trio.sleep_forever()
            now = self._looked = trio.current_time()
            while crowd := self._schedule.take(now, _CROWD):
                for who in crowd:
                    self._look(who, now)
                await trio.lowlevel.checkpoint()

    def _look(self, who: Watched, now: float) -> None:
        try:
            again = who.look(now)
        except Exception as error:  # noqa: BLE001 - one tunnel's crash must end that tunnel only
            who.crashed(error)
        else:
            if again < math.inf:
                self._schedule.put(who, again)
