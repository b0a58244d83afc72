"""What the agent does after a refusal, a lost session or a failed dial: a pure decision.

It does not know sockets or clocks. The rules are those of `docs/agent.md`: nothing ends the agent. After a refusal of
the daemon (401 or 403 in its own envelope, close code 4401 or 4403) it tries again slowly, after everything else soon.
What another server says (a portal, a proxy, a load balancer) is no refusal at all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, Literal

from tunnel.contract import (
    CLOSE_ABUSE,
    CLOSE_DISABLED,
    CLOSE_LIVENESS,
    CLOSE_REPLACED,
    CLOSE_RESTART,
    CLOSE_REVOKED,
    CLOSE_SHUTDOWN,
    ERROR_STATUS,
)

EXIT_OK: Final = 0  # 1 is Python's own, of a traceback
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 3

ABUSE_SECONDS: Final = 30.0
TAKEN_SECONDS: Final = 30.0
RESTART_SPREAD: Final = 2.0
MAX_RETRY_AFTER: Final = 3600.0
"""The longest wait that a server may ask for: a wrong header must not lock a box out for a year."""
MAX_WORDS: Final = 300
PAIR_ANEW: Final = "it is tried again from time to time; a new pairing token pairs this box anew"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened, in words, and in which series the next attempt stands.

    `again`: `soon`, after at least `at_least` seconds and a jitter of at least `spread`; `refused`, minutes to an hour;
    `replaced`, half a minute or more.
    """

    message: str
    at_least: float = 0.0
    spread: float = 0.0
    again: Literal["soon", "refused", "replaced"] = "soon"

    @property
    def refused(self) -> bool:
        """Whether the daemon itself said that the credential is worth nothing, or the account disabled."""
        return self.again == "refused"


def plain(text: str) -> str:
    """Somebody else's text for a log or a terminal: one line of printable characters, at most MAX_WORDS of them."""
    return "".join(letter if letter.isprintable() else " " for letter in text[:MAX_WORDS]).strip()


def parse_retry_after(value: str | None, date: str | None, now: datetime) -> float | None:
    """Seconds asked for by a `Retry-After` (RFC 9110 §10.2.3: a number or a date), at most an hour; None: nothing.

    A date is judged by the answer's own `date`: a box's clock (`now`) may be years off, and counts only without one.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), MAX_RETRY_AFTER)
    when = _parse_date(text)
    if when is None:
        return None
    return min(max((when - (_parse_date(date) or now)).total_seconds(), 0.0), MAX_RETRY_AFTER)


def _parse_date(text: str | None) -> datetime | None:
    try:
        when = parsedate_to_datetime(text or "")
    except (ValueError, OverflowError):  # the latter for a year or an hour of twenty digits
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when


def read_envelope(status: int, body: bytes) -> tuple[str, str] | None:
    """The code and message of the daemon's error envelope; None of what another server wrote.

    It is the daemon's own if it has the envelope's shape and a code that goes with this status.
    """
    try:
        envelope: Any = json.loads(body)
    except (ValueError, RecursionError):  # the latter for brackets by the thousand
        return None
    error = envelope.get("error") if isinstance(envelope, dict) and envelope.get("success") is False else None
    if not isinstance(error, dict):
        return None
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, str) or not isinstance(message, str) or not isinstance(error.get("request_id"), str):
        return None
    return (code, plain(message)) if ERROR_STATUS.get(code) == status else None


_OWN_WORDS: Final = {
    404: "no tunnel is served at this URL; check --url",
    409: "another device holds this serial number",
    426: "the server does not speak WebSocket here; check --url",
    429: "too many attempts",
    503: "the service is not ready",
}
_FOREIGN_WORDS: Final = {
    400: "not the daemon's answer; does this port want TLS? use wss://",
    401: "not the daemon's answer: somebody on the way asks for a password",
    403: "not the daemon's answer: somebody on the way forbids it (a portal, a firewall?)",
    404: "no tunnel is served at this URL; check --url",
    407: "the proxy wants a user name and a password: http://user:password@proxy:port",
    426: "the server does not speak WebSocket here; check --url",
    502: "the server before the daemon cannot reach it",
    503: "the service is not ready",
    511: "the network wants a login first (a portal)",
}


def after_refusal(status: int, code: str, message: str = "", retry_after: float | None = None) -> Verdict:
    """After the daemon itself answered `status` instead of 101, with the code and message of its error envelope."""
    told = f"{status} {code}" + (f": {message}" if message else "")
    if status == 401:
        return Verdict(f"the credential was refused ({told}); {PAIR_ANEW}", retry_after or 0.0, again="refused")
    if status == 403:
        hint = "the account may be disabled; it is tried again from time to time"
        return Verdict(f"access is forbidden ({told}); {hint}", retry_after or 0.0, again="refused")
    least = {409: TAKEN_SECONDS, 429: 5.0}.get(status, 0.0) if retry_after is None else retry_after
    return Verdict(f"refused ({told}); {_OWN_WORDS.get(status, 'unexpected answer')}", at_least=least)


def after_foreign_answer(status: int, location: str = "", retry_after: float | None = None) -> Verdict:
    """After a server that is not the daemon answered; `location` is where it sends us. It cannot refuse us."""
    if location and 300 <= status < 400:
        words = f"it sends us to {plain(location)!r}; a portal, or should --url begin with wss://?"
    else:
        words = _FOREIGN_WORDS.get(status, "not the daemon's answer; check --url")
    return Verdict(f"answered with {status}; {words}", at_least=retry_after or 0.0)


def after_close(code: int | None, reason: str = "") -> Verdict:
    """After a session that had begun ended with WebSocket close code `code` (None or 1006: it just vanished)."""
    told = f" ({plain(reason)})" if reason else ""
    if code == CLOSE_REVOKED:
        words = "the credential was revoked or the device unpaired"
        return Verdict(f"closed with 4401: {words}{told}; {PAIR_ANEW}", again="refused")
    if code == CLOSE_DISABLED:
        return Verdict(f"closed with 4403: the account is disabled{told}", again="refused")
    if code == CLOSE_REPLACED:
        words = "a newer connection of this device took over"
        return Verdict(f"closed with 4409: {words}{told}; is a second agent running?", again="replaced")
    if code == CLOSE_ABUSE:
        return Verdict(f"closed with 4429: the daemon saw abuse{told}", at_least=ABUSE_SECONDS)
    if code in (CLOSE_RESTART, CLOSE_SHUTDOWN):
        return Verdict(f"closed with {code}: the daemon restarts{told}", spread=RESTART_SPREAD)
    if code == CLOSE_LIVENESS:
        return Verdict(f"closed with 4408: the daemon did not hear from us{told}")
    if code is None or code == 1006:
        return Verdict(f"the connection was lost{told}")
    return Verdict(f"closed with {code}{told}")
