"""How much of what its peer sent a session handles before others have their turn. Pure: it reads no clock.

What bytes cost is the peer's choice, within what parsers bound: as frames of a byte each they cost hundreds of times
what they cost as bulk. So a session that needed long for its bytes takes fewer of them at once from then on, and more
again, a quarter each time, while it is quick about full turns.
"""

from __future__ import annotations

from typing import Final

MOST: Final = 256 * 1024
"""Bytes: bulk through one stream needs as many at once (quality.md)."""
LEAST: Final = 4 * 1024
SECONDS: Final = 0.005
"""Of the processor, for one turn. A request of another session waits for one turn of each that is busy."""
_FIRST: Final = 64 * 1024


class Turn:
    """One session's budget: `size` is how many bytes it may take at once."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = _FIRST

    def __repr__(self) -> str:
        return f"<Turn size={self.size}>"

    def spent(self, taken: int, seconds: float) -> None:
        """The session took so many bytes, and was so long at them."""
        if seconds > SECONDS:
            self.size = max(LEAST, min(self.size, int(taken * SECONDS / seconds)))
        elif taken >= self.size:
            self.size = min(MOST, self.size + self.size // 4)
