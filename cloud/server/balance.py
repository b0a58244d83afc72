"""When a worker of the API accepts connections: not while another worker holds fewer, nor without descriptors.

It knows the workers' scoreboard and gunicorn's loop, and nothing of what a connection is.
"""

from __future__ import annotations

import time
from typing import Any, Final

from cloud.server.board import LEAVE_SECONDS, Board, Place
from cloud.server.stopping import StoppingWorker

_OUT_OF_FILES_SECONDS: Final = 0.1
"""No connection is taken for this long when descriptors or memory ran out; those that wait stay in the backlog."""
_BOARD: Final = Board()  # made in the master, which imports this before it forks


class SharingWorker(StoppingWorker):
    """A `StoppingWorker` that shares new connections with the other workers.

    The code that accepts calls `gives_way` first, then `saw_none`, `cannot_take` or `count` with the outcome. Used by
    the main thread alone.
    """

    place: Place | None = None
    """This worker's row on the scoreboard. None if no row was free, and once the worker ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place = _BOARD.place(time.monotonic())
        self._notified = 0.0
        self._accept_again = 0.0
        """Monotonic time until which no connection is accepted; 0: there is no such pause."""

    def run(self) -> None:
        """Serve until the worker stops."""
        if self.place is not None:
            self.place.tell(0)
        try:
            super().run()
        finally:
            self._tell_absent()

    def notify(self) -> None:
        """Tell the master and the scoreboard that this worker lives; at most once a second, not at every event."""
        now = time.monotonic()
        if now - self._notified >= 1.0:
            self._notified = now
            if self.place is not None:
                self.place.live(now)
            super().notify()

    def gives_way(self) -> bool:
        """Whether this worker leaves the connections that wait at the listener to another one for now.

        If so, it accepts none for LEAVE_SECONDS.
        """
        if self.place is None or not self.place.gives_way(self.nr_conns, time.monotonic()):
            return False
        self._take_none_for(LEAVE_SECONDS)
        return True

    def saw_none(self) -> None:
        """Report that no connection waits at the listener."""
        if self.place is not None:
            self.place.none_waits()

    def cannot_take(self) -> None:
        """Report that accept failed for want of descriptors or memory.

        This worker tries again after 0.1 s; until then the other workers leave no connection to it.
        """
        if self.place is not None:
            self.place.leave()
        self._take_none_for(_OUT_OF_FILES_SECONDS)

    def count(self, more: int) -> None:
        """Add `more` (may be negative) to the number of connections that this worker holds, and publish it."""
        self.nr_conns += more
        if self.place is not None:
            self.place.tell(self.nr_conns)

    def _tell_absent(self) -> None:
        if self.place is not None:
            self.place.leave()
            self.place = None

    def _take_none_for(self, seconds: float) -> None:
        self._accept_again = time.monotonic() + seconds
        self.set_accept_enabled(False)

    def set_accept_enabled(self, enabled: bool) -> None:
        """As gunicorn's, which calls this before each turn of the loop; but never enables accepting during a pause."""
        if not self.alive:
            self._tell_absent()
        super().set_accept_enabled(enabled and not self._accept_again)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """As gunicorn's, for `timeout` seconds at most, but no longer than until accepting may go on."""
        if self._accept_again:
            left = self._accept_again - time.monotonic()
            if left <= 0:
                self._accept_again = 0.0  # the loop's next turn asks the listeners again
            timeout = min(timeout, max(left, 0.0))
        elif self.place is not None and self.place.left:
            self._look(self.place)
            return
        super().wait_for_and_dispatch_events(timeout)

    def _look(self, place: Place) -> None:
        """Find out whether connections that were left to another worker still wait, and note it if none does.

        The listener is polled without waiting; gunicorn calls `accept` if a connection waits.
        """
        place.asked = False
        super().wait_for_and_dispatch_events(0.0)
        if not place.asked:
            place.none_waits()
