"""Recovery codes: ten, each good once, stored as hashes. 80 random bits each, so that no guessing gets anywhere."""

import base64
import hashlib
import hmac
import re
import secrets
from typing import Final

COUNT: Final = 10
_BYTES: Final = 10
_CODE: Final = re.compile(r"[a-z2-7]{16}\Z")


def new_codes() -> list[str]:
    """Shown once: `abcd-efgh-ijkl-mnop`."""
    plain = [base64.b32encode(secrets.token_bytes(_BYTES)).decode().lower() for _ in range(COUNT)]
    return ["-".join(code[at : at + 4] for at in range(0, len(code), 4)) for code in plain]


def hash_of(code: str) -> str:
    """What is stored. No slow hash: there is nothing in it that could be guessed."""
    return hashlib.sha256(_plain(code).encode()).hexdigest()


def spend(hashes: list[str], code: str) -> list[str] | None:
    """The hashes without that of `code`; None if it is none of them."""
    if not _CODE.match(_plain(code)):
        return None
    given = hash_of(code)
    rest = [each for each in hashes if not hmac.compare_digest(each, given)]
    return rest if len(rest) < len(hashes) else None


def _plain(code: str) -> str:
    return re.sub(r"[\s-]", "", code).lower()
