"""The one Redis client of a process: no retries, a second at most for anything (data.md, "When a part is down")."""

from functools import lru_cache

import redis
from django.conf import settings
from redis.backoff import NoBackoff
from redis.retry import Retry

TIMEOUT_SECONDS = 1.0


@lru_cache(maxsize=1)
def client() -> redis.Redis:
    """The client for `VISIONA_REDIS_URL`, answers as text. Connects on first use; a stale connection is replaced.

    Its errors are redis.exceptions.ConnectionError and TimeoutError, which `apps.common.failures` maps to
    CACHE_UNAVAILABLE. Threads wait for a free connection for as long as for an answer.
    """
    pool = redis.BlockingConnectionPool.from_url(
        settings.VISIONA["REDIS_URL"],
        max_connections=settings.VISIONA["API_THREADS"],
        timeout=TIMEOUT_SECONDS,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
        health_check_interval=0,
        client_name="visiona",
    )
    return redis.Redis(connection_pool=pool)
