"""How much of a tunnel may be under way on a slow line, by what the line was seen to carry. Pure arithmetic.

A kernel takes what its buffers hold: 128 KiB and more, which are eight seconds of a line of 128 kbit/s, and what is
small waits behind all of it. So the writer of a slow line hands over half a second at a time, and what is
beyond that stays in the core, where the next frame is chosen by whose turn it is. On a fast line nothing is held back.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
WEIGHED: Final = 8 * KIB
"""Bytes of a batch from which on it is worth a look."""
QUEUE_SECONDS: Final = 0.5
"""What may be under way beside two round trips: with one the measured rate could not grow to what the line has. Where
the other direction is full as well, acknowledgements wait in its queue as long: with less the line would lie idle."""
_BATCH_SECONDS: Final = 0.1
_SLOW: Final = 512 * KIB
"""Bytes a second above which the kernel's own bound of unsent bytes is a queue that short."""
_FIRST: Final = 64 * KIB  # taken for the rate of a line that was not measured yet
_FIRST_BATCH: Final = 16 * KIB
_LEAST_QUEUE: Final = 8 * KIB
_LEAST_BATCH: Final = 2 * KIB
_LEAST_RATE: Final = float(KIB)
_FAST: Final = 4.0 * _SLOW  # more need not be told apart, and would be long in falling
_WINDOW: Final = 1.0  # seconds of one measurement: on a full line acknowledgements come in bunches …
_ENOUGH: Final = 64 * KIB  # … or so many bytes: fewer at once are what a policer or a modem lets through as a burst
_LOOK: Final = 0.02  # between two looks at a fast line
_SHORTEST, _LONGEST = 0.005, 0.1  # pauses


class Pacer:
    """Of one writer. `batch` is what it may write at once; `slow` says that it has to ask `pause` before."""

    __slots__ = ("_acked", "_at", "_busy", "_measured", "_most", "_written", "batch", "due", "rate", "slow")

    def __init__(self, most: int) -> None:
        self._most = most
        self._written = 0
        self._acked = 0
        self._at = 0.0
        self._busy = False
        self._measured = False
        self.batch = min(_FIRST_BATCH, most)
        self.rate = 0.0
        """Bytes a second that the line carries; 0.0: not known."""
        self.slow = False
        self.due = 0.0
        """When to look at a line that is not slow."""

    def __repr__(self) -> str:
        return f"<Pacer {self.rate:.0f} B/s {'slow' if self.slow else 'fast'}>"

    def wrote(self, size: int) -> None:
        """So many bytes were handed over."""
        self._written += size

    def rest(self) -> None:
        """The writer has nothing to say: what goes out from now on tells nothing of the line."""
        self._busy = False

    def look(self, now: float, queued: int | None) -> None:
        """The kernel holds `queued` bytes, sent and not acknowledged ones included; None: nobody can tell."""
        self.due = now + _LOOK
        if queued is None:
            self._judge(float(_SLOW))
            return
        acked = self._written - queued
        if self._busy:
            elapsed, moved = now - self._at, acked - self._acked
            if elapsed < _WINDOW and moved < _ENOUGH:
                return
            sample = moved / max(elapsed, 0.001)
            if moved >= _ENOUGH and sample >= self.rate:
                self._judge(sample)
            elif queued or sample >= self.rate:  # less than before says nothing where there was no more to send
                keep = 0.5 ** (elapsed / _WINDOW) if self._measured else 0.0
                self._judge(sample + (self.rate - sample) * keep)
            self._measured = True
        elif not self.rate:
            self._judge(float(_FIRST))
        self._busy = True
        self._at, self._acked = now, acked

    def pause(self, now: float, queued: int | None, round_trip: float) -> float:
        """Seconds to wait before the next batch, 0.0 for none. `round_trip` is that of the bare line."""
        self.look(now, queued)
        if not self.slow or queued is None:
            return 0.0
        excess = queued - max(_LEAST_QUEUE, self.rate * (QUEUE_SECONDS + 2 * round_trip))
        return min(_LONGEST, max(_SHORTEST, excess / self.rate)) if excess > 0 else 0.0

    def _judge(self, rate: float) -> None:
        self.rate = min(max(rate, _LEAST_RATE), _FAST)
        self.slow = rate < _SLOW
        self.batch = min(self._most, max(_LEAST_BATCH, int(rate * _BATCH_SECONDS))) if self.slow else self._most
