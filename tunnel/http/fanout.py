"""One endless answer for many viewers: who gets which unit, and what a slow one misses.

It does not know how units are cut (`parts`), who a viewer is, sockets or clocks. A viewer has a bounded queue of whole
units, shared with the others', of which the oldest goes first when it is full: so nobody is held up, nobody gets half
a unit, and what all queues hold together is bounded by the latest few units.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final

from tunnel.http.parts import Kind, Piece

UNITS: Final = 4
QUEUE_BYTES: Final = 8 << 20


class Fanout:
    """The source's side. `units` and `size` (bytes) bound a viewer's queue; one unit always fits.

    With `replay` who comes later is shown the latest unit at once: right for pictures, wrong for events.
    """

    __slots__ = ("_replay", "_seen", "ended", "latest", "opening", "size", "skipped", "tail", "units", "viewers")

    def __init__(self, *, units: int = UNITS, size: int = QUEUE_BYTES, replay: bool = True) -> None:
        self.units = units
        self.size = size
        self.viewers: set[Viewer] = set()
        self.skipped = 0
        """Units that viewers missed, all together."""
        self.opening: bytes | None = None
        """The delimiter whose unit has not come yet."""
        self.latest: tuple[bytes, bytes] | None = None
        self.tail = b""
        self.ended = False
        self._replay = replay
        self._seen = False

    def __repr__(self) -> str:
        return f"<Fanout viewers={len(self.viewers)} skipped={self.skipped} ended={self.ended}>"

    def add(self) -> Viewer:
        """A viewer from now on: it begins with a whole unit, and its delimiter."""
        viewer = Viewer(self, late=self._seen)
        self.viewers.add(viewer)
        if self.latest is not None:
            viewer.push(*self.latest)
        return viewer

    def remove(self, viewer: Viewer) -> None:
        """It is gone. Idempotent."""
        self.viewers.discard(viewer)

    def feed(self, pieces: Iterable[Piece]) -> None:
        """What came of the source. Each viewer may have something to `take` afterwards."""
        for kind, data in pieces:
            self._seen = True
            if kind is Kind.OPENING:
                self.opening = data
            elif kind is Kind.TAIL:
                self.tail += data
            else:
                delimiter, self.opening = self.opening or b"", None
                for viewer in self.viewers:
                    self.skipped += viewer.push(delimiter, data)
                if self._replay:
                    self.latest = (delimiter, data)

    def end(self) -> None:
        """The source ended, in good order: viewers end behind what they have still to take."""
        self.ended = True


class Viewer:
    """One viewer's queue."""

    __slots__ = ("_delimited", "_fanout", "_late", "_queue", "_size", "_started", "_tailed", "skipped")

    def __init__(self, fanout: Fanout, *, late: bool) -> None:
        self._fanout = fanout
        self._queue: deque[tuple[bytes, bytes]] = deque()
        self._size = 0
        self._late = late  # what stands before the first delimiter is not for it
        self._started = not late
        self._delimited = False  # the delimiter of the next unit was taken already
        self._tailed = False
        self.skipped = 0

    def __repr__(self) -> str:
        return f"<Viewer queued={len(self._queue)} bytes={self._size} skipped={self.skipped}>"

    def push(self, delimiter: bytes, unit: bytes) -> int:
        """A unit for the queue; how many older ones had to go."""
        queue = self._queue
        gone = 0
        bound = self._fanout
        size = len(delimiter) + len(unit)
        while queue and (len(queue) >= bound.units or self._size + size > bound.size):
            old = queue.popleft()
            self._size -= len(old[0]) + len(old[1])
            gone += 1
        queue.append((delimiter, unit))
        self._size += size
        self.skipped += gone
        return gone

    def take(self) -> bytes | None:
        """The next bytes for this viewer, one unit at most; None: nothing now, b"": the source ended."""
        if self._queue:
            delimiter, unit = self._queue.popleft()
            self._size -= len(delimiter) + len(unit)
            if self._delimited:
                self._delimited = False
                return unit
            if not self._started:
                self._started = True
                delimiter = delimiter.lstrip(b"\r\n")
            return delimiter + unit
        opening = self._fanout.opening
        # At once for who is up to date: a browser shows a picture when the delimiter behind it has come.
        if opening is not None and self._started and not self._delimited:
            self._delimited = True
            return opening
        if not self._fanout.ended:
            return None
        if not self._tailed:
            self._tailed = True
            if self._fanout.tail:
                return self._fanout.tail
        return b""
