"""Streams kept as connections for the next request, by tunnel session.

Whether an agent's streams may be kept is `tunnel.http.ReusePolicy`'s word. All here is synchronous: a stream that ends
while it idles says so at once and is dropped. It does not know HTTP nor clients.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from tunnel.daemon.upstream.interfaces import BoxStream
from tunnel.http import PROBE_SECONDS, AfterAnswer, ReusePolicy

PER_SESSION: Final = 128
"""Half of the streams that a tunnel may have: the other lane and long exchanges need some too, and get these as well
where there are no others left (`IdlePool.give_up`)."""
IDLE_SECONDS: Final = 5.0
FRESH_SECONDS: Final = 2.0
"""A request that cannot be repeated goes out only on a stream used this lately: servers close idle connections after
5 s and more, and the notice of it may still be under way."""


class IdleStream:
    """A stream at rest."""

    __slots__ = ("alive", "lines", "probing", "since", "stream")

    def __init__(self, lines: IdlePool, stream: BoxStream, since: float, *, probing: bool) -> None:
        self.lines = lines
        self.stream = stream
        self.since = since
        self.probing = probing
        self.alive = True
        stream.listener = self.spoke

    def spoke(self) -> None:
        """An end, a reset, or bytes that nobody asked for: in any case it cannot be used."""
        if self.alive:
            self.alive = False
            self.stream.listener = None
            self.stream.close_nowait()
            self.lines.left()


def _spoken(stream: BoxStream) -> bool:
    """Whether the end, or anything else, came right behind the answer: nobody would call again for that."""
    try:
        return stream.receive_nowait() is not None
    except trio.BrokenResourceError:
        return True


class IdlePool:
    """The idle streams of one tunnel session, used last first."""

    __slots__ = ("_dead", "_most", "idle", "policy")

    def __init__(self, *, announced: bool, most: int = PER_SESSION) -> None:
        self._most = most
        self.policy = ReusePolicy(announced=announced)
        self.idle: deque[IdleStream] = deque()
        self._dead = 0

    def __repr__(self) -> str:
        return f"<IdlePool idle={len(self.idle) - self._dead} {self.policy!r}>"

    def __len__(self) -> int:
        return len(self.idle) - self._dead

    def left(self) -> None:
        """One of the idle streams ended. It is swept out when it is met, or when most are of its kind."""
        self._dead += 1
        if self._dead > 16 and self._dead * 2 > len(self.idle):
            self.idle = deque(each for each in self.idle if each.alive)
            self._dead = 0

    def take(self, *, repeatable: bool) -> BoxStream | None:
        """A stream that may carry the request; None: open a new one."""
        idle = self.take_idle(trio.current_time(), repeatable=repeatable)
        return None if idle is None else idle.stream

    def take_idle(self, now: float, *, repeatable: bool) -> IdleStream | None:
        """The same, with what stands for its rest: give it back by `keep`, once the exchange is over in good order."""
        idle = self.idle
        while idle:
            last = idle[-1]
            if not last.alive:
                idle.pop()
                self._dead -= 1
                continue
            if last.probing:
                return self._take_probed(now, repeatable=repeatable)
            age = now - last.since
            if age > IDLE_SECONDS:
                return None  # those below it are older still
            if not self.policy.may_reuse(idempotent=repeatable) or not (repeatable or age <= FRESH_SECONDS):
                return None
            idle.pop()
            last.alive = False
            last.stream.listener = None
            return last
        return None

    def _take_probed(self, now: float, *, repeatable: bool) -> IdleStream | None:
        """The agent is a silent one and has not shown yet that it keeps streams: look for one that waited enough."""
        found: IdleStream | None = None
        for each in self.idle:
            if each.alive and each.probing and now - each.since >= PROBE_SECONDS:
                self.policy.still_open()
                break
        if not self.policy.may_reuse(idempotent=repeatable):
            return None
        for each in self.idle:
            if each.alive and PROBE_SECONDS <= now - each.since <= IDLE_SECONDS:
                each.alive = False
                each.stream.listener = None
                found = each
                break
        if found is not None:
            self.idle.remove(found)
        for each in self.idle:
            each.probing = False  # it has been shown for all of them
        return found

    def give(self, stream: BoxStream, *, reusable: bool) -> None:
        """Take back a stream whose exchange is over: kept if the policy and the bounds allow it, else closed."""
        self.keep(stream, None, trio.current_time(), reusable=reusable)

    def keep(self, stream: BoxStream, before: IdleStream | None, now: float, *, reusable: bool) -> None:
        """The same; `before` is what stood for its rest when it was taken, if it was kept before."""
        then = self.policy.after_answer(reusable=reusable)
        if then is AfterAnswer.CLOSE or len(self.idle) >= self._most or _spoken(stream):
            stream.close_nowait()
        elif before is None or then is AfterAnswer.PROBE:
            self.idle.append(IdleStream(self, stream, now, probing=then is AfterAnswer.PROBE))
        else:
            before.since = now
            before.alive = True
            stream.listener = before.spoke
            self.idle.append(before)

    def unanswered(self) -> None:
        """A reused stream ended without one byte: if the agent is a silent one, none is reused any more."""
        self.policy.reused_stream_unanswered()
        if not self.policy.may_reuse(idempotent=True):
            self.close()

    def give_up(self) -> bool:
        """Reset the stream that idles longest, whose place is needed at once; False if none idles."""
        while self.idle:
            if (stream := self._let_go()) is not None:
                stream.reset()
                return True
        return False

    def expire(self, now: float) -> None:
        """Close what idled too long."""
        while self.idle and (not self.idle[0].alive or now - self.idle[0].since > IDLE_SECONDS):
            if (stream := self._let_go()) is not None:
                stream.close_nowait()

    def _let_go(self) -> BoxStream | None:
        """Take out the first; its stream, if it is still open."""
        first = self.idle.popleft()
        if not first.alive:
            self._dead -= 1
            return None
        first.alive = False
        first.stream.listener = None
        return first.stream

    def close(self) -> None:
        """Close all."""
        self.expire(float("inf"))
