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
LIFETIME_SECONDS: Final = 3600.0
"""A connection is not given out again after this long: memory of the server's process, changed addresses."""


class FailedFast(psycopg.OperationalError):
    """The server did not answer a moment ago; nothing was tried."""


class PoolExhausted(psycopg.OperationalError):
    """All connections were in use for the whole wait."""

    def __init__(self) -> None:
        super().__init__("no connection became free in time")
        self.sqlstate = "53300"  # too_many_connections; psycopg overwrites an attribute of the class


class Pool:
    """At most `high` connections at once; `low` idle ones are kept, and those above for IDLE_SECONDS.

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
        self.breaker = breaker

    def __repr__(self) -> str:
        return f"<Pool idle={len(self._idle)} {self.breaker!r}>"

    def acquire(self) -> DeadlineConnection:
        """A connection, to be given back by `release`. Raises psycopg.OperationalError."""
        if not self._slots.acquire(timeout=self._wait):
            raise PoolExhausted
        try:
            answer = self.breaker.ask()
            if answer == "refuse":
                raise FailedFast("the server did not answer a moment ago")
            connection = self._take() if answer == "pass" else None
            return connection or self._make(probing=answer == "probe")
        except BaseException:
            self._slots.release()
            raise

    def release(self, connection: DeadlineConnection, *, keep: bool = True) -> None:
        """Takes a connection back; one that is broken, old, busy or not to be kept is closed."""
        now = time.monotonic()
        stale = []
        if not keep or now - connection.born > LIFETIME_SECONDS or not connection.is_quiet():
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

    def _make(self, *, probing: bool) -> DeadlineConnection:
        try:
            connection = self._connect()
        except psycopg.OperationalError:
            self.no_answer()
            raise
        connection.born = time.monotonic()
        connection.on_no_answer = self.no_answer
        if probing:
            self.breaker.close()
        return connection

    def no_answer(self) -> None:
        """The server is gone or frozen: fail fast for a while, and start afresh afterwards."""
        self.breaker.trip()
        self.forget_idle()
