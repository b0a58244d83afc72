"""How long to wait before the next attempt: full jitter, exponential, pure.

It does not know what an attempt is, nor what time it is. Source: "Exponential backoff and jitter" (full jitter);
0.5 s to 30 s from the specification. The prototype mixed up its units, so that each of its delays was 30 s.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import random
from typing import Final

FIRST_CEILING: Final = 0.5
LAST_CEILING: Final = 30.0
STABLE_SECONDS: Final = 60.0


def ceiling(attempt: int) -> float:
    """The longest delay, in seconds, before attempt `attempt` (1 is the first one after a loss): 0.5, 1, 2 … 30."""
    # The shift is capped so that an agent that has been trying for a year does not build a huge integer.
    return min(LAST_CEILING, FIRST_CEILING * (1 << min(max(attempt, 1) - 1, 10)))


@dataclass(slots=True)
class Backoff:
    """Counts failed attempts and draws the delay before the next one. `draw` returns a float in [0, 1)."""

    draw: Callable[[], float] = random
    attempt: int = field(default=0, init=False)

    def next_delay(self, at_least: float = 0.0, spread: float = 0.0) -> float:
        """Seconds to wait now; counts one attempt.

        `at_least`: what the other side asked for; the jitter comes on top of it, so that agents that were all told
        the same number do not return in the same instant. `spread`: the least width of that jitter, in seconds.
        """
        self.attempt += 1
        return at_least + self.draw() * max(ceiling(self.attempt), spread)

    def connected_for(self, seconds: float) -> None:
        """A session lasted `seconds`: a stable one (a minute or more) starts the series anew."""
        if seconds >= STABLE_SECONDS:
            self.attempt = 0
