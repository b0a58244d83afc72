"""How many sockets this process may have: all that the system allows it, not the few that a shell starts with."""

from __future__ import annotations

import resource
from contextlib import suppress


def raise_limit() -> int:
    """Raise the soft limit of open files to the hard one; what it is then. Where that is refused, it stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # some systems take no unlimited number of files
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
