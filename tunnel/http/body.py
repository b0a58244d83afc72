"""Body framing both ways: from raw bytes to body bytes with an honest end, and from body bytes to chunks.

It does not know heads or which side is speaking; a fault is a `FramingError` that the caller names. Body bytes are
handed on as views of what came in, never joined.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, Protocol

Buffer = bytes | memoryview

LAST_CHUNK: Final = b"0\r\n\r\n"
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")


class FramingError(Exception):
    """The bytes are no such body. Internal to this package: requests make it 400, answers make it a cut."""


class BodyReader(Protocol):
    """Takes the bytes after a head."""

    done: bool
    """The whole body was seen."""
    rest: Buffer
    """What came after the body's end; empty until `done`."""

    def feed(self, data: bytes, start: int = 0) -> list[Buffer]:
        """The body bytes in `data[start:]`, as views. Raises FramingError."""

    def end(self) -> bool:
        """The stream ended: whether the body is complete by that."""


class LengthReader:
    """A body of a known length (0: no body)."""

    __slots__ = ("done", "left", "rest")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0
        self.rest: Buffer = b""

    def feed(self, data: bytes, start: int = 0) -> list[Buffer]:
        """The next bytes of the body; what is too many stands in `rest`."""
        count = len(data) - start
        left = self.left
        if count <= left:
            self.left = left - count
            self.done = count == left
            if not count:
                return []
            return [memoryview(data)[start:] if start else data]
        view = memoryview(data)
        self.rest = view[start + left :] if not self.rest else bytes(self.rest) + data[start + left :]
        self.left = 0
        self.done = True
        return [view[start : start + left]] if left else []

    def end(self) -> bool:
        """Complete only if every byte came."""
        return self.done


class UntilCloseReader:
    """A body that ends with the connection (answers of HTTP/1.0, or without any length)."""

    __slots__ = ("done", "rest")

    def __init__(self) -> None:
        self.done = False
        self.rest: Buffer = b""

    def feed(self, data: bytes, start: int = 0) -> list[Buffer]:
        """Everything is body."""
        if len(data) == start:
            return []
        return [memoryview(data)[start:] if start else data]

    def end(self) -> bool:
        """The clean end of the stream is the end of the body."""
        self.done = True
        return True


class ChunkedReader:
    """A chunked body (RFC 9112 §7.1), strictly: CRLF only, no blanks around a size, trailers bounded and dropped."""

    __slots__ = ("_carry", "_chunk_line", "_left", "_state", "_trailer_bytes", "done", "rest")

    _SIZE: Final = 0
    _DATA: Final = 1
    _DATA_END: Final = 2
    _TRAILER: Final = 3
    _DONE: Final = 4

    def __init__(self, chunk_line: int, trailer_bytes: int) -> None:
        self._state = self._SIZE
        self._left = 0
        self._carry = b""
        self._chunk_line = chunk_line
        self._trailer_bytes = trailer_bytes
        self.done = False
        self.rest: Buffer = b""

    def feed(self, data: bytes, start: int = 0) -> list[Buffer]:
        """The chunks' data in `data[start:]`, sizes and trailers taken out."""
        if self.done:
            self.rest = bytes(self.rest) + data[start:]
            return []
        if self._carry:
            data = self._carry + (data[start:] if start else data)
            start = 0
            self._carry = b""
        view = memoryview(data)
        size = len(data)
        pieces: list[Buffer] = []
        while start < size:
            if self._state == self._DATA:
                stop = min(start + self._left, size)
                pieces.append(view[start:stop])
                self._left -= stop - start
                start = stop
                if not self._left:
                    self._state = self._DATA_END
                continue
            start = self._line(data, start, size)
            if not start:
                break
            if self._state == self._DONE:
                self.done = True
                self.rest = view[start:]
                break
        return pieces

    def _line(self, data: bytes, start: int, size: int) -> int:
        """Take one line off; the index behind it, or 0 when it is not whole yet and was kept for later."""
        limit = {self._SIZE: self._chunk_line, self._DATA_END: 0}.get(self._state, self._trailer_bytes)
        newline = data.find(b"\n", start, start + limit + 2)
        if newline < 0:
            if size - start >= limit + 2:
                raise FramingError("a chunk's line is too long")
            if size - start > 1 and data.find(b"\r", start, size - 1) >= 0:
                raise FramingError("a bare CR in a chunked body")
            self._carry = data[start:]
            return 0
        if newline == start or data[newline - 1] != 13:
            raise FramingError("a bare LF in a chunked body")
        self._take(data[start : newline - 1])
        return newline + 1

    def _take(self, line: bytes) -> None:
        if self._state == self._SIZE:
            match = _SIZE_LINE.match(line)
            if match is None:
                raise FramingError("a bad chunk size")
            self._left = int(match.group(1), 16)
            self._state = self._DATA if self._left else self._TRAILER
        elif self._state == self._DATA_END:
            self._state = self._SIZE
        elif line:
            self._trailer_bytes -= len(line) + 2
            if self._trailer_bytes < 0 or b"\r" in line:
                raise FramingError("bad or too long trailers")
        else:
            self._state = self._DONE

    def end(self) -> bool:
        """Complete only behind the last chunk and the empty line after it."""
        return self.done


def encode_chunk(pieces: Iterable[Buffer]) -> list[Buffer]:
    """All `pieces` as one chunk, ready for `sendmsg`; nothing for no bytes (an empty chunk would be the last)."""
    out: list[Buffer] = [b""]
    size = 0
    for piece in pieces:
        if piece:
            size += len(piece)
            out.append(piece)
    if not size:
        return []
    out[0] = b"%x\r\n" % size
    out.append(b"\r\n")
    return out
