"""How many uploads and downloads a process carries at once: each holds a thread for as long as its client likes."""

from __future__ import annotations

import threading
import time
from typing import Final

from django.conf import settings

from apps.common.errors import DomainError

WAIT_SECONDS: Final = 2.0
RETRY_AFTER: Final = 5


class Room:
    """A place for each transfer. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0

    def __repr__(self) -> str:
        return f"<Room {self._taken}>"

    def enter(self) -> None:
        """Take a place, to be given back by `leave`. Raises DomainError OVERLOADED when none becomes free in time."""
        limit = settings.VISIONA["STORAGE_TRANSFERS"]
        until = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while self._taken >= limit:
                if not self._changed.wait(max(0.0, until - time.monotonic())):
                    raise DomainError("OVERLOADED", retry_after=RETRY_AFTER)
            self._taken += 1

    def leave(self) -> None:
        """Give it back."""
        with self._changed:
            self._taken -= 1
            self._changed.notify()


room: Final = Room()
"""The process's own."""
