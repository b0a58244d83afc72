"""How many sockets this process may have: all that the system allows it, not the few that a shell starts with."""

from __future__ import annotations

import resource
from contextlib import suppress
from typing import Final

_OWN: Final = 80
"""For what is no connection of a port: the log, listeners, pollers, calls to the API and to other daemons."""
_LEAST: Final = 32
_ENDLESS: Final = 1 << 20


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; what it is then. Where that is refused, it stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems take no unlimited number of files
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connections_possible() -> int:
    """How many connections the ports may hold together with the descriptors that there are."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft > _ENDLESS:
        soft = _ENDLESS
    return max(_LEAST, soft - _OWN)
