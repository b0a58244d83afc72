"""How long a tunnel's writer has been waiting for its transport without getting on. A slow line gets on."""

from __future__ import annotations

from typing import Protocol


class Unsent(Protocol):
    """A transport, as far as this looks at it."""

    def unsent(self) -> int | None:
        """Bytes of what is being written that the peer's system has not taken; None: nobody can tell."""


class WriteProgress:
    """Of one writer. `since` is its to set; whoever looks now and then asks for `stuck`."""

    __slots__ = ("_left", "since")

    def __init__(self) -> None:
        self.since: float | None = None
        """When the write under way began, or was last seen to get on; None: none is under way."""
        self._left: int | None = None

    def stuck(self, now: float, transport: Unsent) -> float:
        """Seconds without progress, 0 where nothing is being written. A whole message may take longer than it may be
        still: what the peer's system takes counts, not the end of the call."""
        if self.since is None:
            return 0.0
        left, before = transport.unsent(), self._left
        self._left = left
        if left is not None and before is not None and left < before:
            self.since = now
        return now - self.since
