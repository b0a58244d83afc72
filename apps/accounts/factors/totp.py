"""Codes of authenticator apps (RFC 6238): SHA-1, six digits, 30 seconds, which is what all of them can do."""

import base64
import re
import secrets
from typing import Final

from cryptography.hazmat.primitives import constant_time
from cryptography.hazmat.primitives.hashes import SHA1
from cryptography.hazmat.primitives.twofactor.totp import TOTP

STEP_SECONDS: Final = 30
DIGITS: Final = 6
LEEWAY_STEPS: Final = 1
"""A code is good for the step before and the step after too: clocks differ, and people type slowly."""
ISSUER: Final = "VisionA Cloud"
_CODE: Final = re.compile(rf"[0-9]{{{DIGITS}}}\Z")


def new_secret() -> str:
    """160 random bits in base 32, as authenticators take them."""
    return base64.b32encode(secrets.token_bytes(20)).decode()


def uri(secret: str, *, name: str) -> str:
    """What an authenticator reads from a QR code."""
    return _totp(secret).get_provisioning_uri(name, ISSUER)


def step_of(secret: str, code: str, *, seconds: float, after: int) -> int | None:
    """The step that `code` belongs to, None if it is none of now; steps up to `after` are spent.

    Every step is looked at, whatever the first one says: the time tells nothing.
    """
    if not _CODE.match(code):
        return None
    totp, now, found = _totp(secret), int(seconds // STEP_SECONDS), None
    for step in range(now - LEEWAY_STEPS, now + LEEWAY_STEPS + 1):
        same = constant_time.bytes_eq(totp.generate(step * STEP_SECONDS), code.encode())
        if same and step > after:
            found = step
    return found


def code_of(secret: str, *, seconds: float) -> str:
    """The code of that moment, as an authenticator shows it."""
    return _totp(secret).generate(seconds).decode()


def _totp(secret: str) -> TOTP:
    return TOTP(base64.b32decode(secret), DIGITS, SHA1(), STEP_SECONDS)  # noqa: S303 - RFC 6238's own; in an HMAC it holds
