"""The signed part of `/storage/{signed}`: what may be done with which bytes until when, and our HMAC of that.

It knows neither Django nor files. The signature covers the text of the claims as it stands, and is compared as text,
so that no other spelling of either passes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

_DOMAIN: Final = b"visiona storage v1\n"
"""So that a signature made for another purpose with the same secret is none here."""
MAX_LENGTH: Final = 4096
_TYPES: Final = [str, str, int, int, str, str, str]
Method = Literal["PUT", "GET"]


class Forged(Exception):
    """The text is not one that we signed, or its time is over."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a signed URL allows.

    Attributes:
        method: PUT, or GET (and so HEAD).
        key: of the object or upload.
        size: bytes; the most that a PUT may bring, what a GET will find.
        expires: Unix seconds, exclusive.
        filename: for whoever saves a download.
        sha256: of a download, which is its ETag.
        owner: who asked for it, in whose share of the transfers it counts.
    """

    method: Method
    key: str
    size: int
    expires: int
    filename: str = ""
    sha256: str = ""
    owner: str = ""


def sign(grant: Grant, secrets: Sequence[str]) -> str:
    """The text for the URL, signed with the first secret. Only `A-Za-z0-9_-` and one dot."""
    fields = [grant.method, grant.key, grant.size, grant.expires, grant.filename, grant.sha256, grant.owner]
    claims = _encode(json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode())
    return f"{claims}.{_signature(claims, secrets[0])}"


def verify(text: str, secrets: Sequence[str], *, method: str, now: float) -> Grant:
    """What `text` allows for `method` at `now` (Unix seconds). Raises Forged for anything that is not right."""
    claims, dot, signature = text.partition(".")
    if not dot or len(text) > MAX_LENGTH or not text.isascii():
        raise Forged
    # All are compared, so that the time does not tell which one signed.
    matches = [hmac.compare_digest(_signature(claims, secret), signature) for secret in secrets]
    if not any(matches):
        raise Forged
    try:
        fields: Any = json.loads(_decode(claims))
    except ValueError:
        raise Forged from None
    if isinstance(fields, list) and len(fields) == len(_TYPES) - 1:  # of the last release, which named no owner
        fields.append("")
    if not isinstance(fields, list) or [type(field) for field in fields] != _TYPES:  # of another release
        raise Forged
    grant = Grant(*fields)
    if grant.expires <= now or ("GET" if method == "HEAD" else method) != grant.method:
        raise Forged
    return grant


def _signature(claims: str, secret: str) -> str:
    return _encode(hmac.digest(secret.encode(), _DOMAIN + claims.encode(), hashlib.sha256))


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
