"""What the agent does after a refusal, a lost session or a failed dial: a pure decision.

It does not know sockets or clocks. The rules are those of `docs/agent.md`: only a 401 or 403 of the daemon (before the
upgrade, or as close code 4401 or 4403) ends the agent; everything else is tried again for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final

from tunnel.contract import (
    CLOSE_ABUSE,
    CLOSE_DISABLED,
    CLOSE_LIVENESS,
    CLOSE_REPLACED,
    CLOSE_RESTART,
    CLOSE_REVOKED,
    CLOSE_SHUTDOWN,
)

EXIT_OK: Final = 0  # 1 is Python's own, of a traceback
EXIT_USAGE: Final = 2
EXIT_UNAUTHENTICATED: Final = 3
EXIT_FORBIDDEN: Final = 4
EXIT_BUSY: Final = 5

REPLACED_SECONDS: Final = 30.0
ABUSE_SECONDS: Final = 30.0
RESTART_SPREAD: Final = 2.0
MAX_RETRY_AFTER: Final = 3600.0
"""The longest wait that a server may ask for: a wrong header must not lock a box out for a year."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`exit_code` is None to try again, after at least `at_least` seconds and a jitter of at least `spread`."""

    message: str
    exit_code: int | None = None
    at_least: float = 0.0
    spread: float = 0.0


def parse_retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds asked for by a `Retry-After` (RFC 9110 §10.2.3: a number or a date), at most an hour; None: nothing."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for a year or an hour of twenty digits
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return min(max((when - now).total_seconds(), 0.0), MAX_RETRY_AFTER)


_REFUSALS: Final = {
    404: "no tunnel is served at this URL; check --url",
    407: "the proxy wants a user name and a password: http://user:password@proxy:port",
    409: "another device holds this serial number",
    426: "the server does not speak WebSocket here; check --url",
    429: "too many attempts",
    502: "the server before the daemon cannot reach it",
    503: "the service is not ready",
}


def after_refusal(status: int, code: str = "", message: str = "", retry_after: float | None = None) -> Verdict:
    """After the daemon answered `status` instead of 101; `code` and `message` are those of its error envelope."""
    told = f"{status} {code}".strip() + (f": {message}" if message else "")
    if status == 401:
        hint = "create a new pairing token and run the agent with it"
        return Verdict(f"the credential was refused ({told}); {hint}", EXIT_UNAUTHENTICATED)
    if status == 403:
        return Verdict(f"access is forbidden ({told}); the account may be disabled", EXIT_FORBIDDEN)
    least = {409: REPLACED_SECONDS, 429: 5.0}.get(status, 0.0) if retry_after is None else retry_after
    why = _REFUSALS.get(status, "unexpected answer")
    return Verdict(f"refused ({told}); {why}", at_least=least)


def after_close(code: int | None, reason: str = "") -> Verdict:
    """After a session that had begun ended with WebSocket close code `code` (None or 1006: it just vanished)."""
    told = f" ({reason})" if reason else ""
    if code == CLOSE_REVOKED:
        return Verdict(
            f"closed with 4401: the credential was revoked or the device unpaired{told}", EXIT_UNAUTHENTICATED
        )
    if code == CLOSE_DISABLED:
        return Verdict(f"closed with 4403: the account is disabled{told}", EXIT_FORBIDDEN)
    if code == CLOSE_REPLACED:
        return Verdict(
            f"closed with 4409: a newer connection of this device took over{told}; is a second agent running?",
            at_least=REPLACED_SECONDS,
        )
    if code == CLOSE_ABUSE:
        return Verdict(f"closed with 4429: the daemon saw abuse{told}", at_least=ABUSE_SECONDS)
    if code in (CLOSE_RESTART, CLOSE_SHUTDOWN):
        return Verdict(f"closed with {code}: the daemon restarts{told}", spread=RESTART_SPREAD)
    if code == CLOSE_LIVENESS:
        return Verdict(f"closed with 4408: the daemon did not hear from us{told}")
    if code is None or code == 1006:
        return Verdict(f"the connection was lost{told}")
    return Verdict(f"closed with {code}{told}")
