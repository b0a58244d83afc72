"""Ends what an owner had started when the owner itself is gone, however it went (kill -9 included).

Run as a plain script with nothing but the standard library, in a session of its own, its standard input a pipe whose
other end only the owner holds. Each line is ``+ <process group> <signal>`` or ``- <process group>``. At the end of the
input the leader of every group still listed gets its signal, and what is left after the grace period is killed.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_SECONDS = 5.0


def _exists(group: int) -> bool:
    # Who inherits an orphan reaps it; until then a zombie still counts, but not for longer than the grace period.
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _ask(leader: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(leader, number)


def _kill(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def main() -> None:
    """Follow the owner's list until its end, then clear up."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)  # only the owner's end ends us
    groups: dict[int, int] = {}
    for line in sys.stdin:
        match line.split():
            case ["+", group, number]:
                groups[int(group)] = int(number)
            case ["-", group]:
                groups.pop(int(group), None)
    # The last started goes first: servers were started before what uses them.
    for group in reversed(groups):
        _ask(group, groups[group])
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := [group for group in groups if _exists(group)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    for group in left:
        _kill(group)


if __name__ == "__main__":
    main()
