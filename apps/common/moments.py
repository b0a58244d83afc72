"""Moments as the API writes them."""

import datetime as dt
from typing import overload


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
