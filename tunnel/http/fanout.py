"""One endless answer for many viewers: who gets which bytes, and what a slow one misses.

A viewer that keeps up gets the source's bytes as they come. A viewer that falls behind gets the rest of its present
unit and goes on with one of the latest; a viewer that joins later begins with a whole unit. So no viewer is delayed and
none gets half a unit. What is kept is bounded: the latest few units, once for all viewers, and for each slow viewer
the rest of its present unit.

Once it is unknown where units begin (`share_no_more`), each viewer gets all bytes, as far behind as the bound allows; a
viewer that is further behind is lost.
It does not know how units are found (`parts`), who a viewer is, sockets or clocks.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import Final

from tunnel.http.parts import Seam

UNITS: Final = 4
QUEUE_BYTES: Final = 8 << 20
_BLOCK: Final = 16 * 1024  # what comes in smaller pieces is gathered up to this size
_LOOSE: Final = 256 * 1024  # bytes that may be kept longer than needed where no unit ends

_start_of = attrgetter("start")


class _Block:
    """Bytes of the body, from `start` on. The last one may grow."""

    __slots__ = ("data", "start")

    def __init__(self, start: int, data: bytes | bytearray) -> None:
        self.start = start
        self.data = data


class Fanout:
    """The source's side. A viewer is at most `units` whole units and `size` bytes behind; one unit always fits.

    With `replay` a viewer that joins later gets the latest unit at once: right for pictures, wrong for events.
    """

    __slots__ = (
        "_blocks", "_end", "_first", "_replay", "_rests", "_seams", "_whole", "ended", "shared", "size", "skipped",
        "units", "viewers",
    )  # fmt: skip

    def __init__(self, *, units: int = UNITS, size: int = QUEUE_BYTES, replay: bool = True) -> None:
        self.units = units
        self.size = size
        self.viewers: set[Viewer] = set()
        self.skipped = 0
        """Number of units that viewers have missed, all viewers together."""
        self.ended = False
        self.shared = True
        """Whether a viewer may still join."""
        self._replay = replay
        self._blocks: list[_Block] = []
        self._first = 0  # how many blocks went before
        self._seams: list[Seam] = []
        self._whole = 0
        self._end = 0
        self._rests = 0  # bytes of units that slow viewers are in, kept for them alone

    def __repr__(self) -> str:
        return f"<Fanout viewers={len(self.viewers)} held={self.held} skipped={self.skipped} ended={self.ended}>"

    @property
    def held(self) -> int:
        """How many bytes are kept."""
        return self._end - (self._blocks[0].start if self._blocks else self._end) + self._rests

    @property
    def behind(self) -> int:
        """How many bytes wait for the viewer that has taken most."""
        return min((self._end - viewer.at for viewer in self.viewers if not viewer.lost), default=0)

    def add(self) -> Viewer:
        """Add a viewer. It begins with a whole unit and the delimiter before it."""
        seams = self._seams
        viewer = Viewer(self)
        if not self._end:
            pass  # it is there from the first byte on
        elif self._replay:
            whole = self._units_whole()
            self._place(viewer, seams[max(whole - 1, 0)].start if seams else 0)
        else:
            self._place(viewer, self._end)
            viewer.waiting = not seams or seams[-1].start != self._end
        self.viewers.add(viewer)
        return viewer

    def remove(self, viewer: Viewer) -> None:
        """Remove a viewer. Idempotent."""
        if viewer in self.viewers:
            self.viewers.discard(viewer)
            self._rests -= viewer.drop_rest()

    def feed(self, data: bytes, seams: Sequence[Seam] = (), whole: int = 0) -> None:
        """Add bytes of the source, with the units that begin in them and the position up to which units are whole.

        Each viewer may have something to `take` afterwards.
        """
        before = self._end
        self._append(data)
        if not self.shared:
            if self.held > _LOOSE:
                self._drop_lost()
                self._forget(self._end)
        elif seams or whole > self._whole:
            self._seams += seams
            self._whole = max(whole, self._whole)
            self._let_skip(before)

    def share_no_more(self) -> None:
        """Note that it is unknown from now on where units begin: no viewer joins, and none skips."""
        self.shared = False
        self._seams.clear()
        for viewer in self.viewers:
            viewer.lost |= viewer.waiting
        self._forget(self._end)

    def end(self) -> None:
        """Note that the source ended in good order: viewers end behind the bytes that they have still to take."""
        self.ended = True

    # --- what is kept -------------------------------------------------------------------------------------------------
    def _append(self, data: bytes) -> None:
        if not data:
            return
        last = self._blocks[-1].data if self._blocks else b""
        if isinstance(last, bytearray) and len(last) + len(data) <= _BLOCK:
            last += data
        else:
            self._blocks.append(_Block(self._end, bytearray(data) if len(data) < _BLOCK else data))
        self._end += len(data)

    def _forget(self, until: int) -> None:
        """Drop the bytes before `until` that all viewers have taken."""
        until = min([until, *(viewer.at for viewer in self.viewers if not viewer.lost)])
        blocks, count = self._blocks, 0
        while count < len(blocks) and blocks[count].start + len(blocks[count].data) <= until:
            count += 1
        del blocks[:count]
        self._first += count

    def _place(self, viewer: Viewer, at: int) -> None:
        viewer.at = at
        viewer.block = self._first + max(bisect_right(self._blocks, at, key=_start_of) - 1, 0)

    def _units_whole(self) -> int:
        """How many of the known units are whole: all of them, or all but the last."""
        seams = self._seams
        return len(seams) if seams and self._whole > seams[-1].head else max(len(seams) - 1, 0)

    def _let_skip(self, before: int) -> None:
        """After units ended or began: let viewers skip that are too far behind and were so before the newest bytes."""
        seams = self._seams
        whole = self._units_whole()
        floor = max(0, whole - self.units)
        while floor < whole - 1 and self._end - seams[floor].start > self.size:
            floor += 1
        for viewer in self.viewers:
            if viewer.waiting:
                self._begin(viewer)
            elif seams and viewer.at < min(before, seams[floor].start):
                self._skip(viewer, floor)
        latest = seams[max(whole - 1, 0)].start if self._replay and seams else self._end
        del seams[:floor]
        self._forget(latest)

    def _begin(self, viewer: Viewer) -> None:
        """Let a viewer that waits begin with the next unit."""
        index = bisect_left(self._seams, viewer.at, key=_start_of)
        if index < len(self._seams):
            self._place(viewer, self._seams[index].start)
            viewer.waiting = False

    def _skip(self, viewer: Viewer, floor: int) -> None:
        """Let the viewer continue with the unit of index `floor` behind the rest of its present one."""
        seams = self._seams
        index = bisect_left(seams, viewer.at, key=_start_of)
        if index and seams[index - 1].head == viewer.at:  # it has the delimiter, which serves any unit
            self._place(viewer, seams[floor].head)
            missed = floor - index + 1
        elif index < floor:
            self._rests += viewer.keep_until(seams[index].start)
            self._place(viewer, seams[floor].start)
            missed = floor - index
        else:
            return
        viewer.skipped += missed
        self.skipped += missed

    def _drop_lost(self) -> None:
        for viewer in self.viewers:
            if self._end - viewer.at > self.size:
                viewer.lost = True
                self._rests -= viewer.drop_rest()

    # --- for viewers --------------------------------------------------------------------------------------------------
    def read(self, viewer: Viewer) -> bytes:
        """The next bytes for a viewer, as the source sent them; b"" if it has all."""
        while True:
            index = max(viewer.block - self._first, 0)
            if index >= len(self._blocks):
                return b""
            block = self._blocks[index]
            offset = viewer.at - block.start
            if offset < len(block.data):
                data = bytes(block.data[offset:] if offset else block.data)
                viewer.at += len(data)
                return data
            if index + 1 == len(self._blocks):
                return b""  # the last may grow
            viewer.block = self._first + index + 1

    def took_rest(self, size: int) -> None:
        """Note that a viewer took bytes that were kept for it alone."""
        self._rests -= size


class Viewer:
    """The position of one viewer in the answer."""

    __slots__ = ("_fanout", "_rest", "at", "block", "lost", "skipped", "waiting")

    def __init__(self, fanout: Fanout) -> None:
        self._fanout = fanout
        self._rest: deque[bytes] = deque()  # of the unit behind which it skips
        self.at = 0
        """Position in the body before which the viewer has taken or skipped everything."""
        self.block = 0
        self.waiting = False
        """True while the viewer waits for the next unit to begin."""
        self.lost = False
        """True once the viewer fell too far behind where none can skip: it gets no more bytes."""
        self.skipped = 0

    def __repr__(self) -> str:
        return f"<Viewer at={self.at} skipped={self.skipped}{' lost' if self.lost else ''}>"

    def keep_until(self, stop: int) -> int:
        """Keep the bytes up to a position for this viewer, which has still to take them. Returns how many."""
        kept = 0
        while self.at < stop:
            data = self._fanout.read(self)
            over = max(self.at - stop, 0)
            if over:
                data = data[:-over]
                self.at = stop
            self._rest.append(data)
            kept += len(data)
        return kept

    def drop_rest(self) -> int:
        """Drop the bytes that are kept for this viewer alone. Returns how many."""
        size = sum(map(len, self._rest))
        self._rest.clear()
        return size

    def take(self) -> bytes | None:
        """The next bytes for this viewer; None: nothing now, b"": the source ended, or the viewer is lost."""
        if self._rest:
            data = self._rest.popleft()
            self._fanout.took_rest(len(data))
            return data
        if self.lost:
            return b""
        data = b"" if self.waiting else self._fanout.read(self)
        if data or self._fanout.ended:
            return data
        return None
