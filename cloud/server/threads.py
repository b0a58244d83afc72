"""The thread pool of the API's worker. It knows no sockets and no HTTP.

It stands in for an executor, whose futures, locks and callbacks cost a tenth of a small request.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any


class Crew:
    """At most `size` threads, started as they are needed, that call `work` with each item in the order of `give`.

    Args:
        work: called in a thread with one item; must not raise.
    """

    def __init__(self, size: int, work: Callable[[Any], None]) -> None:
        self._size = size
        self._work = work
        self._given: SimpleQueue[Any] = SimpleQueue()
        self._lock = threading.Lock()
        self._started = 0
        self._busy = 0
        self._idle = 0
        """Idle threads, less the items that were queued for them already. Used only to decide whether to start another
        thread; once all are started and an item had to wait, the number is too high and no longer used."""

    def give(self, item: Any) -> None:
        """Queue an item; a thread takes it, a new one if none is idle. May be called from any thread."""
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

    def free(self) -> int:
        """How many of the threads have nothing to do, those that were not started yet among them."""
        return self._size - self._busy

    def shutdown(self, wait: bool = False) -> None:  # noqa: ARG002 - an executor's; gunicorn never waits
        """Let each thread end once the queue is empty. It has an executor's signature. It takes no lock, since a signal
        handler may call it."""
        for _ in range(self._size):
            self._given.put(None)

    def _run(self) -> None:
        while (item := self._given.get()) is not None:  # at first what it was started for
            with self._lock:
                self._busy += 1
            self._work(item)
            with self._lock:
                self._busy -= 1
                self._idle += 1
