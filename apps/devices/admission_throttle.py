"""Agents that come again and again with a token that is refused (`VISIONA_THROTTLE_AGENT`): 429 without a look at it.

Refusals are counted for (token, address), so that no box is shut out by another's: neither by a neighbour behind the
same address, nor by whoever tries a token elsewhere.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from typing import Final

from apps.common.errors import DomainError
from apps.common.limits import throttle
from apps.devices import admission
from tunnel.contract import Admitted, Credential, Refused, client_network

_COUNTED: Final = (401, 403)
"""What will not be better next time; a box that is told to wait (409, 503) has done nothing wrong."""


def authenticate(credentials: Sequence[Credential], *, node: str, now: dt.datetime) -> list[Admitted | Refused]:
    """As `admission.authenticate`, for those that were not refused too often within the minute."""
    windows = [
        throttle.window("AGENT", throttle.by_secret(each["token"]), client_network(each["address"]))
        for each in credentials
    ]
    waits = throttle.full(windows)
    heard = [each for each, wait in zip(credentials, waits, strict=True) if wait is None]
    verdicts = iter(admission.authenticate(heard, node=node, now=now) if heard else [])
    answers: list[Admitted | Refused] = [next(verdicts) if wait is None else _too_often(wait) for wait in waits]
    throttle.count(
        [
            window
            for window, wait, answer in zip(windows, waits, answers, strict=True)
            if wait is None and not answer["ok"] and answer["status"] in _COUNTED
        ]
    )
    return answers


def _too_often(wait: int) -> Refused:
    error = DomainError("RATE_LIMITED")
    return Refused(ok=False, status=error.status, code=error.code, message=error.message, retry_after=wait)
