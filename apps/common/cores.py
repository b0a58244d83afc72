"""On which core the threads of an API worker run.

Only one of a worker's threads runs Python at a time, and each call that waits hands the interpreter to another thread.
Where the kernel spreads the threads over cores, each hand-over finds cold caches, which costs a fifth of the CPU a
request (benchmarks/NOTES.md). So all threads of a worker stay on one core, except for long work outside the
interpreter (`anywhere`).
"""

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

_FIRST: Final = secrets.randbelow(1 << 16)
"""So that the workers of several services on one machine do not all choose the same cores."""


class Cores:
    """The cores that the process was given, and the one on which it stays."""

    def __init__(self, given: frozenset[int], first: int = _FIRST) -> None:
        self._given = given
        self._first = first
        self.home: int | None = None

    def stay(self, number: int) -> None:
        """Keep this thread, and the threads that it starts from now on, on the core of the worker with this number.

        Workers with consecutive numbers get different cores as long as there are enough. Does nothing where the process
        has one core only.
        """
        if len(self._given) < 2:
            return
        home = sorted(self._given)[(self._first + number) % len(self._given)]
        if _run_on({home}):
            self.home = home

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Within the block this thread may run on any core: for long work outside the interpreter, such as hashing."""
        if self.home is None:
            yield
            return
        _run_on(self._given)
        try:
            yield
        finally:
            _run_on({self.home})


def _run_on(cores: Iterable[int]) -> bool:
    """Pin this thread to `cores`. False where the kernel refuses, as in a sandbox or for a core that was taken away."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True


def free_number(used: Iterable[int]) -> int:
    """The lowest worker number that is not in use."""
    taken = set(used)
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _given() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


cores: Final = Cores(_given())
"""The process's own; made in gunicorn's master, before any worker has chosen."""
