"""Which stream the next request goes out on: idle streams kept as connections, by tunnel session.

Decisions are synchronous and done under one lock; nothing here waits. It does not know HTTP, nor how a stream is made:
`Idle` is all that it asks of one. Whether an agent's streams may be kept is `tunnel.http.ReusePolicy`'s word.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from tunnel.http import PROBE_SECONDS, AfterAnswer, ReusePolicy

PER_SESSION: Final = 32
TOTAL: Final = 256
IDLE_SECONDS: Final = 5.0
"""After this long unused a stream is closed: it takes one of the tunnel's 256, a daemon that drains waits for it, and
boxes close theirs about then."""
FRESH_SECONDS: Final = 2.0
"""A request that cannot be repeated goes out only on a stream used this lately: servers close idle connections after
5 s and more, and the notice of it may still be under way when a stream looks alive."""
POLICIES: Final = 4096


class Idle(Protocol):
    """A stream at rest."""

    @property
    def node_url(self) -> str:
        """The daemon that it ends at."""

    @property
    def alive(self) -> bool:
        """Nothing came since the last answer and it is still open. Must not block."""

    def close(self) -> None:
        """Close it cleanly. Must not block."""


S = TypeVar("S", bound=Idle)


@dataclass(slots=True)
class _Kept(Generic[S]):
    stream: S
    since: float
    probing: bool


class _Session(Generic[S]):
    __slots__ = ("kept", "policy")

    def __init__(self, *, announced: bool) -> None:
        self.policy = ReusePolicy(announced=announced)
        self.kept: deque[_Kept[S]] = deque()


class StreamPool(Generic[S]):
    """Idle streams of this process. Thread-safe; times are monotonic seconds, passed in."""

    def __init__(
        self, *, per_session: int = PER_SESSION, total: int = TOTAL, idle_seconds: float = IDLE_SECONDS
    ) -> None:
        self._per_session = per_session
        self._total = total
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, _Session[S]] = OrderedDict()
        self._count = 0
        self._leaving: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"<StreamPool sessions={len(self._sessions)} idle={self._count}>"

    def __len__(self) -> int:
        return self._count

    def take(self, session: str, *, idempotent: bool, now: float) -> S | None:
        """The stream used last that is alive and may carry this request; None: open a new one."""
        dead: list[S] = []
        with self._lock:
            entry = self._sessions.get(session)
            found = None if entry is None else self._take(entry, dead, idempotent=idempotent, now=now)
        for stream in dead:
            stream.close()
        return found

    def _take(self, entry: _Session[S], dead: list[S], *, idempotent: bool, now: float) -> S | None:
        unfit: list[_Kept[S]] = []
        found: S | None = None
        while entry.kept and found is None:
            kept = entry.kept.pop()
            self._count -= 1
            age = now - kept.since
            if age > self._idle_seconds or not kept.stream.alive:
                dead.append(kept.stream)
                continue
            if kept.probing and age >= PROBE_SECONDS:
                kept.probing = False
                entry.policy.still_open()
            allowed = not kept.probing and entry.policy.may_reuse(idempotent=idempotent)
            if allowed and (idempotent or age <= FRESH_SECONDS):
                found = kept.stream
            else:
                unfit.append(kept)
        entry.kept.extend(reversed(unfit))
        self._count += len(unfit)
        return found

    def give(self, session: str, stream: S, *, announced: bool, reusable: bool, now: float) -> None:
        """Take back a stream whose exchange is over: kept if the policy and the bounds allow it, else closed.

        `announced`: its agent named `keepalive`; `reusable`: `Exchange.reusable`.
        """
        drop: list[S] = []
        with self._lock:
            entry = self._sessions.get(session)
            if entry is None:
                entry = self._sessions[session] = _Session(announced=announced)
                self._forget_oldest(drop)
            else:
                self._sessions.move_to_end(session)
            then = entry.policy.after_answer(reusable=reusable)
            if then is AfterAnswer.CLOSE or self._count >= self._total or stream.node_url in self._leaving:
                drop.append(stream)
            else:
                if len(entry.kept) >= self._per_session:
                    drop.append(entry.kept.popleft().stream)
                    self._count -= 1
                entry.kept.append(_Kept(stream, now, then is AfterAnswer.PROBE))
                self._count += 1
        for old in drop:
            old.close()

    def _forget_oldest(self, drop: list[S]) -> None:
        """Keep the number of remembered sessions bounded; the least used one goes, with what it holds."""
        if len(self._sessions) > POLICIES:
            _, oldest = self._sessions.popitem(last=False)
            drop.extend(kept.stream for kept in oldest.kept)
            self._count -= len(oldest.kept)

    def unanswered(self, session: str) -> None:
        """A reused stream of `session` ended without a byte: if its agent is a silent one, none is reused any more."""
        drop: list[S] = []
        with self._lock:
            entry = self._sessions.get(session)
            if entry is not None:
                entry.policy.reused_stream_unanswered()
                if not entry.policy.may_reuse(idempotent=True):
                    drop.extend(kept.stream for kept in entry.kept)
                    self._count -= len(entry.kept)
                    entry.kept.clear()
        for stream in drop:
            stream.close()

    def drop(self, session: str) -> None:
        """Close what idles of a session that takes no more streams: its daemon can't tell it from streams in flight."""
        with self._lock:
            entry = self._sessions.get(session)
            kept = [] if entry is None else list(entry.kept)
            if entry is not None:
                entry.kept.clear()
            self._count -= len(kept)
        for each in kept:
            each.stream.close()

    def expire(self, now: float) -> int:
        """Close what idled too long or died meanwhile; how many are left. For a housekeeper, every few seconds."""
        return self._keep(lambda kept: now - kept.since <= self._idle_seconds and kept.stream.alive)

    def leave(self, nodes: frozenset[str]) -> None:
        """Keep no stream of these daemons from now on, as they drain: an idle stream looks to them like one in flight.

        What an earlier call named and this one does not is kept again.
        """
        with self._lock:
            news = nodes != self._leaving
            self._leaving = nodes
        if news and nodes:
            self._keep(lambda kept: kept.stream.node_url not in nodes)

    def _keep(self, wanted: Callable[[_Kept[S]], bool]) -> int:
        """Close all others; how many are left."""
        drop: list[S] = []
        with self._lock:
            for entry in self._sessions.values():
                stay: deque[_Kept[S]] = deque()
                for kept in entry.kept:
                    if not wanted(kept):
                        drop.append(kept.stream)
                    else:
                        stay.append(kept)
                self._count -= len(entry.kept) - len(stay)
                entry.kept = stay
            left = self._count
        for stream in drop:
            stream.close()
        return left

    def abandon(self) -> None:
        """Forget everything without closing: after a fork the streams belong to the parent."""
        self._lock = threading.Lock()
        self._sessions.clear()
        self._count = 0
        self._leaving = frozenset()
