"""Whose bytes go out next: deficit round robin over the streams that can send. Knows no control frames.

Level-triggered: a stream is in the ring or not; what it has to say is read from the stream when its turn comes.
"""

from collections import deque

from tunnel.protocol.frames import DATA, HEADER, HEADER_SIZE
from tunnel.protocol.stream import MuxStream

# Smaller pieces than this are not cut off a stream only to fill the end of a batch.
_SMALLEST_CUT = 1024


class DeficitRoundRobin:
    """The ring of streams with bytes and window. `quantum` (bytes) is what a stream may send in its turn."""

    __slots__ = ("_low_water", "_quantum", "_ring", "frames", "relieved", "stalls")

    def __init__(self, quantum: int, low_water: int) -> None:
        self._quantum = quantum
        self._low_water = low_water
        self._ring: deque[MuxStream] | None = None  # made when first needed: an idle session stays small
        # For the caller to take and clear after `fill`.
        self.frames = 0
        self.stalls = 0
        self.relieved: list[MuxStream] = []  # a sender waits and the buffer is down to `low_water` bytes

    def __bool__(self) -> bool:
        return bool(self._ring)

    def add(self, stream: MuxStream) -> None:
        """Put a stream that became ready at the end of the ring; adding it twice is nothing."""
        if not stream.in_ring:
            stream.in_ring = True
            stream.deficit = 0
            if self._ring is None:
                self._ring = deque()
            self._ring.append(stream)

    def clear(self) -> None:
        """Forget all streams."""
        self._ring = None

    def fill(self, out: bytearray, limit: int, now: float) -> list[MuxStream]:
        """Append Data frames to `out` until it holds `limit` bytes or nobody is ready.

        Returns the streams that ran out of bytes: each leaves the ring, and may have a FIN to send. One that has lost
        its window leaves too, with `window_stalled` set.
        """
        drained: list[MuxStream] = []
        ring = self._ring
        while ring:
            stream = ring[0]
            if not stream.ready_to_send:
                self._leave(ring)
                continue
            buffer = stream.send_buffer
            waiting = len(buffer)
            if waiting:
                if stream.deficit <= 0:
                    stream.deficit = self._quantum
                allowed = min(waiting, stream.send_window.available)
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
        return drained

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
        stream.send_window.spend(piece)
        stream.deficit -= piece
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
        elif stream.deficit <= 0:
            ring.rotate(-1)

    def _leave(self, ring: deque[MuxStream]) -> None:
        stream = ring.popleft()
        stream.in_ring = False
        stream.deficit = 0
