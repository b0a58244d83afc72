"""The scoreboard: how many connections each worker of the API holds, so that the one with fewest accepts the next.

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
"""A worker that has written no sign of life for this long is not counted: it hangs, or has ended."""
FREE_SECONDS: Final = 120.0
"""A row without a sign of life for this long may be given away. Needed only if the master missed the worker's end, at
which it frees the row: a silent worker is killed after gunicorn's `timeout`, half of this."""
LEAVE_SECONDS: Final = 0.002
"""A connection that is left to another worker is looked at again after this."""
PATIENCE_SECONDS: Final = 0.02
"""A connection that was left to another worker for this long is accepted, with all others that wait: the other
worker is busy, or has ended."""
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
        """Reserve a row for a worker that the master is about to fork; None while all rows are taken."""
        for index, heard in enumerate(self.heard):
            if not heard or now - heard > FREE_SECONDS:
                self.held[index] = _ABSENT
                self.heard[index] = now
                return Place(self, index)
        return None


class Place:
    """One worker's row of the board. Only that worker uses it, except for `free`, which the master calls."""

    def __init__(self, board: Board, index: int) -> None:
        self._board = board
        self._index = index
        self._left_since: float | None = None
        self.asked = False
        """Set to True by each call of `gives_way`."""

    def tell(self, held: int) -> None:
        """Publish the number of connections that the worker holds."""
        self._board.held[self._index] = held

    def live(self, now: float) -> None:
        """Publish a sign of life; called by the worker's loop at least once a second."""
        self._board.heard[self._index] = now

    def leave(self) -> None:
        """Publish that the worker accepts no connections, until the next `tell`."""
        self._board.held[self._index] = _ABSENT

    def free(self) -> None:
        """Give the row back after the worker's process has ended."""
        self._board.held[self._index] = _ABSENT
        self._board.heard[self._index] = _FREE

    @property
    def left(self) -> bool:
        """Whether a connection was left to another worker and may still wait at the listener."""
        return self._left_since is not None

    def none_waits(self) -> None:
        """Note that the listener is empty: the time for which connections are left to others begins anew."""
        self._left_since = None

    def least(self, now: float) -> int | None:
        """The lowest number of connections that another live worker holds; None if there is no other worker."""
        since, others = now - FRESH_SECONDS, []
        for index, heard in enumerate(self._board.heard):
            if not heard:
                break  # places are taken in their order
            if heard >= since and index != self._index and (held := self._board.held[index]) != _ABSENT:
                others.append(held)
        return min(others, default=None)

    def gives_way(self, held: int, now: float) -> bool:
        """Whether a worker with `held` connections leaves a waiting connection to another worker.

        That is while another one holds fewer, for PATIENCE_SECONDS at most. `now` is monotonic.
        """
        self.asked = True
        least = self.least(now)
        if least is None or held <= least:
            self._left_since = None
            return False
        if self._left_since is None:
            self._left_since = now
        return now - self._left_since < PATIENCE_SECONDS
