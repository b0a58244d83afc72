"""Where an endless answer may be stepped into: parts of `multipart/x-mixed-replace`, events of `text/event-stream`.

A cutter looks at the bytes of a body as they pass and tells where its units begin and how far they are whole. It keeps
none of them but the beginning of a delimiter or of a part's head, so its work is linear in the bytes whatever they are.
Where the bytes are not what they should be it gives up (`doubt`) and says so: they pass all the same, and nobody is to
step in any more. It does not know heads of answers, viewers, sockets or clocks.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, Protocol

MAX_PART: Final = 8 << 20
"""Bytes of a part with its head: a frame of 8K video as JPEG has less."""
MAX_PART_HEAD: Final = 16 * 1024
MAX_EVENT: Final = 1 << 20
MAX_BOUNDARY: Final = 70
"""RFC 2046 §5.1.1."""

_GAP: Final = 8  # line breaks between a counted part and its next delimiter, or behind the closing one
_PADDING: Final = 64  # blanks behind a delimiter (RFC 2046: transport padding)
_SPACING: Final = 64  # bytes to each delimiter, or line that begins as one …
_BURST: Final = 256  # … beyond so many
_EVENTS: Final = 16  # looked for one by one in what comes at once; those behind them at a distance

_LENGTH: Final = re.compile(rb"^content-length[ \t]*:[ \t]*([0-9]{1,18})[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_BOUNDARY: Final = re.compile(rb';[ \t]*boundary[ \t]*=[ \t]*(?:"([^"\r\n]{1,200})"|([^\s;"]{1,200}))', re.IGNORECASE)
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_EVENT_END: Final = re.compile(rb"\r\n\r\n|\n\r?\n|\r\r")


class PartError(Exception):
    """The body ended, in good order by its framing, within a unit."""


class Seam(NamedTuple):
    """Where a unit begins, in bytes of the body: its delimiter, and what stands behind that line.

    Who has everything before `start` may go on at the `start` of any other unit, and so with `head`.
    """

    start: int
    head: int


class Cutter(Protocol):
    """Looks at body bytes as they come, cut anywhere."""

    doubt: str
    """Why it has given up; empty as long as it has not."""
    whole: int
    """Bytes of the body up to which all units are whole."""

    def feed(self, data: bytes) -> list[Seam]:
        """The units that begin in these bytes, or whose delimiter ends there. Nothing once there is a doubt."""

    def end(self) -> None:
        """The body ended. Raises PartError if that was within a unit whose end is told otherwise."""


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary that a `multipart/x-mixed-replace` names; None for any other type, or without a usable one."""
    if content_type.partition(b";")[0].strip().lower() != b"multipart/x-mixed-replace":
        return None
    match = _BOUNDARY.search(content_type)
    boundary = b"" if match is None else match.group(1) or match.group(2)
    return boundary if boundary.strip() == boundary and 0 < len(boundary) <= MAX_BOUNDARY else None


def is_event_stream(content_type: bytes) -> bool:
    """Whether it is `text/event-stream`."""
    return content_type.partition(b";")[0].strip().lower() == b"text/event-stream"


