"""Are PostgreSQL and Redis there, and do they take writes?

Asked at once, so that both being frozen takes no longer than one.
"""

import threading
import time
from typing import Any, Final

import psycopg
import redis.exceptions
from django.db import Error, connection

from apps.common.redis import client
from apps.storage import services as storage
from apps.storage.base import StorageError

OK: Final = "ok"
DOWN: Final = "down"
UNKNOWN: Final = "unknown"
STORAGE_SECONDS: Final = 15.0
"""Between two looks at the storage."""
_KEY: Final = "visiona:health"


def _ping_database() -> str:
    """Whether it takes writes: one that is read-only serves nobody who logs in."""
    try:
        database: Any = connection  # of `cloud.db`
        return OK if database.takes_writes() else DOWN
    except (Error, psycopg.Error):
        return DOWN


def _ping_redis() -> str:
    """By a write: a replica, or one that is out of memory, answers a ping."""
    try:
        client().set(_KEY, "1", px=60_000)
    except (redis.exceptions.RedisError, OSError):
        return DOWN
    return OK


def maxmemory_policy() -> str:
    """What Redis does when its memory is full; empty where it does not tell. Raises the errors of Redis."""
    try:
        memory = client().info("memory")
    except redis.exceptions.ResponseError:  # a user of Redis who may not ask
        return ""
    return str(memory.get("maxmemory_policy", ""))


class StorageWatch:
    """What was last seen of a storage over the network, looked at anew beside those who ask: nobody waits for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen, self._next, self._looking = UNKNOWN, 0.0, False

    def __repr__(self) -> str:
        return f"<StorageWatch {self._seen}>"

    def state(self) -> str:
        """`ok`, `down`, `unknown` before the first look has ended, or what is wrong with the bucket."""
        with self._lock:
            if not self._looking and time.monotonic() >= self._next:
                self._looking = True
                threading.Thread(target=self._look, name="look-at-storage", daemon=True).start()
            return self._seen

    def _look(self) -> None:
        seen = DOWN
        try:
            seen = storage.store().problem() or OK
        except StorageError:
            pass  # its log line is written where it was raised
        finally:
            with self._lock:
                self._seen, self._next, self._looking = seen, time.monotonic() + STORAGE_SECONDS, False


storage_watch: Final = StorageWatch()
"""The process's own."""


def run() -> dict[str, str]:
    """`{"postgresql": …, "redis": …}`, each `ok` or `down`; within the deadlines of the two drivers.

    With a bucket also `storage`, as it was last seen: never a reason to be unready, for most calls need no bytes.
    """
    found: dict[str, str] = {}

    def ask_redis() -> None:
        found["redis"] = _ping_redis()

    beside = threading.Thread(target=ask_redis, name="ping-redis")
    beside.start()
    found["postgresql"] = _ping_database()
    beside.join()
    if not storage.store().settles_at_once:
        found["storage"] = storage_watch.state()
    return dict(sorted(found.items()))
