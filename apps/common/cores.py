"""On which core the threads of an API worker run.

Only one of a worker's threads runs Python at a time; which one changes at each call that waits, and where the kernel
spreads them over cores each change is paid with cold caches: a fifth of the CPU a request (docs/performance.md). So
all threads of a worker stay on one core, but for what runs long outside of Python (`anywhere`).
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
        """Keep this thread, and those it starts from now on, on the core of the worker with this number.

        Neighbours by number have different cores while there are any. Nothing where there is no choice.
        """
        if len(self._given) < 2:
            return
        home = sorted(self._given)[(self._first + number) % len(self._given)]
        if _run_on({home}):
            self.home = home

    @contextmanager
    def anywhere(self) -> Iterator[None]:
        """Within the block this thread may run on any core: for work that is long and not Python's."""
        if self.home is None:
            yield
            return
        _run_on(self._given)
        try:
            yield
        finally:
            _run_on({self.home})


def _run_on(cores: Iterable[int]) -> bool:
    """Whether the kernel lets this thread choose: a sandbox may forbid it, and a core may have been taken away."""
    try:
        os.sched_setaffinity(0, cores)
    except OSError:
        return False
    return True


def free_number(used: Iterable[int]) -> int:
    """The lowest number that no other worker has."""
    taken = set(used)
    return next(number for number in range(len(taken) + 1) if number not in taken)


def _given() -> frozenset[int]:
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


cores: Final = Cores(_given())
"""The process's own; made in gunicorn's master, before any worker has chosen."""
