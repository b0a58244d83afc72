"""Are PostgreSQL and Redis there? Asked at once, so that both being frozen takes no longer than one."""

import threading
from typing import Final

import psycopg
import redis.exceptions
from django.db import Error, connection

from apps.common.redis import client

OK: Final = "ok"
DOWN: Final = "down"


def _ping_database() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (Error, psycopg.Error):
        return DOWN
    return OK


def _ping_redis() -> str:
    try:
        client().ping()
    except (redis.exceptions.RedisError, OSError):
        return DOWN
    return OK


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
