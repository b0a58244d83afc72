"""The limits and timeouts of an exchange, with api.md's defaults. Pure data: the driver holds the clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes, counts and seconds (api.md, "What the proxy must get right"). The seconds are for the driver to keep.

    Times count progress and idleness, never the whole exchange: a stream that moves lives for days.
    """

    head_bytes: int = 32 * 1024
    head_fields: int = 100
    answer_head_bytes: int = 64 * 1024
    answer_head_fields: int = 200
    target_bytes: int = 8 * 1024
    """Longest request target; above it 414. nginx and Apache refuse at 8 KiB too."""
    request_body: int = 1 << 30
    """Bytes, inclusive; 413 above. Answers have no limit."""
    trailer_bytes: int = 16 * 1024
    chunk_line: int = 1024
    """Longest chunk size line, extensions included."""
    interim_at_once: int = 64
    """How many 1xx heads may come in one piece before the box counts as broken."""
    interim_responses: int = 4096
    """How many may come in all: one a second for an hour."""
    open_seconds: float = 10.0
    head_seconds: float = 60.0
    idle_seconds: float = 300.0
    upgraded_idle_seconds: float = 3600.0


LIMITS: Final = Limits()
