"""Whose bytes go out next: deficit round robin over the streams that can send. Knows no control frames.

Two rings: interactive streams go first, bulk ones (`MuxStream.bulk`) have what is left, and never less than a ninth.
Level-triggered: a stream is in the ring or not; what it has to say is read from the stream when its turn comes.
"""

from collections import deque

from tunnel.protocol.frames import DATA, HEADER, HEADER_SIZE
from tunnel.protocol.stream import STEP, MuxStream, State

# Smaller pieces than this are not cut off a stream only to fill the end of a batch.
_SMALLEST_CUT = 1024
# Quanta of interactive streams after which a waiting bulk stream has one.
_PASSES = 8


class DeficitRoundRobin:
    """The ring of streams with bytes and window. `quantum` (bytes) is what a stream may send in its turn."""

    __slots__ = (
        "_bulk",
        "_low_water",
        "_passed_over",
        "_quantum",
        "_ring",
        "frames",
        "heavy",
        "relieved",
        "spoken_at",
        "stalls",
    )

    def __init__(self, quantum: int, low_water: int) -> None:
        self._quantum = quantum
        self._low_water = low_water
        self._ring: deque[MuxStream] | None = None  # made when first needed: an idle session stays small
        self._bulk: deque[MuxStream] | None = None
        self._passed_over = 0  # bytes of interactive streams since a bulk one waits
        self.spoken_at: float | None = None  # when interactive streams last had something to send
        # For the caller to take and clear after `fill`.
        self.frames = 0
        self.stalls = 0
        self.relieved: list[MuxStream] = []  # a sender waits and the buffer is down to `low_water` bytes
        self.heavy: list[MuxStream] = []  # sent more than a step: the caller weighs it

    def __bool__(self) -> bool:
        return bool(self._ring or self._bulk)

    def add(self, stream: MuxStream) -> None:
        """Put a stream that became ready at the end of the ring; adding it twice is nothing."""
        if not stream.in_ring:
            stream.in_ring = True
            stream.deficit = 0
            if stream.bulk:
                if self._bulk is None:
                    self._bulk = deque()
                self._bulk.append(stream)
            else:
                if self._ring is None:
                    self._ring = deque()
                self._ring.append(stream)

    def demote(self, stream: MuxStream) -> None:
        """`stream` has become bulk: others pass it."""
        if stream.in_ring and self._ring and stream in self._ring:
            self._ring.remove(stream)
            stream.in_ring = False
            self.add(stream)

    def set_quantum(self, quantum: int) -> None:
        """What a stream may send in its turn from now on, in bytes."""
        self._quantum = quantum

    def clear(self) -> None:
        """Forget all streams."""
        self._ring = self._bulk = None

    def fill(self, out: bytearray, limit: int, now: float) -> list[MuxStream]:
        """Append Data frames to `out` until it holds `limit` bytes or nobody is ready.

        Returns the streams that ran out of bytes: each leaves the ring, and may have a FIN to send. One that has lost
        its window leaves too, with `window_stalled` set.
        """
        drained: list[MuxStream] = []
        ring, bulk = self._ring, self._bulk
        if not bulk:
            if ring:
                self.spoken_at = now
                self._serve(ring, out, limit, now, drained)
            return drained
        if ring:
            self.spoken_at = now
            if self._passed_over >= _PASSES * self._quantum:
                self._passed_over = 0
                self._serve(bulk, out, min(limit, len(out) + self._quantum + HEADER_SIZE), now, drained)
            before = len(out)
            self._serve(ring, out, limit, now, drained)
            self._passed_over += len(out) - before
        before = len(out)
        self._serve(bulk, out, limit, now, drained)
        if len(out) > before:
            self._passed_over = 0
        return drained

    def _serve(self, ring: deque[MuxStream], out: bytearray, limit: int, now: float, drained: list[MuxStream]) -> None:
        while ring:
            stream = ring[0]
            waiting = len(stream.send_buffer)
            available = stream.send_window.available
            # As `ready_to_send` says; the hot path asks for itself.
            if not stream.syn_sent or stream.state is State.GONE or (waiting and available <= 0):
                self._leave(ring)
                continue
            if waiting:
                if stream.deficit <= 0:
                    stream.deficit = self._quantum
                allowed = min(available, waiting)
                # Alone in the ring its turns follow each other: one frame instead of several.
                piece = allowed if len(ring) == 1 else min(allowed, stream.deficit)
                room = limit - len(out) - HEADER_SIZE
                if room < piece:
                    if room < 1 or (out and room < _SMALLEST_CUT):
                        break
                    piece = room
                self._emit(stream, out, piece, now)
                if stream.send_buffer:
                    self._next_turn(ring, stream)
                    continue
            self._leave(ring)
            drained.append(stream)

    def _emit(self, stream: MuxStream, out: bytearray, piece: int, now: float) -> None:
        buffer = stream.send_buffer
        out += HEADER.pack(DATA, 0, stream.stream_id, piece)
        if piece == len(buffer):
            out += buffer
            buffer.clear()
        else:
            with memoryview(buffer) as view:
                out += view[:piece]
            del buffer[:piece]
        stream.send_window.available -= piece
        stream.deficit -= piece
        stream.moved += piece
        if stream.moved >= STEP and not stream.bulk and stream not in self.heavy:
            self.heavy.append(stream)
        stream.last_progress = now
        self.frames += 1
        if stream.send_blocked and len(buffer) <= self._low_water:
            stream.send_blocked = False
            self.relieved.append(stream)

    def _next_turn(self, ring: deque[MuxStream], stream: MuxStream) -> None:
        if not stream.send_window.available:
            stream.window_stalled = True
            self.stalls += 1
            self._leave(ring)
        elif stream.bulk and ring is not self._bulk:
            self._leave(ring)
            self.add(stream)
        elif stream.deficit <= 0:
            ring.rotate(-1)

    def _leave(self, ring: deque[MuxStream]) -> None:
        stream = ring.popleft()
        stream.in_ring = False
        stream.deficit = 0
