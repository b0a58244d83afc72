"""The threads of the API's worker. They know no sockets and no HTTP: what is given to them is handed on.

In the place of an executor, whose futures, locks and callbacks cost a tenth of a small request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Crew:
    """Up to `size` threads that do `work` with what is given, in the order given; started as they are needed.

    Args:
        work: called in a thread with what was given; must not raise.
    """

    def __init__(self, size: int, work: Callable[[Any], None]) -> None:
        self._size = size
        self._work = work
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._idle = 0
        """Threads that wait, less those that something was given for already. It counts too many once all are started
        and something had to wait for one of them; from then on it means nothing."""

    def give(self, item: Any) -> None:
        """From any thread."""
        self._given.put(item)
        with self._lock:
            if self._idle:
                self._idle -= 1
                return
            if self._started == self._size:
                return
            self._started += 1
            number = self._started
        threading.Thread(target=self._run, name=f"request-{number}").start()

    def shutdown(self, wait: bool = False) -> None:  # noqa: ARG002 - an executor's; gunicorn never waits
        """Each thread ends when it has nothing to do. As of an executor; takes no lock, since a signal may call it."""
        for _ in range(self._size):
            self._given.put(None)

    def _run(self) -> None:
        while (item := self._given.get()) is not None:  # at first what it was started for
            self._work(item)
            with self._lock:
                self._idle += 1
