"""How long to wait before the next attempt: full jitter, exponential, pure.

It does not know what an attempt is, nor what time it is. Source: "Exponential backoff and jitter" (full jitter);
0.5 s to 30 s from the specification. The prototype mixed up its units, so that each of its delays was 30 s.

Two series stand beside it. A refused credential is tried again after a minute, doubling to an hour: whoever refused it
may have been wrong (a restored database), and a box has no keyboard to be told so. And a box that is replaced by a copy
of itself waits longer each time, so that the two do not cut each other's streams every half minute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import random
from typing import Final

FIRST_CEILING: Final = 0.5
LAST_CEILING: Final = 30.0
STABLE_SECONDS: Final = 60.0

FIRST_REFUSAL_SECONDS: Final = 60.0
LAST_REFUSAL_SECONDS: Final = 3600.0
REFUSAL_JITTER: Final = 0.2
"""A delay after a refusal is longer by up to this share of it, and never longer than the last one of the series."""

FIRST_REPLACED_SECONDS: Final = 30.0
LAST_REPLACED_SECONDS: Final = 120.0
"""Short enough that the cloud goes on seeing it: a device replaced 3 times in 10 minutes is marked as cloned."""
CLONED_AFTER: Final = 3
ALONE_SECONDS: Final = 600.0
"""A session that lasted this long without being replaced: there is no copy of this box any more."""


def ceiling(attempt: int) -> float:
    """The longest delay, in seconds, before attempt `attempt` (1 is the first one after a loss): 0.5, 1, 2 … 30."""
    return _doubled(FIRST_CEILING, attempt, LAST_CEILING)


def _doubled(first: float, times: int, last: float) -> float:
    """`first`, doubled for each of `times` after the first, at most `last`."""
    # The shift is capped so that an agent that has been trying for a year does not build a huge integer.
    return min(last, first * (1 << min(max(times, 1) - 1, 10)))


@dataclass(slots=True)
class Backoff:
    """Counts failed attempts and draws the delay before the next one. `draw` returns a float in [0, 1)."""

    draw: Callable[[], float] = random
    attempt: int = field(default=0, init=False)
    refusals: int = field(default=0, init=False)
    replacements: int = field(default=0, init=False)

    def next_delay(self, at_least: float = 0.0, spread: float = 0.0) -> float:
        """Seconds to wait now; counts one attempt.

        `at_least`: what the other side asked for; the jitter comes on top of it, so that agents that were all told
        the same number do not return in the same instant. `spread`: the least width of that jitter, in seconds.
        """
        self.attempt += 1
        return at_least + self.draw() * max(ceiling(self.attempt), spread)

    def next_refusal_delay(self, at_least: float = 0.0) -> float:
        """Seconds to wait after the daemon refused us: a minute at first, an hour in the end; counts one refusal."""
        self.refusals += 1
        widest = LAST_REFUSAL_SECONDS / (1 + REFUSAL_JITTER)
        delay = max(_doubled(FIRST_REFUSAL_SECONDS, self.refusals, widest), at_least)
        return delay * (1 + REFUSAL_JITTER * self.draw())

    def next_replaced_delay(self) -> float:
        """Seconds to wait after a newer connection of this device took over; counts one replacement."""
        self.replacements += 1
        series = self.replacements - CLONED_AFTER + 2  # doubled from the third on
        return self.next_delay(_doubled(FIRST_REPLACED_SECONDS, series, LAST_REPLACED_SECONDS))

    @property
    def cloned(self) -> bool:
        """Whether another agent with the same credential has taken over so often that it must be a copy of this box."""
        return self.replacements >= CLONED_AFTER

    def start_anew(self) -> None:
        """Forget refusals: there is a new credential to try."""
        self.refusals = 0

    def connected_for(self, seconds: float) -> None:
        """A session lasted `seconds`: a stable one (a minute or more) starts the series anew."""
        if seconds >= STABLE_SECONDS:
            self.attempt = self.refusals = 0
        if seconds >= ALONE_SECONDS:
            self.replacements = 0
