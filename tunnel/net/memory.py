"""Memory, set for a program that lives long and makes and drops many objects a request.

By its defaults Python's collector looks at 700 new objects for cycles and, now and then, at all there are: seen at a
tenth of the daemon's CPU while it moves bulk, and more the more tunnels it holds. What is made at the start never
becomes garbage. The C library returns each freed piece of 128 KiB and more to the kernel, which has to clear it for
the next read anew: 180 000 page faults a GB were seen (mallopt(3); the figures are in benchmarks/NOTES.md).
"""

import ctypes
import gc
from typing import Final

_NEW: Final = 10_000  # objects, some megabytes at most, that may wait to be looked at
_OLDER: Final = 20
_TRIM_THRESHOLD: Final = -1  # the names that mallopt has for them
_MMAP_THRESHOLD: Final = -3
_ARENA_MAX: Final = -8
_MAPPED_FROM: Final = 1024 * 1024  # bytes; a read and what becomes of it is less
_KEPT: Final = 8 * 1024 * 1024  # bytes at the heap's end that stay ours


def calm_collector() -> None:
    """Call it once, when all that lasts as long as the process has been made."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_NEW, _OLDER, _OLDER)


def keep_memory() -> bool:
    """Use buffers that were freed again, instead of asking the kernel for others; whether the C library can (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_THRESHOLD, _MAPPED_FROM) and mallopt(_TRIM_THRESHOLD, _KEPT))


def return_memory() -> bool:
    """Give back what the imports left over, and let all threads take from one heap; whether the C library can (glibc).

    For a program on a small machine, whose other threads only look names up: each would else begin a heap of its own.
    """
    library = ctypes.CDLL(None)
    mallopt, trim = getattr(library, "mallopt", None), getattr(library, "malloc_trim", None)
    if mallopt is None or trim is None:
        return False
    return bool(mallopt(_ARENA_MAX, 1)) and trim(0) >= 0
