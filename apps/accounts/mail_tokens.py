"""The tokens in the links of mails: signed, for one purpose, for a time, and for one use.

Nothing is stored, so nothing can be stolen from where it is stored: a token carries a stamp of what its use changes,
and is void once that has changed. Both `VISIONA_SECRET_KEY`s verify, the first signs. It knows no HTTP and no mail.
"""

import datetime as dt
import hashlib
import uuid
from dataclasses import dataclass
from typing import Any, Final, Literal

from django.core import signing

from apps.accounts.models import User

Purpose = Literal["verify", "reset"]
MAX_CHARACTERS: Final = 1024
"""The payload with an e-mail of 254 characters, in base64, and the signature."""


@dataclass(frozen=True, slots=True)
class MailToken:
    """What a genuine token says. `email`: the address that it was sent to. Still to be held against the user."""

    user_id: uuid.UUID
    email: str
    stamp: str

    def is_of(self, purpose: Purpose, user: User) -> bool:
        """Whether the user is still as when it was sent."""
        return self.user_id == user.pk and self.stamp == _stamp(purpose, user)


def issue(purpose: Purpose, user: User, *, email: str, now: dt.datetime) -> str:
    """A token for the user, to be sent to `email`."""
    payload = {"u": user.pk.hex, "e": email, "s": _stamp(purpose, user), "t": int(now.timestamp())}
    return _signer(purpose).sign_object(payload)


def read(purpose: Purpose, token: str, *, seconds: int, now: dt.datetime) -> MailToken | None:
    """What it says; None if it is forged, for another purpose, or older than `seconds`."""
    try:
        payload: dict[str, Any] = _signer(purpose).unsign_object(token)
    except signing.BadSignature:
        return None
    if now.timestamp() - payload["t"] > seconds:
        return None
    return MailToken(uuid.UUID(payload["u"]), payload["e"], payload["s"])


def _signer(purpose: Purpose) -> signing.Signer:
    return signing.Signer(sep=".", salt=f"visiona.mail.{purpose}")


def _stamp(purpose: Purpose, user: User) -> str:
    """Changes with what the token's use changes. A password's hash has a random salt, so nothing is told of it.

    A hash without a key: with one, a rotated key would void what the older one still verifies.
    """
    parts = [purpose, user.password, user.email, str(user.is_active)]
    if purpose == "verify":
        parts.append(str(user.email_verified_at))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
