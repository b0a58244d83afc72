"""How many uploads and downloads a process carries at once: each holds a thread for as long as its client likes."""

from __future__ import annotations

from typing import Final

from django.conf import settings

from apps.common.errors import DomainError
from apps.common.limits.places import Places

WAIT_SECONDS: Final = 2.0
RETRY_AFTER: Final = 5

places: Final = Places("transfers", lambda: settings.VISIONA["STORAGE_TRANSFERS"])
"""The process's own. No user takes all of them."""


def enter(owner: str) -> None:
    """Take a place, to be given back by `leave`. Raises DomainError OVERLOADED when none becomes free in time."""
    if not places.enter(owner, seconds=WAIT_SECONDS):
        raise DomainError("OVERLOADED", retry_after=RETRY_AFTER)


def leave(owner: str) -> None:
    """Give it back."""
    places.leave(owner)
