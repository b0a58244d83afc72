"""Where a device's tunnel is, and whether those whose exchanges run may still go on. Reads only, no HTTP."""

from __future__ import annotations

import datetime as dt

from apps.accounts import sessions
from apps.common import redis
from apps.tunnels import registry
from apps.tunnels.registry import Entry
from apps.tunnels.route import Route


def route_of(device_id: str) -> Route | None:
    """The registry's present word on a device, also on one that changes daemons just now; None: offline.

    Raises the errors of Redis.
    """
    entry = registry.lookup([device_id], moving=True).get(device_id)
    return None if entry is None else as_route(entry)


def as_route(entry: Entry) -> Route:
    """The route to the device of a registry entry, as whoever sends something there takes it."""
    return Route(entry.device_id, entry.node_url, entry.session, entry.epoch, moving=entry.moving)


def login_and_entry(
    token_hash: str, device_id: str, *, now: dt.datetime
) -> tuple[sessions.LoginSession | None, Entry | None]:
    """The login, whose idle time begins anew, and where the tunnel is: one call to Redis. Raises its errors."""
    pipe = redis.client().pipeline(transaction=False)
    read_login = sessions.use_in(pipe, token_hash, now=now)
    read_entry = registry.lookup_in(pipe, device_id)
    login, entry = pipe.execute()
    return read_login(login), read_entry(entry)
