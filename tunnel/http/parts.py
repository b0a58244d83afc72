"""An endless answer cut into its whole units: parts of `multipart/x-mixed-replace`, events of `text/event-stream`.

It does not know heads of answers, viewers, sockets or clocks. Bytes pass unchanged: what is put together again in the
same order is what came. Units are bounded; one whose end is not told (`Content-Length`) ends where the next begins.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple, Protocol

MAX_PART: Final = 8 << 20
"""Bytes of a part with its head: a frame of 8K video as JPEG has less."""
MAX_PART_HEAD: Final = 16 * 1024
MAX_EVENT: Final = 1 << 20

_LENGTH: Final = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_BOUNDARY: Final = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")


class PartError(Exception):
    """The bytes are no such body, or a unit is over its bound."""


class Kind(Enum):
    """What a piece of the body is."""

    OPENING = 1
    """The line that parts one unit from the next, and what stands before it."""
    UNIT = 2
    """A whole part with its head, or a whole event."""
    TAIL = 3
    """The closing delimiter and what follows it."""


class Piece(NamedTuple):
    """Bytes of the body, and what they are."""

    kind: Kind
    data: bytes


class UnitReader(Protocol):
    """Takes body bytes as they come, cut anywhere."""

    def feed(self, data: bytes | memoryview) -> list[Piece]:
        """What is whole by now. Raises PartError."""

    def end(self) -> list[Piece]:
        """The body ended: what is whole by that. Raises PartError if it ended within a unit."""


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a `multipart/x-mixed-replace` names; None for any other type, or without one."""
    if content_type.partition(b";")[0].strip().lower() != b"multipart/x-mixed-replace":
        return None
    match = _BOUNDARY.search(content_type)
    return None if match is None else match.group(1) or match.group(2)


def is_event_stream(content_type: bytes) -> bool:
    """Whether it is `text/event-stream`."""
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