class PartCutter:
    """Parts (RFC 2046 §5.1, as cameras write them): bare LF is taken, and a missing line break behind a counted part.

    A part ends where its `Content-Length` says, and a delimiter must follow; without one it ends at the next delimiter.
    """

    __slots__ = (
        "_base", "_candidates", "_delimiter", "_gap", "_held", "_left", "_limit", "_needle", "_start", "_state",
        "_strict", "doubt", "whole",
    )  # fmt: skip

    _BETWEEN: Final = 0  # a delimiter must come next
    _LINE: Final = 1  # what may be one
    _HEAD: Final = 2
    _COUNTED: Final = 3
    _SEARCHED: Final = 4
    _CLOSED: Final = 5

    def __init__(self, boundary: bytes, max_part: int = MAX_PART) -> None:
        token = b"--" + boundary
        self._needle = b"\n" + token
        self._delimiter = re.compile(re.escape(token) + rb"(--)?[ \t]{0,%d}\r?\n" % _PADDING)
        self._limit = max_part
        self._state = self._BETWEEN
        self._held = bytearray()  # of a line or a head; where a delimiter is looked for, the end of what was searched
        self._base = 0  # where in the body the bytes that are being looked at begin
        self._start = 0  # … the unit, or the line that may be a delimiter
        self._gap = 0
        self._left = 0
        self._strict = True
        self._candidates = 0
        self.doubt = ""
        self.whole = 0

    def __repr__(self) -> str:
        return f"<PartCutter state={self._state} held={len(self._held)} doubt={self.doubt!r}>"

    def feed(self, data: bytes) -> list[Seam]:
        """The parts whose delimiter ends in these bytes."""
        seams: list[Seam] = []
        pos, size = 0, len(data)
        while pos < size and not self.doubt:
            pos = self._step(data, pos, size, seams)
        self._base += size
        if self._state in (self._SEARCHED, self._LINE) and self._base - self.whole > self._limit:
            self._give_up("a part over the limit")
        if self.doubt:
            self._held.clear()
        return seams

    def _step(self, data: bytes, pos: int, size: int, seams: list[Seam]) -> int:
        """Go on to the next state or to the end of these bytes; the position behind what was looked at."""
        state = self._state
        if state == self._COUNTED:
            return self._count(pos, size)
        if state == self._SEARCHED:
            return self._search(data, pos, size)
        if state == self._HEAD:
            return self._read_head(data, pos, size)
        if state == self._LINE:
            return self._read_line(data, pos, size, seams)
        return self._skip_gap(data, pos, size)

    def end(self) -> None:
        """A part that is not counted may have no other end than that of the body."""
        if not self.doubt and self._state in (self._HEAD, self._COUNTED):
            raise PartError("the body ended within a part")

    def _give_up(self, why: str) -> None:
        self.doubt = why

    def _skip_gap(self, data: bytes, pos: int, size: int) -> int:
        """Line breaks, then what must be a delimiter; behind the closing one nothing may follow them."""
        while pos < size and data[pos] in b"\r\n":
            pos += 1
            self._gap += 1
            if self._gap > _GAP:
                self._give_up("no delimiter behind a part")
                return size
        if pos < size:
            if self._state == self._CLOSED:
                self._give_up("bytes behind the closing delimiter")
            else:
                self._begin_line(self._base + pos, strict=True)
        return pos

    def _begin_line(self, start: int, *, strict: bool) -> None:
        """What stands at `start` may be a delimiter; `strict`: it must be one."""
        self._candidates += 1
        if self._candidates * _SPACING > start + _BURST * _SPACING:
            self._give_up("too many delimiters, or what looks as one")
        self._held.clear()
        self._gap = 0
        self._start = start
        self._strict = strict
        self._state = self._LINE

    def _read_line(self, data: bytes, pos: int, size: int, seams: list[Seam]) -> int:
        held = self._held
        room = len(self._needle) + _PADDING + 4 - len(held)
        newline = data.find(b"\n", pos, pos + room)
        stop = min(pos + room, size) if newline < 0 else newline + 1
        held += data[pos:stop]
        if newline < 0 and stop - pos < room:
            return stop
        match = self._delimiter.fullmatch(bytes(held))
        held.clear()
        if match is None:
            if self._strict:
                self._give_up("what must be a delimiter is none")
            if newline >= 0:
                held += b"\n"  # may belong to the next
            self._state = self._SEARCHED
            return stop
        self.whole = self._start
        if match.group(1):
            self._state = self._CLOSED
        else:
            self._state = self._HEAD
            seams.append(Seam(self._start, self._base + stop))
        return stop

    def _read_head(self, data: bytes, pos: int, size: int) -> int:
        held = self._held
        before = len(held)
        stop = min(size, pos + MAX_PART_HEAD - before)
        if before:
            held += data[pos:stop]
            end = _head_end(held, 0, max(0, before - 2), len(held))
        else:
            end = _head_end(data, pos, pos, stop)
        if end < 0:
            if not before:
                held += data[pos:stop]
            if len(held) >= MAX_PART_HEAD:
                self._give_up("a part's head over the limit")
            return stop
        head = bytes(held[:end]) if before else data[pos:end]
        held.clear()
        self._begin_body(head)
        return pos + end - before if before else end

    def _begin_body(self, head: bytes) -> None:
        lengths = set(_LENGTH.findall(head))
        if len(lengths) > 1:
            self._give_up("two lengths of one part")
        elif lengths:
            self._left = int(lengths.pop())
            if self._left > self._limit:
                self._give_up("a part over the limit")
            self._state = self._COUNTED
        else:
            self._state = self._SEARCHED
            self._held += b"\n"  # of the head's end: a delimiter may follow at once

    def _count(self, pos: int, size: int) -> int:
        step = min(self._left, size - pos)
        self._left -= step
        pos += step
        if not self._left:
            self.whole = self._base + pos
            self._state = self._BETWEEN
        return pos

    def _search(self, data: bytes, pos: int, size: int) -> int:
        """Look for a line that begins as a delimiter does, from the end of what was searched before on."""
        needle, held = self._needle, self._held
        short = len(needle) - 1
        if held:
            at = (held + data[pos : pos + short]).find(needle)
            if at >= 0:
                at += pos - len(held)
                return self._found(at, size)
        at = data.find(needle, pos)
        if at >= 0:
            return self._found(at, size)
        held += data[max(pos, size - short) :]
        del held[:-short]
        return size

    def _found(self, at: int, size: int) -> int:
        self._begin_line(self._base + at + 1, strict=False)
        self._held += self._needle[1:]
        return min(at + len(self._needle), size)


def _head_end(text: bytes | bytearray, begin: int, scan: int, stop: int) -> int:
    """Where a part's head, which starts at `begin`, ends; -1: not yet. A part may have none but its empty line."""
    if text[begin : begin + 1] == b"\n":
        return begin + 1
    if text[begin : begin + 2] == b"\r\n":
        return begin + 2
    match = _HEAD_END.search(text, scan, stop)
    return -1 if match is None else match.end()


class EventCutter:
    """Events, each with the empty line that ends it (WHATWG HTML §9.2). Many small ones may count as one."""

    __slots__ = ("_base", "_begun", "_held", "_limit", "doubt", "whole")

    def __init__(self, max_event: int = MAX_EVENT) -> None:
        self._limit = max_event
        self._held = b""
        self._base = 0
        self._begun = False
        self.doubt = ""
        self.whole = 0

    def feed(self, data: bytes) -> list[Seam]:
        """The events that begin in or behind these bytes."""
        seams = [] if self._begun else [Seam(0, 0)]
        self._begun = True
        if self.doubt:
            return []
        text = self._held + data
        base = self._base - len(self._held)
        self._base += len(data)
        pos = last = found = 0
        while match := _EVENT_END.search(text, pos):
            if match.end() == len(text) and match.group() == b"\r\r":
                break  # an LF may belong to it
            pos = last = match.end()
            seams.append(Seam(base + last, base + last))
            found += 1
            if found >= _EVENTS:
                pos += _SPACING
        self._held = text[max(last, len(text) - 3) :]
        if seams:
            self.whole = seams[-1].start
        if self._base - self.whole > self._limit:
            self.doubt = "an event over the limit"
        return seams

    def end(self) -> None:
        """An event without its empty line does not count (§9.2.6); it passes on nevertheless."""
