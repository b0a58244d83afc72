"""When a worker of the API takes connections: not while another one holds fewer, nor without descriptors.

It knows the workers' board and gunicorn's loop, and nothing of what a connection is.
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
    """The stopping worker's loop; whoever accepts asks `gives_way` first and tells what came of it.

    The main thread's alone.
    """

    place: Place | None = None
    """None where all places were taken, and from the worker's end on."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.place = _BOARD.place(time.monotonic())
        self._notified = 0.0
        self._accept_again = 0.0
        """When connections may be taken again, on the monotonic clock; 0 unless they may not be."""

    def run(self) -> None:
        """Serve until the worker stops."""
        if self.place is not None:
            self.place.tell(0)
        try:
            super().run()
        finally:
            self._tell_absent()

    def notify(self) -> None:
        """Tell the master that we live: once a second, not at every event."""
        now = time.monotonic()
        if now - self._notified >= 1.0:
            self._notified = now
            if self.place is not None:
                self.place.live(now)
            super().notify()

    def gives_way(self) -> bool:
        """Whether what waits at the listener is left to another worker, for now."""
        if self.place is None or not self.place.gives_way(self.nr_conns, time.monotonic()):
            return False
        self._take_none_for(LEAVE_SECONDS)
        return True

    def saw_none(self) -> None:
        """Nothing waits at the listener."""
        if self.place is not None:
            self.place.none_waits()

    def cannot_take(self) -> None:
        """The system refused the connection that waits: it is asked again soon; nobody leaves one to this worker."""
        if self.place is not None:
            self.place.leave()
        self._take_none_for(_OUT_OF_FILES_SECONDS)

    def count(self, more: int) -> None:
        """So many connections more, which the other workers see."""
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
        """As the loop, which asks before each turn of the loop; but not while none may be taken."""
        if not self.alive:
            self._tell_absent()
        super().set_accept_enabled(enabled and not self._accept_again)

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        """As gunicorn, but no longer than until connections may be taken again. In seconds."""
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
        """Whether what was left to another worker waits still: if the listener has something, `accept` is called."""
        place.asked = False
        super().wait_for_and_dispatch_events(0.0)
        if not place.asked:
            place.none_waits()
