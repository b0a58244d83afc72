"""How many connections each worker of the API holds, seen by all of them, so that who has the fewest takes the next.

Workers accept from one listener, and the first to wake takes what waits there: of sixteen clients that connect at once
one worker got fifteen, kept them alive, and its core was the limit while another was idle. Here a worker leaves a
connection to one that holds fewer, for some milliseconds at most. It knows numbers and times, no sockets.
"""

from __future__ import annotations

import math
import mmap
from typing import Final

SLOTS: Final = 64
FRESH_SECONDS: Final = 3.0
"""A worker that has not been heard for this long is not counted: it is hung, or gone."""
FREE_SECONDS: Final = 120.0
"""After this long unheard its place may be another's. Only if the master heard nothing of its end, which frees it at
once: one that is silent is killed after gunicorn's `timeout`, half of this."""
LEAVE_SECONDS: Final = 0.002
"""A connection that is left to another worker is looked at again after this."""
PATIENCE_SECONDS: Final = 0.02
"""And taken after this, with all that waits beside it: the other one is busy, or gone."""
_ABSENT: Final = 1 << 40  # connections of a worker that takes none: as it begins, without descriptors, from its end on
_FREE: Final = -math.inf  # unheard since ever; 0 is a place that nobody had yet


class Board:
    """Memory that the master shares with its workers; made before they fork. Times are those of the monotonic clock."""

    def __init__(self, slots: int = SLOTS) -> None:
        self._memory = mmap.mmap(-1, slots * 16)
        view = memoryview(self._memory)
        # Each value is written by one process, in one aligned word: no lock is needed to read it.
        self.heard = view[: slots * 8].cast("d")
        self.held = view[slots * 8 :].cast("q")

    def place(self, now: float) -> Place | None:
        """A worker's place, taken by the master; None while all are taken."""
        for index, heard in enumerate(self.heard):
            if not heard or now - heard > FREE_SECONDS:
                self.held[index] = _ABSENT
                self.heard[index] = now
                return Place(self, index)
        return None


class Place:
    """One worker's, which alone uses it; but `free` is the master's."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self._index = index
        self._left_since: float | None = None
        self.asked = False
        """Set by `gives_way`, for whoever wants to know whether it was called."""

    def tell(self, held: int) -> None:
        """The worker holds so many connections."""
        self._board.held[self._index] = held

    def live(self, now: float) -> None:
        """The worker's loop turns; at least once a second."""
        self._board.heard[self._index] = now

    def leave(self) -> None:
        """The worker takes no connections, until it tells how many it holds."""
        self._board.held[self._index] = _ABSENT

    def free(self) -> None:
        """The worker's process has ended."""
        self._board.held[self._index] = _ABSENT
        self._board.heard[self._index] = _FREE

    @property
    def left(self) -> bool:
        """Something was left to another and may be waiting still."""
        return self._left_since is not None

    def none_waits(self) -> None:
        """The listener was seen empty: what comes next is left anew."""
        self._left_since = None

    def least(self, now: float) -> int | None:
        """The fewest connections that another worker holds; None if there is no other."""
        since, others = now - FRESH_SECONDS, []
        for index, heard in enumerate(self._board.heard):
            if not heard:
                break  # places are taken in their order
            if heard >= since and index != self._index and (held := self._board.held[index]) != _ABSENT:
                others.append(held)
        return min(others, default=None)

    def gives_way(self, held: int, now: float) -> bool:
        """Whether a worker with `held` connections leaves the one that waits to another."""
        self.asked = True
        least = self.least(now)
        if least is None or held <= least:
            self._left_since = None
            return False
        if self._left_since is None:
            self._left_since = now
        return now - self._left_since < PATIENCE_SECONDS
