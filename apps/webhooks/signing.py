"""The signature by which a receiver knows that a call is ours, and that it is not an old one sent again.

`X-VisionA-Signature: t=<unix>,v1=<hex HMAC-SHA256 of "t.body">`; while a secret is being changed there is a `v1` for
each. It knows neither Django nor HTTP; the converter's calls, both ways, are signed alike.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from typing import Final

HEADER: Final = "X-VisionA-Signature"
LEEWAY_SECONDS: Final = 300
"""How far the time of a signature may be from the receiver's clock (product.md, "Over time")."""
MAX_HEADER: Final = 1024
_TIME: Final = re.compile(r"[0-9]{1,12}\Z")


def sign(secrets: Iterable[str], body: bytes, at: int) -> str:
    """The header's value: the time, and a signature by each secret."""
    return ",".join([f"t={at}", *(f"v1={_mac(secret, body, at)}" for secret in secrets)])


def verify(header: str, secrets: Iterable[str], body: bytes, now: int) -> bool:
    """Whether one of the secrets signed the body at a time within the leeway; constant time in the secrets."""
    at, given = signed_at(header), [value for name, value in _parts(header) if name == "v1"]
    if at is None or abs(now - at) > LEEWAY_SECONDS:
        return False
    good = False
    for secret in secrets:
        expected = _mac(secret, body, at).encode()
        for each in given:
            good |= hmac.compare_digest(expected, each.encode())
    return good


def signed_at(header: str) -> int | None:
    """The time that a header names, in Unix seconds; None if it names none, or several, or is too long."""
    times = [value for name, value in _parts(header) if name == "t"]
    return int(times[0]) if len(times) == 1 and _TIME.match(times[0]) else None


def _parts(header: str) -> list[tuple[str, str]]:
    if len(header) > MAX_HEADER:
        return []
    named = (part.strip().partition("=") for part in header.split(","))
    return [(name, value) for name, _, value in named]


def _mac(secret: str, body: bytes, at: int) -> str:
    return hmac.new(secret.encode(), str(at).encode() + b"." + body, hashlib.sha256).hexdigest()
