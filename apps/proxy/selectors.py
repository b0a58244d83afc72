"""Which device a request is for, and whether those whose exchanges run may still go on. Reads only, no HTTP."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from django.utils import timezone

from apps.accounts import sessions
from apps.accounts.models import User
from apps.common.errors import DomainError, not_found
from apps.devices.models import Device
from apps.tunnels import registry
from apps.tunnels.forwarder import Route


def named_route(user: User, device_id: uuid.UUID) -> Route:
    """The tunnel of the user's device. Raises DomainError NOT_FOUND, TUNNEL_DISCONNECTED."""
    if not Device.objects.filter(pk=device_id, owner=user, deleted_at=None).exists():
        raise not_found()
    route = route_of(str(device_id))
    if route is None:
        raise DomainError("TUNNEL_DISCONNECTED")
    return route


def only_route(user: User) -> Route:
    """The tunnel of the user's one online device. Raises DomainError TUNNEL_DISCONNECTED, AMBIGUOUS_DEVICE."""
    online = registry.lookup_user(str(user.pk))
    own = Device.objects.filter(pk__in=list(online), owner=user, deleted_at=None) if online else Device.objects.none()
    found = sorted(str(pk) for pk in own.values_list("pk", flat=True))
    if not found:
        raise DomainError("TUNNEL_DISCONNECTED")
    if len(found) > 1:
        raise DomainError("AMBIGUOUS_DEVICE", details={"devices": found})
    return _route(online[found[0]])


def route_of(device_id: str) -> Route | None:
    """The registry's present word on a device; None: offline."""
    entry = registry.lookup([device_id]).get(device_id)
    return None if entry is None else _route(entry)


def _route(entry: registry.Entry) -> Route:
    return Route(entry.device_id, entry.node_url, entry.session, entry.epoch)


def device_epochs(device_ids: Iterable[str]) -> dict[str, int]:
    """Device → epoch, of those that are still there and whose owner is not disabled. One query."""
    rows = Device.objects.filter(pk__in=set(device_ids), deleted_at=None, owner__is_active=True)
    return {str(pk): epoch for pk, epoch in rows.values_list("pk", "epoch")}


def live_logins(token_hashes: Iterable[str]) -> set[str]:
    """Those logins that are not over; a running exchange counts as their use. One call to Redis."""
    return sessions.use_hashes(set(token_hashes), now=timezone.now())
