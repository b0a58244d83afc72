"""The one Redis client of a process: no retries, `VISIONA_REDIS_TIMEOUT_SECONDS` at most for anything (data.md, "When
a part is down").

Reached through django-redis, whose pools are the process's (one for each URL); its cache API is not used, since what
is kept here are structures that scripts change, and no pickles.

After a failure the calls of the next second fail at once, as for PostgreSQL (`cloud.db`); then one tries for all.
"""

import re
from functools import lru_cache
from typing import Any, Final

import redis
import redis.exceptions
from django_redis import get_redis_connection
from redis.backoff import NoBackoff
from redis.retry import Retry

from apps.common.breaker import Breaker

PREFIX: Final = "visiona:"
"""Prefix of our keys that no script changes together with others."""
TAGGED: Final = "{visiona}:"
"""Prefix of keys that one script changes together: its hash tag keeps them on one slot of a Redis cluster."""
PREFIXES: Final = (PREFIX, TAGGED)
"""All prefixes of ours; `forget_all` drops their keys when a backup is restored."""

_FAILURES: Final = (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError)
_REFUSALS: Final = re.compile(r"(?:^|[ -])(?:OOM|READONLY|MISCONF|NOREPLICAS|MASTERDOWN|CLUSTERDOWN) ")
"""Within a script's error too, where the driver knows no class for them (Redis 6)."""


def refuses_writes(exc: BaseException) -> bool:
    """Whether Redis said that it takes no writes: a replica, out of memory, a disk that it cannot save to."""
    if not isinstance(exc, redis.exceptions.ResponseError):
        return False
    known = (redis.exceptions.ReadOnlyError, redis.exceptions.OutOfMemoryError, redis.exceptions.ClusterDownError)
    return isinstance(exc, known) or _REFUSALS.search(str(exc)) is not None


class _Watched:
    """Mixin of a connection: it tells the pool's breaker whether each answer came, or that the connection failed."""

    breaker: Breaker
    demoted = False
    """The server refused a write (it is a replica now): the next use reconnects, since another may be the primary."""

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        if self.demoted:  # not before: more answers may have been on their way
            self.demoted = False
            self.disconnect()  # type: ignore[attr-defined]  # of the class it is mixed into; it connects by itself
        try:
            super().send_packed_command(*args, **kwargs)  # type: ignore[misc]  # of the class it is mixed into
        except _FAILURES:
            self.breaker.trip()
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        try:
            answer = super().read_response(*args, **kwargs)  # type: ignore[misc]  # of the class it is mixed into
        except _FAILURES:
            self.breaker.trip()
            raise
        except redis.exceptions.ResponseError as error:
            self.demoted = refuses_writes(error)
            raise
        self.breaker.close()
        return answer


class WatchedPool(redis.BlockingConnectionPool):
    """Connections of any scheme, behind one breaker."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]  # untyped there
        self.breaker = Breaker()
        kind = self.connection_class
        self.connection_class = type(f"Watched{kind.__name__}", (_Watched, kind), {"breaker": self.breaker})

    def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        if self.breaker.ask() == "refuse":
            raise redis.exceptions.ConnectionError("Redis did not answer a moment ago")
        try:
            return super().get_connection(*args, **kwargs)  # type: ignore[no-untyped-call]  # untyped there
        except _FAILURES:
            self.breaker.trip()
            raise


def cache_settings(url: str, threads: int, *, timeout: float) -> dict[str, dict[str, Any]]:
    """Django's CACHES for the Redis at `url`, for a process of so many threads; read by `cloud.settings`.

    `timeout` (seconds) holds for a connection, for an answer, and for a free connection each.
    """
    return {
        "default": {
            "BACKEND": "django_redis.cache.RedisCache",
            "LOCATION": [url],  # a list, since django-redis would part a text at a comma of its password
            "OPTIONS": {
                "SOCKET_TIMEOUT": timeout,
                "SOCKET_CONNECT_TIMEOUT": timeout,
                "CONNECTION_POOL_CLASS": "apps.common.redis.connection.WatchedPool",
                "CONNECTION_POOL_KWARGS": {
                    "max_connections": threads + 8,  # the threads, and those that beat beside them
                    "timeout": timeout,
                    "retry": Retry(NoBackoff(), 0),
                    "decode_responses": True,
                    "health_check_interval": 0,
                    "client_name": "visiona",
                },
            },
        }
    }


@lru_cache(maxsize=1)
def client() -> redis.Redis:
    """The client for `VISIONA_REDIS_URL`, answers as text. Connects on first use; a stale connection is replaced.

    Its errors are redis.exceptions.ConnectionError and TimeoutError, which `apps.common.http.error_mapping` maps to
    CACHE_UNAVAILABLE. Threads wait for a free connection for as long as for an answer.
    """
    connection: redis.Redis = get_redis_connection("default")
    return connection


def forget_all() -> int:
    """Drop every key of ours, whichever part of the product wrote it. Returns how many there were."""
    found = {key for prefix in PREFIXES for key in client().scan_iter(_literal(prefix) + "*", count=1000)}
    keys = sorted(found)
    for start in range(0, len(keys), 1000):
        client().delete(*keys[start : start + 1000])
    return len(keys)


def _literal(prefix: str) -> str:
    """The prefix with the wildcards of SCAN's patterns escaped."""
    return "".join(f"\\{char}" if char in "*?[]^\\" else char for char in prefix)
