"""Where a device's tunnel is, and whether those whose exchanges run may still go on. Reads only, no HTTP."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from django.utils import timezone

from apps.accounts import sessions
from apps.common import redis
from apps.devices.models import Device
from apps.tunnels import registry
from apps.tunnels.forwarder import Route
from apps.tunnels.registry import Entry


def route_of(device_id: str) -> Route | None:
    """The registry's present word on a device, also on one that changes daemons just now; None: offline.

    Raises the errors of Redis.
    """
    entry = registry.lookup([device_id], moving=True).get(device_id)
    return None if entry is None else as_route(entry)


def as_route(entry: Entry) -> Route:
    """The route to the device of a registry entry, as the forwarder takes it."""
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


def draining_nodes() -> frozenset[str]:
    """The URLs of the daemons that drain, by their heartbeat's word. Raises the errors of Redis."""
    return frozenset(node.url for node in registry.nodes() if node.draining)


def device_epochs(device_ids: Iterable[str]) -> dict[str, int]:
    """Device → epoch, of those that are still there and whose owner is not disabled. One query."""
    rows = Device.objects.filter(pk__in=set(device_ids), deleted_at=None, owner__is_active=True)
    return {str(pk): epoch for pk, epoch in rows.values_list("pk", "epoch")}


def local_address(device_id: str) -> str:
    """What the device's agent makes reachable, as it said; empty: it did not. Raises the errors of PostgreSQL."""
    said: str | None = Device.objects.filter(pk=device_id).values_list("local_address", flat=True).first()
    return said or ""


def live_logins(token_hashes: Iterable[str]) -> set[str]:
    """The logins that are still alive, of those given; their idle time begins anew. One call to Redis."""
    return sessions.use_hashes(set(token_hashes), now=timezone.now())
