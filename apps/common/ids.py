"""Ids: UUIDv7 made in Python, since PostgreSQL 14 has no function for them (RFC 9562 §5.7)."""

import secrets
import time
import uuid


def uuid7() -> uuid.UUID:
    """A UUIDv7: 48 bits of Unix milliseconds, 12 bits of the fraction (RFC 9562 §6.2, method 3), 62 random bits."""
    nanoseconds = time.time_ns()
    milliseconds, rest = divmod(nanoseconds, 1_000_000)
    fraction = (rest << 12) // 1_000_000
    value = (milliseconds & 0xFFFF_FFFF_FFFF) << 80 | 0x7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62)
    return uuid.UUID(int=value)


def as_uuid(text: str) -> uuid.UUID | None:
    """The UUID in its usual form of 36 characters; None for anything else."""
    if len(text) != 36:
        return None
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
