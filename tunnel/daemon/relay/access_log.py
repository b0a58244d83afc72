"""One log line for each request on a stream that carries many, without knowing where an answer ends.

A line is due when the next request begins, when the stream ends, or once it has been quiet behind an answer. It counts
bytes and knows neither sockets nor clocks; what a request is, `tunnel.http.sniffer` tells.
"""

from __future__ import annotations

from typing import Any, Final

from tunnel.http.sniffer import RequestIdSniffer

ANSWERED: Final = "answered"
DONE: Final = "done"
Facts = dict[str, Any]


class AccessLog:
    """The requests of one stream, each from its first byte on. Byte counts are the stream's totals, times seconds.

    `request_id` stands for the first request if its head tells none.
    """

    __slots__ = ("_begun", "_down", "_peek", "_started", "_told", "_turn", "_up", "answered_at", "request_id")

    def __init__(self, request_id: str, now: float) -> None:
        self.request_id = request_id
        self.answered_at = now  # of the last byte from the box
        self._started = now
        self._begun = False
        self._peek = RequestIdSniffer()
        self._up = self._down = 0  # totals when this request began
        self._turn = (0, 0, now)  # … when the head began that is being looked at
        self._told: tuple[int, int] | None = None  # totals when its line was written

    def __repr__(self) -> str:
        return f"<AccessLog {self.request_id} told={self._told is not None} {self._peek!r}>"

    @property
    def listening(self) -> bool:
        """Whether `sent` wants the next bytes towards the box."""
        return self._peek.looking

    def sent(self, chunk: bytes | memoryview, up: int, down: int, now: float) -> Facts | None:
        """`chunk` goes to the box, `up` and `down` are the totals before it: the line that is due now, if any."""
        peek = self._peek
        if not peek.halfway:
            self._turn = (up, down, now)
        found = peek.feed(chunk)
        if found is None:
            return None
        if not self._begun:
            self._begun = True
            self.request_id = found or self.request_id
            return None
        up, down, now = self._turn
        line = self._line(up, down, now, ANSWERED)
        self.request_id, self._told = found, None
        self._up, self._down, self._started = self._turn
        return line

    def turned(self) -> None:
        """Bytes came from the box, for the first time since `sent` was told to listen no more."""
        self._peek.turned()

    def quiet(self, up: int, down: int, now: float) -> Facts | None:
        """Nothing has moved for a while: the line that is due now, if the box spoke last."""
        if self._told is not None or down == self._down or not self._peek.looking or self._peek.halfway:
            return None
        return self._line(up, down, now, ANSWERED)

    def end(self, up: int, down: int, now: float, outcome: str) -> Facts | None:
        """The stream has ended: the last line; None if it was written and still holds."""
        return self._line(up, down, now, outcome)

    def _line(self, up: int, down: int, now: float, outcome: str) -> Facts | None:
        if self._told is not None and (self._told == (up, down) and outcome in (ANSWERED, DONE)):
            return None
        clean = outcome in (ANSWERED, DONE) and self.answered_at > self._started
        facts: Facts = {
            "request_id": self.request_id or None,
            "bytes_up": up - self._up,
            "bytes_down": down - self._down,
            "seconds": round((self.answered_at if clean else now) - self._started, 6),
            "outcome": outcome,
        }
        if self._told is not None:
            facts["again"] = True  # it moved on after its line had been written: this one counts
        self._told = (up, down)
        return facts
