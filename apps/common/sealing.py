"""Secrets that must be read again (to sign with): sealed with keys made from `SECRET_KEY`, never stored plain.

What needs no reading back (tokens) is stored as a hash instead. The first secret of the comma list seals, all open, so
that it can be rotated without a stop: `reseal` moves a text to the newest key before the old one leaves the list.
"""

from __future__ import annotations

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings


class Unreadable(ValueError):
    """The text was sealed with a key that `SECRET_KEY` no longer holds, or for another purpose."""


def seal(text: str, *, purpose: str) -> str:
    """`text` encrypted and authenticated (Fernet: AES-128-CBC, HMAC-SHA256); each `purpose` has keys of its own."""
    return _box(purpose).encrypt(text.encode()).decode()


def unseal(sealed: str, *, purpose: str) -> str:
    """The text that `seal` took. Raises Unreadable."""
    try:
        return _box(purpose).decrypt(sealed.encode()).decode()
    except InvalidToken:
        raise Unreadable("sealed with a key that is not in VISIONA_SECRET_KEY") from None


def reseal(sealed: str, *, purpose: str) -> str:
    """The same secret sealed with the newest key; unchanged if it already is. Raises Unreadable."""
    text = unseal(sealed, purpose=purpose)
    try:
        Fernet(_key(settings.SECRET_KEY, purpose)).decrypt(sealed.encode())
    except InvalidToken:
        return seal(text, purpose=purpose)
    return sealed


def _box(purpose: str) -> MultiFernet:
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return MultiFernet([Fernet(_key(secret, purpose)) for secret in secrets])


@lru_cache(maxsize=64)
def _key(secret: str, purpose: str) -> bytes:
    """HKDF (RFC 5869): from one secret a key for each purpose, none of which tells of the others."""
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=f"visiona {purpose}".encode()).derive(secret.encode())
    return base64.urlsafe_b64encode(derived)
