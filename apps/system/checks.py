"""Are PostgreSQL and Redis there, and do they take writes?

Asked at once, so that both being frozen takes no longer than one.
"""

import threading
from typing import Any, Final

import psycopg
import redis.exceptions
from django.db import Error, connection

from apps.common.redis import client

OK: Final = "ok"
DOWN: Final = "down"
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


def run() -> dict[str, str]:
    """`{"postgresql": …, "redis": …}`, each `ok` or `down`; within the deadlines of the two drivers."""
    found: dict[str, str] = {}

    def ask_redis() -> None:
        found["redis"] = _ping_redis()

    beside = threading.Thread(target=ask_redis, name="ping-redis")
    beside.start()
    found["postgresql"] = _ping_database()
    beside.join()
    return dict(sorted(found.items()))
