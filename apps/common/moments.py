"""Moments as the API writes them, and as it reads what others wrote."""

import datetime as dt
from typing import Final, overload

EARLIEST: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
LATEST: Final = dt.datetime(9000, 1, 1, tzinfo=dt.UTC)
"""Far enough from the ends of Python's calendar that no time zone and no few years more lead out of it."""


def bounded(at: dt.datetime) -> dt.datetime:
    """The same moment in UTC. Raises ValueError for one without its offset, or outside EARLIEST to LATEST."""
    if at.tzinfo is None:
        raise ValueError("a moment without its offset")
    try:
        at = at.astimezone(dt.UTC)
    except OverflowError:
        raise ValueError("a moment outside the calendar") from None
    if not EARLIEST <= at <= LATEST:
        raise ValueError("a moment out of range")
    return at


def read_moment(text: str) -> dt.datetime:
    """An RFC 3339 time with its offset, as somebody outside wrote it, in UTC. Raises ValueError."""
    return bounded(dt.datetime.fromisoformat(text))


@overload
def moment(at: dt.datetime) -> str: ...
@overload
def moment(at: None) -> None: ...
@overload
def moment(at: dt.datetime | None) -> str | None: ...
def moment(at: dt.datetime | None) -> str | None:
    """RFC 3339 as DRF writes it: UTC is `Z`. None stays None."""
    if at is None:
        return None
    text = at.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text