class PartReader:
    """Parts (RFC 2046 §5.1, as cameras write them): bare LF is taken, and a boundary that is named with its dashes."""

    __slots__ = ("_after", "_buffer", "_head_size", "_length", "_limit", "_scan", "_state", "_tokens")

    _OPENING: Final = 0
    _HEAD: Final = 1
    _COUNTED: Final = 2
    _SEARCHED: Final = 3
    _TAIL: Final = 4

    def __init__(self, boundary: bytes, max_part: int = MAX_PART) -> None:
        # Some servers name "--frame" and write "--frame".
        self._tokens = (b"--" + boundary, boundary) if boundary.startswith(b"--") else (b"--" + boundary,)
        self._limit = max_part
        self._buffer = bytearray()
        self._state = self._OPENING
        self._scan = 0  # what was looked through already
        self._head_size = 0
        self._length = 0
        self._after = {
            self._OPENING: self._opening,
            self._HEAD: self._head,
            self._COUNTED: self._counted,
            self._SEARCHED: self._searched,
            self._TAIL: self._tail,
        }

    def __repr__(self) -> str:
        return f"<PartReader state={self._state} held={len(self._buffer)}>"

    def feed(self, data: bytes | memoryview) -> list[Piece]:
        """The pieces that are whole by now."""
        self._buffer += data
        pieces: list[Piece] = []
        while self._after[self._state](pieces):
            pass
        if len(self._buffer) > self._limit:
            raise PartError("a part over the limit")
        return pieces

    def end(self) -> list[Piece]:
        """The last part may have no other end than that of the body."""
        rest = self._take(len(self._buffer))
        if self._state == self._SEARCHED:
            return [Piece(Kind.UNIT, rest)]
        if self._state == self._TAIL or (self._state == self._OPENING and not rest.strip()):
            return [Piece(Kind.TAIL, rest)] if rest else []
        raise PartError("the body ended within a part")

    def _take(self, size: int) -> bytes:
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        self._scan = 0
        return data

    def _find_delimiter(self, start: int) -> tuple[int, int]:
        """Where a delimiter's line begins from `start` on, and where it ends (0: with this line the body ends).

        (-1, …) if there is none yet; the second is where to look from when more has come.
        """
        buffer = self._buffer
        while True:
            found = [at for token in self._tokens if (at := self._at_line(token, start)) >= 0]
            if not found:
                longest = len(self._tokens[0])
                return -1, max(start, len(buffer) - longest)
            at = min(found)
            token = next(token for token in self._tokens if buffer.startswith(token, at))
            behind = at + len(token)
            if buffer.startswith(b"--", behind):
                return at, 0
            newline = buffer.find(b"\n", behind, behind + 128)
            if newline < 0 and len(buffer) < behind + 128:
                return -1, at
            if newline >= 0 and not buffer[behind:newline].strip():
                return at, newline + 1
            start = behind  # it only begins like the boundary

    def _at_line(self, token: bytes, start: int) -> int:
        buffer = self._buffer
        while (at := buffer.find(token, start)) > 0:
            if buffer[at - 1] == 10:
                return at
            start = at + 1
        return at

    def _opening(self, pieces: list[Piece]) -> bool:
        at, end = self._find_delimiter(self._scan)
        if at < 0:
            self._scan = end
            return False
        if not end:
            self._state = self._TAIL
            return True
        pieces.append(Piece(Kind.OPENING, self._take(end)))
        self._state = self._HEAD
        return True

    def _head(self, _: list[Piece]) -> bool:
        buffer = self._buffer
        if buffer[:1] == b"\n" or buffer[:2] == b"\r\n":  # a part without a head
            size = 1 if buffer[:1] == b"\n" else 2
        else:
            match = _HEAD_END.search(buffer, max(0, self._scan - 2))
            if match is None:
                self._scan = len(buffer)
                if len(buffer) > MAX_PART_HEAD:
                    raise PartError("a part's head over the limit")
                return False
            size = match.end()
        if size > MAX_PART_HEAD:
            raise PartError("a part's head over the limit")
        lengths = set(_LENGTH.findall(buffer, 0, size))
        if len(lengths) > 1:
            raise PartError("two lengths of one part")
        self._head_size = size
        if lengths:
            self._length = size + int(lengths.pop())
            if self._length > self._limit:
                raise PartError("a part over the limit")
            self._state = self._COUNTED
        else:
            self._state = self._SEARCHED
            self._scan = size - 1
        return True

    def _counted(self, pieces: list[Piece]) -> bool:
        if len(self._buffer) < self._length:
            return False
        pieces.append(Piece(Kind.UNIT, self._take(self._length)))
        self._state = self._OPENING
        return True

    def _searched(self, pieces: list[Piece]) -> bool:
        at, end = self._find_delimiter(self._scan)
        if at < 0:
            self._scan = end
            return False
        # The line break before a delimiter belongs to it.
        size = at - (2 if self._buffer[at - 2 : at] == b"\r\n" and at - 2 >= self._head_size else 1)
        pieces.append(Piece(Kind.UNIT, self._take(max(size, self._head_size))))
        self._state = self._OPENING
        return True

    def _tail(self, pieces: list[Piece]) -> bool:
        if self._buffer:
            pieces.append(Piece(Kind.TAIL, self._take(len(self._buffer))))
        return False


class EventReader:
    """Events, each with the empty line that ends it (WHATWG HTML §9.2)."""

    __slots__ = ("_buffer", "_limit", "_scan")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._buffer = bytearray()
        self._scan = 0
        self._limit = max_event

    def feed(self, data: bytes | memoryview) -> list[Piece]:
        """The events that are whole by now."""
        buffer = self._buffer
        buffer += data
        pieces: list[Piece] = []
        start = 0
        while match := _EVENT_END.search(buffer, max(start, self._scan - 3)):
            if match.end() == len(buffer) and match.group() == b"\r\r":
                break  # an LF may belong to it
            pieces.append(Piece(Kind.UNIT, bytes(buffer[start : match.end()])))
            start = self._scan = match.end()
        del buffer[:start]
        self._scan = len(buffer)
        if len(buffer) > self._limit:
            raise PartError("an event over the limit")
        return pieces

    def end(self) -> list[Piece]:
        """An event without its empty line does not count (§9.2.6); it passes on nevertheless."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return [Piece(Kind.TAIL, rest)] if rest else []
