"""Which streams of an agent may be kept as connections for the next request (tunnel.md, "One stream, one connection").

Pure decisions about one tunnel session; it holds no streams and no clock. The driver keeps the pool.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

PROBE_SECONDS: Final = 0.1
"""How long a stream of a silent agent must stay open after a complete keep-alive answer to prove itself."""


class AfterAnswer(Enum):
    """What to do with a stream whose exchange ended."""

    KEEP = "keep"
    """Put it into the pool."""
    PROBE = "probe"
    """Hold it aside for PROBE_SECONDS; if nothing came and it is still open, call `still_open` and pool it."""
    CLOSE = "close"


class ReusePolicy:
    """One tunnel session's word on reuse. Not thread-safe: one owner, or a lock around it.

    `announced` is whether the agent named the feature `keepalive`.
    """

    __slots__ = ("_announced", "_refuted", "_shown")

    def __init__(self, *, announced: bool) -> None:
        self._announced = announced
        self._shown = False
        self._refuted = False

    def __repr__(self) -> str:
        return f"<ReusePolicy announced={self._announced} shown={self._shown} refuted={self._refuted}>"

    def after_answer(self, *, reusable: bool) -> AfterAnswer:
        """What to do with the stream of an exchange whose `Exchange.reusable` is given."""
        if not reusable or self._refuted:
            return AfterAnswer.CLOSE
        return AfterAnswer.KEEP if self._announced or self._shown else AfterAnswer.PROBE

    def still_open(self) -> None:
        """A probed stream was still open after PROBE_SECONDS."""
        self._shown = True

    def may_reuse(self, *, idempotent: bool) -> bool:
        """Whether a request may go out on a pooled stream."""
        return self._announced or (self._shown and not self._refuted and idempotent)

    def reused_stream_unanswered(self) -> None:
        """A reused stream ended without one byte: a silent agent is not trusted again in this session."""
        self._refuted = not self._announced
