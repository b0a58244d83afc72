"""A bounded pool of connections, made in the thread that needs one.

Not psycopg_pool: its workers connect in the background and back off for longer and longer, so that after an outage a
caller waits for the next attempt though the server is back, and while it is down waits for a timeout though the
connection was refused at once. Here the caller itself learns what happened, when it happens.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import psycopg

from apps.common.breaker import Breaker
from cloud.db.connection import DeadlineConnection

IDLE_SECONDS: Final = 60.0
"""Idle connections above the minimum are closed after this long."""
RETURN_SECONDS: Final = 1.5
"""A caller whose connection is refused waits this long for the server to come back: a restart takes less than a second,
and a refusal of all its callers would take longer."""
_PAUSE_SECONDS: Final = 0.05
_AT_ONCE_SECONDS: Final = 0.25
"""An attempt that failed within this was refused; one that took longer ran into a server that does not answer."""
UNWRITABLE_SECONDS: Final = 5.0
"""A server that refused a write counts as one that takes none for this long."""
LIFETIME_SECONDS: Final = 3600.0
"""A connection older than this is not given out again: its server process may have grown, its address changed."""


class FailedFast(psycopg.OperationalError):
    """The server did not answer a moment ago; nothing was tried."""


class PoolExhausted(psycopg.OperationalError):
    """All connections were in use for the whole wait."""

    def __init__(self) -> None:
        super().__init__("no connection became free in time")
        self.sqlstate = "53300"  # too_many_connections; psycopg overwrites an attribute of the class


class Pool:
    """A pool of at most `high` connections. `low` idle ones are kept for good, those above that for IDLE_SECONDS.

    Args:
        connect: makes one; raises psycopg.OperationalError.
        wait: seconds to wait for a free one.
    """

    def __init__(
        self, connect: Callable[[], DeadlineConnection], *, low: int, high: int, wait: float, breaker: Breaker
    ) -> None:
        self._connect = connect
        self._low = low
        self._wait = wait
        self._slots = threading.BoundedSemaphore(high)
        self._idle: deque[tuple[float, DeadlineConnection]] = deque()  # the longest idle first
        self._lock = threading.Lock()
        self._generation = 0  # of connections; those of older ones are not given out again
        self._unwritable_until = 0.0
        self.breaker = breaker

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} {self.breaker!r}>"

    def acquire(self) -> DeadlineConnection:
        """A connection, to be given back by `release`. Raises psycopg.OperationalError."""
        until = time.monotonic() + min(RETURN_SECONDS, self._wait)
        if not self._slots.acquire(timeout=self._wait):
            raise PoolExhausted
        try:
            answer = self.breaker.ask()
            if answer == "refuse":
                raise FailedFast("the server did not answer a moment ago")
            connection = self._take() if answer == "pass" else None
            return connection or self._make(until, probing=answer == "probe")
        except BaseException:
            self._slots.release()
            raise

    def release(self, connection: DeadlineConnection, *, keep: bool = True) -> None:
        """Takes a connection back; one that is broken, old, busy or not to be kept is closed."""
        now = time.monotonic()
        stale = []
        old = connection.generation != self._generation or now - connection.born > LIFETIME_SECONDS
        if not keep or old or not connection.is_quiet():
            stale.append(connection)
        else:
            with self._lock:
                self._idle.append((now, connection))
                while len(self._idle) > self._low and now - self._idle[0][0] > IDLE_SECONDS:
                    stale.append(self._idle.popleft()[1])
        self._slots.release()
        for each in stale:
            each.close()

    def forget_idle(self) -> None:
        """Closes all idle connections: after a failure none of them can be trusted."""
        with self._lock:
            idle, self._idle = self._idle, deque()
        for _, connection in idle:
            connection.close()

    def _take(self) -> DeadlineConnection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                _, connection = self._idle.pop()
            if connection.is_quiet():
                return connection
            connection.close()

    def _make(self, until: float, *, probing: bool) -> DeadlineConnection:
        generation = self._generation
        connection = self._connect_or_wait(time.monotonic() if probing else until)
        connection.born = time.monotonic()
        connection.generation = generation
        connection.on_no_answer = self.no_answer
        connection.on_writes_refused = self.writes_refused
        if probing:
            self.breaker.close()
        return connection

    def _connect_or_wait(self, until: float) -> DeadlineConnection:
        """Connect. A server that refuses may be restarting, so it is tried again until `until` (monotonic)."""
        while True:
            began = time.monotonic()
            try:
                return self._connect()
            except psycopg.OperationalError:
                now = time.monotonic()
                if now - began > _AT_ONCE_SECONDS or now + _PAUSE_SECONDS > until:
                    self.no_answer()
                    raise
            time.sleep(_PAUSE_SECONDS)

    @property
    def writable(self) -> bool:
        """Whether the server is believed to take writes: False for some seconds after it has refused one."""
        return time.monotonic() >= self._unwritable_until

    def writes_refused(self) -> None:
        """Report that the server refused a write. No connection to it is used again, since another server may be the
        primary by now."""
        self._unwritable_until = time.monotonic() + UNWRITABLE_SECONDS
        with self._lock:
            self._generation += 1
        self.forget_idle()

    def no_answer(self) -> None:
        """Report that the server did not answer: calls fail at once for a while, and idle connections are closed."""
        self.breaker.trip()
        self.forget_idle()
