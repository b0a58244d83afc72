"""Pools of places with owners in one process, for threads and jobs (`tunnel.contract.Shares` has the rule).

Each pool has a name, and `/metrics` tells how many of its places users hold, and how many the one with the most.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from apps.common.observability import metrics
from tunnel.contract import Crowded, Shares, class_of

QUEUE: Final = 256
"""Callers that wait at most, since each holds a thread; one more is refused."""


class _Waiter:
    __slots__ = ("called", "granted")

    def __init__(self) -> None:
        self.called = threading.Event()
        self.granted = False


class Places:
    """`limit` places that are held for long. Thread-safe.

    Args:
        name: of the pool, for Prometheus.
        limit: returns the number of places; called each time, since settings may not be read at import.
    """

    def __init__(self, name: str, limit: Callable[[], int]) -> None:
        self.name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._left: deque[str] = deque()
        self._shares: Shares[_Waiter] = Shares(1, queue=QUEUE)

    def __repr__(self) -> str:
        return f"<Places {self.name} {self._shares!r}>"

    @property
    def taken(self) -> int:
        """How many places are held."""
        return self._shares.taken

    @contextmanager
    def place(self, owner: str, *, seconds: float = 0.0) -> Iterator[bool]:
        """Whether the owner has a place within the block."""
        held = self.enter(owner, seconds=seconds)
        try:
            yield held
        finally:
            if held:
                self.leave(owner)

    def may_enter(self, owner: str) -> bool:
        """Whether there is a place for that owner now; another may have it a moment later."""
        with self._locked():
            self._shares.limit = self._limit()
            return self._shares.may_take(owner)

    def enter(self, owner: str, *, seconds: float = 0.0) -> bool:
        """Take a place, to be given back by `leave`, and wait for it at most `seconds`. False if none came free."""
        with self._locked():
            self._shares.limit = self._limit()
            if self._shares.take(owner):
                self._tell()
                return True
            waiter = self._queue(owner) if seconds else None
        if waiter is not None:
            waiter.called.wait(seconds)
            with self._locked():  # it may have been called just now
                if not waiter.called.is_set():
                    self._shares.leave_queue(owner, waiter)
                if waiter.granted:
                    return True
        metrics.places_refused(self.name, class_of(owner))
        return False

    def leave(self, owner: str) -> None:
        """Give the place back. Of the owners that wait, the one that holds least gets it.

        Never blocks: an answer that is garbage-collected gives its place back in whatever thread collects it, which may
        be within this class.
        """
        self._left.append(owner)
        self._settle()

    def _settle(self) -> None:
        """Apply the pending `leave` calls now, or, if another thread has the lock, when that thread releases it."""
        while self._left and self._lock.acquire(blocking=False):
            try:
                self._give_back()
            finally:
                self._lock.release()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock:
            self._give_back()
            yield
        self._settle()

    def _give_back(self) -> None:
        if not self._left:
            return
        while self._left:
            for waiter in self._shares.give_back(self._left.popleft()):
                waiter.granted = True
                waiter.called.set()
        self._tell()

    def _queue(self, owner: str) -> _Waiter | None:
        waiter = _Waiter()
        try:
            pushed_out = self._shares.wait(owner, waiter)
        except Crowded:
            return None
        if pushed_out is not None:
            pushed_out.called.set()
        return waiter

    def _tell(self) -> None:
        metrics.tell_places(self.name, self._shares.classes(), self._shares.largest())
