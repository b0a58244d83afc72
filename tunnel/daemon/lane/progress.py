"""How far an exchange of the fast lane is: what moved when, what is told of it at its end. It moves nothing itself."""

from __future__ import annotations

from typing import Any

import trio

from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.interfaces import Downstream
from tunnel.daemon.upstream.interfaces import Upstream
from tunnel.http import Exchange, ProxyError, RequestHead
from tunnel.mux.errors import GoingAway, OpenTimeout, StreamRefused, TooManyStreams


class Progress:
    """The facts of one exchange, and the watchdog's look at them."""

    __slots__ = (
        "_down", "_head", "_head_at", "_head_sent", "_line", "_mark", "_marked_at", "_reused", "_up", "attempts",
        "checked", "client", "exchange", "grant", "outcome", "over", "problem", "request_id", "sent", "started",
        "upgraded",
    )  # fmt: skip

    def __init__(
        self, client: Downstream, head: RequestHead, exchange: Exchange, grant: Grant, request_id: str
    ) -> None:
        self.client = client
        self.exchange = exchange
        self.grant = grant
        self.request_id = request_id
        self.over = False
        self.upgraded = False
        self.outcome = ""
        self.problem = ""
        self.attempts = 0
        self.sent = False  # a box may have seen something of it
        self.started = self._marked_at = trio.current_time()
        self.checked = grant.checked_at  # not now: a kept answer is as old as it is
        self._head = head
        self._head_at = 0.0
        self._head_sent = False
        self._line: Upstream | None = None
        self._reused = False
        self._up = 0
        self._down = 0
        self._mark = -1

    def __repr__(self) -> str:
        return f"<LaneExchange {self.outcome or 'running'} up={self._up} down={self._down} {self.exchange!r}>"

    @property
    def endless(self) -> bool:
        """Its answer is one without an end, by its type."""
        answer = self.exchange.answer
        return answer is not None and answer.endless

    @property
    def repeatable(self) -> bool:
        """Whoever has its body may have it made again elsewhere."""
        return not self.exchange.answered and (not self.sent or self.exchange.request.idempotent)

    @property
    def wants_body(self) -> bool:
        return self.exchange.request.body_length != 0

    @property
    def request_done(self) -> bool:
        return self.exchange.request_done

    def allowed(self, at: float) -> None:
        """As of `Served`."""
        self.checked = at

    def end_with(self, error: ProxyError) -> None:
        """End it: told if nothing was, else the client's connection is reset. Idempotent."""
        raise NotImplementedError

    def look(self, now: float) -> None:
        moved = self._up + self._down + self.client.sent + self._interim()
        if moved != self._mark:
            self._mark = moved
            self._marked_at = max(self._marked_at, self.started) if self._mark < 0 else now
            return
        idle = now - self._marked_at
        limits = self.grant.limits
        if self.upgraded:
            if idle >= limits.upgraded_idle_seconds:
                self.end_with(ProxyError("TUNNEL_TIMEOUT", "an idle connection"))
        elif self.exchange.answer is None and (self.exchange.request_done or not self.wants_body):
            if idle >= limits.head_seconds:
                self.end_with(ProxyError("TUNNEL_TIMEOUT", "no head of an answer"))
        elif idle >= limits.idle_seconds:
            waits_for_client = self.exchange.answer is None and self.client.reading
            code = "REQUEST_TIMEOUT" if waits_for_client else "TUNNEL_TIMEOUT"
            self.end_with(ProxyError(code, "nothing moves"))

    def _interim(self) -> int:
        """How often the box has said that it is at work: as good as bytes of an answer."""
        return self.exchange.interim

    def facts(self) -> dict[str, Any]:
        """The log line of an exchange that is over: never the query, which may hold a ticket."""
        now = trio.current_time()
        answer = self.exchange.answer
        return {
            "lane": "fast",
            "request_id": self.request_id,
            "outcome": self.outcome,
            "problem": self.problem or None,
            "method": self._head.method.decode("latin-1"),
            "path": self._head.target.partition(b"?")[0].decode("latin-1"),
            "status": None if answer is None else answer.status,
            "device": self.grant.device_id,
            "user": self.grant.user_id,
            "session": self.grant.session if self._line is None else self._line.session,
            "attempts": self.attempts,
            "reused": self._reused,
            "bytes_up": self._up,
            "bytes_down": self._down,
            "head_ms": round((self._head_at - self.started) * 1000, 3) if self._head_at else None,
            "ms": round((now - self.started) * 1000, 3),
        }


def not_taken(error: Exception) -> str | None:
    """The code for a stream that the agent never took; None for one that it had."""
    if isinstance(error, OpenTimeout):
        return "TUNNEL_TIMEOUT"
    if isinstance(error, (TooManyStreams, StreamRefused)):
        return "OVERLOADED"
    if isinstance(error, GoingAway):
        return "TUNNEL_DISCONNECTED"
    return None
