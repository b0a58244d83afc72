"""What the supervisor decides: when to start a dead program again, in which order to stop, what to say of an end.

Pure: it knows no process, no clock and no terminal.
"""

import signal
from dataclasses import dataclass
from typing import Final

FIRST_DELAY: Final = 0.5
LONGEST_DELAY: Final = 15.0
STEADY_SECONDS: Final = 30.0

STOP_STAGES: Final[tuple[tuple[frozenset[str], float], ...]] = (
    # The box leaves first, so that its streams end as on a real network; then whoever calls the daemon; then the
    # daemon, which says good-bye to the rest; the databases last, when nobody has anything to write any more.
    (frozenset({"agent"}), 0.8),
    (frozenset({"api", "worker"}), 2.2),
    (frozenset({"tunnel"}), 3.2),
    (frozenset({"postgres", "valkey"}), 4.5),
)
"""Who is stopped together, and the second after the order to stop at which the stage's programs are killed."""


@dataclass(slots=True)
class Restarts:
    """How long to wait before a program is started again: doubling, and from the start after a steady run."""

    failures: int = 0

    def delay(self, lasted: float) -> float:
        """Seconds to wait after a run of that many seconds."""
        if lasted >= STEADY_SECONDS:
            self.failures = 0
        pause: float = min(FIRST_DELAY * 2.0 ** min(self.failures, 10), LONGEST_DELAY)
        self.failures += 1
        return pause


def ending(status: int) -> str:
    """How a process ended, in words: ``status`` as ``Popen.returncode`` has it (negative: a signal)."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def died_line(name: str, status: int, pause: float) -> str:
    """The one line about a program that died while it should run."""
    return f"{name} {ending(status)}; it is started again in {pause:g} s"


def gone_line(name: str, status: int, words: str) -> str:
    """The one line about a program that ended for good."""
    return f"{name} {ending(status)} and is not started again: {words}"
