"""Ordinary answers: a known length, head and body whole in the bytes at hand. What most requests get, told at once.

No rules of its own: a head is judged by `ResponseReader`, once, and what came of it is kept under its bytes, since a
box says the same heads again and again. Any other answer is not ordinary, and is read as all answers are.
"""

from __future__ import annotations

from typing import Final

from tunnel.http.errors import ExchangeError
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.response import NO_LENGTH, ResponseReader, head_parts

KEPT: Final = 512
"""Heads kept: a bound, since they come from outside. When it is reached all are forgotten."""
HEAD_BYTES: Final = 2048
"""Longer heads are not ordinary."""


class Ordinary:
    """What the head of an ordinary answer comes to, for a client of HTTP/1.1 whose connection stays open."""

    __slots__ = ("after", "before", "keep_alive", "length", "size", "status")

    def __init__(self, size: int, status: int, length: int, before: bytes, after: bytes) -> None:
        self.size = size
        """Of the head as it came: where the body begins."""
        self.status = status
        self.length = length
        """Of the body, where the request is not HEAD."""
        self.before = before
        """The head for the client up to the request's id."""
        self.after = after
        """What follows the id and the lane's own fields, the empty line included."""
        self.keep_alive = False
        """The box leaves its connection open."""


class OrdinaryAnswers:
    """The heads of ordinary answers that were met. One a lane; what it tells depends on the bytes alone."""

    __slots__ = ("_known", "_limits")

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._known: dict[bytes, Ordinary] = {}
        self._limits = limits

    def __len__(self) -> int:
        return len(self._known)

    def read(self, data: bytes, *, head_only: bool) -> Ordinary | None:
        """What `data`, the first bytes from the box, is: a whole ordinary answer and nothing else; None: read it.

        `head_only` says that the request was HEAD.
        """
        size = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
        if size < 4:
            return None
        raw = data[:size]
        answer = self._known.get(raw)
        if answer is None:
            answer = self._learn(raw)
            if answer is None:
                return None
        return answer if len(data) == (size if head_only else size + answer.length) else None

    def _learn(self, raw: bytes) -> Ordinary | None:
        reader = ResponseReader(b"GET", limits=self._limits)
        try:
            reader.receive(raw)
        except ExchangeError:
            return None  # whoever reads it will be told
        head = reader.head
        if head is None or head.upgrade or (head.length == NO_LENGTH and not head.bodyless):
            return None
        if any(name.lower() == b"location" for name, _ in head.fields):
            return None  # it may need the mount, which is not in these bytes
        before, after, _ = head_parts(head, http11=True, keep_alive=True)
        answer = Ordinary(len(raw), head.status, 0 if head.bodyless else head.length, before, after)
        answer.keep_alive = head.keep_alive
        if len(self._known) >= KEPT:
            self._known.clear()
        self._known[raw] = answer
        return answer
