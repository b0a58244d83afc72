"""Ordinary answers: a known length, head and body whole in the bytes at hand. What most requests get, told at once.

No rules of its own: a head is judged by `ResponseReader`, once, and what came of it is kept under its bytes less the
length, since a box says the same heads again and again. Any other answer is read as all answers are.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tunnel.http.errors import ExchangeError
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.response import NO_LENGTH, AnswerHead, ResponseReader, exposed, head_parts

KEPT: Final = 512
"""Heads kept: a bound, since they come from outside. When it is reached all are forgotten."""
HEAD_BYTES: Final = 2048
"""Longer heads are not ordinary."""
_LENGTH: Final = b"\r\nContent-Length: "
_LENGTH_TOO: Final = b"\r\ncontent-length: "  # as long as the other
_MOST_DIGITS: Final = 18
_MOUNTED: Final = frozenset({b"location", b"content-location", b"refresh"})


class Ordinary:
    """What the head of an ordinary answer comes to, for a client of HTTP/1.1 whose connection stays open."""

    __slots__ = ("before", "bodyless", "exposed", "keep_alive", "status", "tells_length")

    def __init__(self, head: AnswerHead) -> None:
        self.status = head.status
        self.keep_alive = head.keep_alive
        """The box leaves its connection open."""
        self.bodyless = head.bodyless
        self.tells_length = head.length != NO_LENGTH
        self.before = head_parts(head, http11=True, keep_alive=True)[0]
        """The head for the client up to the request's id."""
        self.exposed = b"\r\nAccess-Control-Expose-Headers: " + exposed(head)


class Whole(NamedTuple):
    """A whole ordinary answer, as it goes to the client."""

    status: int
    keep_alive: bool
    body: int
    """Bytes behind the head."""
    out: bytes
    """All of it, as it goes to the client."""


class OrdinaryAnswers:
    """The heads of ordinary answers that were met. One a lane; what it tells depends on what it is given alone."""

    __slots__ = ("_known", "_limits")

    def __init__(self, limits: Limits = LIMITS) -> None:
        self._known: dict[bytes, Ordinary] = {}
        self._limits = limits

    def __len__(self) -> int:
        return len(self._known)

    def read(
        self, data: bytes, *, request_id: bytes, fields: bytes, head_only: bool, cors: bool = False
    ) -> Whole | None:
        """What `data`, the first bytes from the box, comes to if it is one whole ordinary answer and nothing else.

        `head_only` says that the request was HEAD; `fields` are the lane's own lines, each with its CRLF in front, and
        `cors` says that they let a page read the answer, which is told what of it.
        None: read it as all answers are.
        """
        size = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
        if size < 4:
            return None
        # Its value is all that differs among most heads of a box. With other spellings only 0 is ordinary.
        at = data.find(_LENGTH, 0, size)
        if at < 0:
            at = data.find(_LENGTH_TOO, 0, size)
        if at < 0:
            length = 0
            name = data[:size]
        else:
            at += len(_LENGTH)
            end = data.find(b"\r", at, size)
            digits = data[at:end]
            if not digits.isdigit() or len(digits) > _MOST_DIGITS:
                return None
            length = int(digits)
            name = data[:at] + data[end:size]
        answer = self._known.get(name)
        if answer is None:
            answer = self._learn(data[:size], name, length)
            if answer is None:
                return None
        body = len(data) - size
        if body != (0 if head_only or answer.bodyless else length):
            return None
        last = b"\r\nContent-Length: %d\r\n\r\n" % length if answer.tells_length else b"\r\n\r\n"
        if cors:
            fields += answer.exposed
        out = b"".join((answer.before, request_id, fields, last, data[size:]))
        return Whole(answer.status, answer.keep_alive, body, out)

    def _learn(self, raw: bytes, name: bytes, length: int) -> Ordinary | None:
        reader = ResponseReader(b"GET", limits=self._limits)
        try:
            behind = reader.receive(raw)
        except ExchangeError:
            return None  # whoever reads it will be told
        if behind or reader.extra:
            return None  # it ends before the CRLF CRLF, with a bare LF
        head = reader.head
        if head is None or head.upgrade or (head.length == NO_LENGTH and not head.bodyless):
            return None
        if head.length not in (NO_LENGTH, length):
            return None  # its length is spelled another way: what is kept must not depend on it
        if any(field.lower() in _MOUNTED for field, _ in head.fields):
            return None  # it may need mount and host, which are not in these bytes
        if len(self._known) >= KEPT:
            self._known.clear()
        answer = self._known[name] = Ordinary(head)
        return answer
