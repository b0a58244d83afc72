"""Which bytes of a whole a request asks for (RFC 9110 §14). Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

MAX_RANGES: Final = 16
"""More than these, or ranges that overlap, get the whole: nobody in earnest asks for that (RFC 9110 §14.2)."""
_SPEC: Final = re.compile(r"(\d{0,20})-(\d{0,20})\Z")


class Unsatisfiable(Exception):
    """Each range lies outside of the content: 416."""


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes from `start` on."""

    start: int
    length: int

    def content_range(self, size: int) -> str:
        """The value of `Content-Range`."""
        return f"bytes {self.start}-{self.start + self.length - 1}/{size}"


def spans_of(header: str, size: int) -> Sequence[Span] | None:
    """The ranges of a `Range` header within `size` bytes; None where the whole is to be sent.

    What is malformed, or of another unit, counts as absent. Raises Unsatisfiable.
    """
    unit, equals, text = header.partition("=")
    if not equals or unit.strip().lower() != "bytes":
        return None
    found: list[Span] = []
    specs = [spec.strip() for spec in text.split(",") if spec.strip()]
    if not specs:
        return None
    for spec in specs:
        match = _SPEC.match(spec)
        if match is None or spec == "-":
            return None
        first, last = match.groups()
        if first and last and int(last) < int(first):
            return None
        span = _span(first, last, size)
        if span is not None:
            found.append(span)
    if not found:
        raise Unsatisfiable
    if len(specs) > MAX_RANGES or _overlap(found):
        return None
    return found


def _span(first: str, last: str, size: int) -> Span | None:
    if not first:  # a suffix: the last so many bytes
        length = min(int(last), size)
        return Span(size - length, length) if length else None
    start = int(first)
    if start >= size:
        return None
    end = min(int(last), size - 1) if last else size - 1
    return Span(start, end - start + 1)


def _overlap(spans: Sequence[Span]) -> bool:
    ordered = sorted(spans, key=lambda span: span.start)
    return any(a.start + a.length > b.start for a, b in pairwise(ordered))
