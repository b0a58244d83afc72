"""A circuit breaker: after a failure, calls fail at once for a while; then one of them tries for all.

Pure decisions on a clock that is passed in; thread-safe.
"""

import threading
import time
from collections.abc import Callable
from typing import Final, Literal

OPEN_SECONDS: Final = 1.0
"""data.md: "then calls of the next second fail fast"."""
PROBE_SECONDS: Final = 10.0
"""A probe that never reported (its thread died) makes way for another after this long."""


class Breaker:
    """The breaker of one part (PostgreSQL, Redis).

    Closed: calls pass. Open: calls are refused. After OPEN_SECONDS one call probes, and the others are still refused.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open_until: float | None = None
        self._probe_until = 0.0

    def __repr__(self) -> str:
        return f"<Breaker {'closed' if self._open_until is None else 'open'}>"

    def ask(self) -> Literal["pass", "probe", "refuse"]:
        """What a call may do now. A caller that gets `probe` must report the outcome with `close` or `trip`."""
        with self._lock:
            if self._open_until is None:
                return "pass"
            now = self._clock()
            if now < self._open_until or now < self._probe_until:
                return "refuse"
            self._probe_until = now + PROBE_SECONDS
            return "probe"

    def trip(self) -> None:
        """Report that the part did not answer: calls are refused for OPEN_SECONDS."""
        with self._lock:
            self._open_until = self._clock() + OPEN_SECONDS
            self._probe_until = 0.0

    def close(self) -> None:
        """Report that the part answered: calls pass from now on."""
        if self._open_until is None:  # the usual case, without the lock
            return
        with self._lock:
            self._open_until = None
            self._probe_until = 0.0
