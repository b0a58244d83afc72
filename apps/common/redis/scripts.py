"""Lua scripts in Redis: one call, and the script itself is sent only where the server does not know it.

redis-py's own way of a script (retries that are none here, hooks, records for each call) costs more than the call, and
a request of the API runs two of them. It knows Redis and nothing else.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from typing import Any

import redis.exceptions

from apps.common.redis.connection import client


def run(source: str, keys: Sequence[str], args: Sequence[Any]) -> Any:
    """Run a script and return its answer. `args` are texts and numbers. Raises the errors of Redis.

    A connection that fails closes itself; the next caller that gets it from the pool reconnects it.
    """
    pool: Any = client().connection_pool
    connection = pool.get_connection()
    try:
        connection.send_command("EVALSHA", _digest(source), len(keys), *keys, *args)
        try:
            return connection.read_response()
        except redis.exceptions.NoScriptError:
            connection.send_command("EVAL", source, len(keys), *keys, *args)
            return connection.read_response()
    finally:
        pool.release(connection)


@cache
def _digest(source: str) -> str:
    return hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
