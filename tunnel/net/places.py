"""A bounded number of places, and a bounded queue before them in which parties take turns (`tunnel.contract.Shares`).

Whoever waits may be cancelled at any moment and leaves nothing behind; a place is given back when its block is left,
however that happens. It knows nothing of what the places are for.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from tunnel.contract import Crowded, Shares


class _Waiter:
    __slots__ = ("called", "crowded", "granted")

    def __init__(self) -> None:
        self.called = trio.Event()
        self.granted = False
        self.crowded = False


class Places:
    """`limit` places and a queue of `queue`, for what holds a place for a moment: who holds least is next."""

    def __init__(self, limit: int, queue: int) -> None:
        self._shares: Shares[_Waiter] = Shares(limit, queue=queue, long=False)

    def __repr__(self) -> str:
        return f"<Places taken={self.taken} of {self.limit} waiting={self.waiting}>"

    @property
    def limit(self) -> int:
        return self._shares.limit

    @property
    def taken(self) -> int:
        return self._shares.taken

    @property
    def waiting(self) -> int:
        return self._shares.waiting

    @asynccontextmanager
    async def place(self, party: str) -> AsyncIterator[None]:
        """Hold a place within the block. Raises Crowded."""
        await self.enter(party)
        try:
            yield
        finally:
            self.leave(party)

    def enter_nowait(self, party: str) -> bool:
        """Take a place if one is free (nobody waits then: they would have had it), to be given back by `leave`."""
        return self._shares.take(party)

    async def enter(self, party: str) -> None:
        """Take a place, now or when it is this party's turn; to be given back by `leave`. Raises Crowded."""
        if self.enter_nowait(party):
            return
        waiter = _Waiter()
        pushed_out = self._shares.wait(party, waiter)
        if pushed_out is not None:
            pushed_out.crowded = True
            pushed_out.called.set()
        try:
            await waiter.called.wait()
        except BaseException:
            if waiter.granted:  # between the call and our waking up
                self.leave(party)
            elif not waiter.crowded:
                self._shares.leave_queue(party, waiter)
            raise
        if waiter.crowded:
            raise Crowded

    def leave(self, party: str) -> None:
        """Give a place back."""
        for waiter in self._shares.give_back(party):
            waiter.granted = True
            waiter.called.set()
