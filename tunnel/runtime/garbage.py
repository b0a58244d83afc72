"""The cyclic garbage collector, set for a program that lives long and makes and drops many objects a request.

By its defaults it looks at 700 new objects for cycles and, now and then, at all there are: seen at a tenth of the
daemon's CPU while it moves bulk, and more the more tunnels it holds. What is made at the start never becomes garbage.
"""

import gc
from typing import Final

_NEW: Final = 10_000  # objects, some megabytes at most, that may wait to be looked at
_OLDER: Final = 20


def calm_collector() -> None:
    """Call it once, when all that lasts as long as the process has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _OLDER, _OLDER)
