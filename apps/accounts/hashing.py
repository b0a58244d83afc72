"""Who may hash a password now: hashing costs tens of milliseconds of a core, and whoever asks may be anybody.

A process hashes `VISIONA_PASSWORD_HASHES` at once; five eighths of its threads may wait for their turn, for
PATIENCE_SECONDS at most, and the next is refused. So a flood of logins leaves cores and threads to everything else.
"""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Final, TypeVar

from django.conf import settings

from apps.common.cores import cores
from apps.common.errors import DomainError

PATIENCE_SECONDS: Final = 5.0
T = TypeVar("T")


class Turns:
    """At most `slots` at once; `waiting` more may wait, for `patience` seconds."""

    def __init__(self, slots: int, waiting: int, patience: float = PATIENCE_SECONDS) -> None:
        self._free = threading.BoundedSemaphore(slots)
        self._places = threading.BoundedSemaphore(slots + waiting)
        self._patience = patience
        self._mine = threading.local()
        self._threads = ThreadPoolExecutor(slots, thread_name_prefix="hashing")

    def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, in a turn and in one of few threads. Raises DomainError OVERLOADED.

        The C library keeps what was freed for the thread that had it: 19 MiB for each that ever hashed a password.
        """
        with self.turn():
            return self._threads.submit(work).result()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Within the block it is this thread's turn, once however nested. Raises DomainError OVERLOADED."""
        if getattr(self._mine, "held", False):
            yield
            return
        if not self._places.acquire(blocking=False):
            raise DomainError("OVERLOADED")
        try:
            if not self._free.acquire(timeout=self._patience):
                raise DomainError("OVERLOADED")
            self._mine.held = True
            try:
                with cores.anywhere():
                    yield
            finally:
                self._mine.held = False
                self._free.release()
        finally:
            self._places.release()


@cache
def turns() -> Turns:
    """The process's own."""
    return Turns(settings.VISIONA["PASSWORD_HASHES"], settings.VISIONA["API_THREADS"] * 5 // 8)
