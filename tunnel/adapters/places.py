"""A bounded number of places, and a bounded queue before them in which parties take turns.

Whoever waits may be cancelled at any moment and leaves nothing behind; a place is given back when its block is left,
however that happens. It knows nothing of what the places are for.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Crowded(Exception):
    """The queue is full, and nobody in it has a larger part of it than who comes."""


class _Waiter:
    __slots__ = ("called", "crowded", "granted")

    def __init__(self) -> None:
        self.called = trio.Event()
        self.granted = False
        self.crowded = False


class Places:
    """`limit` places and a queue of `queue`. A party waits behind its own only: each has its turn, one by one.

    When the queue is full, the party with the most in it loses its newest: a crowd pushes out itself.
    """

    def __init__(self, limit: int, queue: int) -> None:
        self._free = limit
        self._limit = limit
        self._queue = queue
        self._waiting: OrderedDict[str, deque[_Waiter]] = OrderedDict()  # the party whose turn it is first
        self.waiting = 0

    def __repr__(self) -> str:
        return f"<Places taken={self.taken} of {self._limit} waiting={self.waiting}>"

    @property
    def taken(self) -> int:
        return self._limit - self._free

    @asynccontextmanager
    async def place(self, party: str) -> AsyncIterator[None]:
        """Hold a place within the block. Raises Crowded."""
        await self._enter(party)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, party: str) -> None:
        if self._free:  # nobody waits then: a place that comes free is passed on
            self._free -= 1
            return
        if self.waiting >= self._queue:
            self._make_room(party)
        waiter = _Waiter()
        self._waiting.setdefault(party, deque()).append(waiter)
        self.waiting += 1
        try:
            await waiter.called.wait()
        except BaseException:
            if waiter.granted:  # between the call and our waking up
                self._leave()
            elif not waiter.crowded:
                self._drop(party, waiter)
            raise
        if waiter.crowded:
            raise Crowded

    def _make_room(self, party: str) -> None:
        longest = max(self._waiting, key=lambda one: len(self._waiting[one]), default=party)
        crowd = self._waiting.get(longest)
        if crowd is None or len(crowd) <= len(self._waiting.get(party, ())):
            raise Crowded
        newest = crowd[-1]
        newest.crowded = True
        self._drop(longest, newest)
        newest.called.set()

    def _drop(self, party: str, waiter: _Waiter) -> None:
        crowd = self._waiting[party]
        crowd.remove(waiter)
        self.waiting -= 1
        if not crowd:
            del self._waiting[party]

    def _leave(self) -> None:
        if not self._waiting:
            self._free += 1
            return
        party, crowd = next(iter(self._waiting.items()))
        waiter = crowd.popleft()
        self.waiting -= 1
        if crowd:
            self._waiting.move_to_end(party)
        else:
            del self._waiting[party]
        waiter.granted = True
        waiter.called.set()
