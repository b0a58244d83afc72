"""Ports for servers that tests start: free now, and still free when the server binds its own some seconds later.

A port that the system chooses itself (`bind` to 0) is one of those that it gives to outgoing connections too, of which
a run makes thousands: between the probe and the server's own `bind` any of them can take it.
"""

import os
import random
import socket
from typing import Final

LOWEST: Final = 10_000
BEHIND: Final = 28_000
"""Below those for outgoing connections (Linux: from 32 768 on), and those that the embedded servers choose from."""
SLICES: Final = 12
"""Each worker of pytest-xdist takes from a slice of its own: two that probe at the same time never meet."""

_given: set[int] = set()


def _slice() -> range:
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw") or 0) % SLICES
    each = (BEHIND - LOWEST) // SLICES
    return range(LOWEST + worker * each, LOWEST + (worker + 1) * each)


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free, and was not given out before in this process."""
    return free_ports(1)


def free_ports(size: int) -> int:
    """The first of so many neighbouring ones."""
    mine = _slice()
    for _ in range(1000):
        first = random.randrange(mine.start, mine.stop - size)
        wanted = set(range(first, first + size))
        if not wanted & _given and all(map(_is_free, wanted)):
            _given.update(wanted)
            return first
    raise AssertionError(f"no free port in {mine}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
