"""The one Redis client of a process, and Lua scripts on it (`scripts`)."""

from apps.common.redis.connection import (
    PREFIX,
    PREFIXES,
    TAGGED,
    cache_settings,
    client,
    forget_all,
    refuses_writes,
)

__all__ = ["PREFIX", "PREFIXES", "TAGGED", "cache_settings", "client", "forget_all", "refuses_writes"]
