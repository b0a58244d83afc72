"""Reads of devices, scoped to their owner, with the registry's word on who is connected."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

from django.db import connection
from django.db.models import Exists, F, OuterRef, Q, QuerySet, TextField
from django.db.models.functions import Cast
from django.utils.translation import gettext as _

from apps.common.db.compiled_query import CompiledQuery
from apps.common.errors import DomainError, not_found
from apps.common.ids import as_uuid
from apps.devices.models import Accelerator, Device, DeviceEvent, LinkStatus
from apps.tunnels import registry
from apps.tunnels.registry import Entry


class DeviceRow(NamedTuple):
    """What a list shows of a device: named rows cost half of what whole objects do."""

    id: uuid.UUID | str
    name: str
    serial: str | None
    claimed_serial: str
    chip: str
    firmware: str
    agent_version: str
    address: str
    local_address: str
    local_listening: bool | None
    device_status: str
    last_seen_at: dt.datetime | None
    twin_at: dt.datetime | None
    cloned_at: dt.datetime | None
    metadata: dict[str, Any]
    created_at: dt.datetime
    updated_at: dt.datetime


DEVICE_COLUMNS: Final = DeviceRow._fields
_LATEST: Final = 16
RETRY_OFFLINE_SECONDS = 5
"""What a caller is told to wait for a box that is offline: agents come back within seconds, or not at all."""


@dataclass(frozen=True, slots=True)
class Target:
    """A device that is online, and where its tunnel is."""

    device: Device
    entry: Entry


def devices_of(owner_id: uuid.UUID) -> QuerySet[Device]:
    """The user's devices that are paired or registered."""
    return Device.objects.filter(owner_id=owner_id, deleted_at=None)


def device_of(owner_id: uuid.UUID, device_id: uuid.UUID) -> Device:
    """One of them. Raises DomainError NOT_FOUND, for another user's too."""
    device = _ONE.get(owner_id, device_id)
    if device is None:
        raise not_found()
    return device


_ONE: Final = CompiledQuery(lambda owner_id, device_id: devices_of(owner_id).filter(id=device_id), ids=2)


def owned_device(owner_id: uuid.UUID, device_id: uuid.UUID) -> Device | None:
    """One of the user's devices together with its owner, in one query; None if there is none, or it is another's."""
    return devices_of(owner_id).filter(id=device_id).select_related("owner").first()


def filter_devices(
    owner_id: uuid.UUID, *, link_status: str = "", chip: str = "", search: str = "", cluster: uuid.UUID | None = None
) -> QuerySet[Device]:
    """The user's devices by link status (the registry's word), chip (its own or an accelerator's), name or serial,
    and by the cluster that they serve (another's serves none of them)."""
    rows = devices_of(owner_id)
    if cluster is not None:  # by the name of the relation: the app of clusters stands above this one
        rows = rows.filter(cluster_members__cluster_id=cluster, cluster_members__cluster__owner_id=owner_id)
    if link_status:
        online = list(registry.lookup_user(str(owner_id)))
        rows = rows.filter(id__in=online) if link_status == LinkStatus.ONLINE else rows.exclude(id__in=online)
    if chip:
        with_chip = Accelerator.objects.filter(device_id=OuterRef("pk"), chip=chip)
        rows = rows.filter(Q(chip=chip) | Exists(with_chip))
    if search:
        rows = rows.filter(Q(name__icontains=search) | Q(serial__icontains=search))
    return rows


def first_devices(owner_id: uuid.UUID, order: tuple[str, ...], count: int) -> list[DeviceRow]:
    """The first `count` of all of the user's devices, in the order that `order_by(*order)` gives. One query."""
    with connection.cursor() as cursor:
        cursor.execute(_first_query(order, count), [owner_id])
        found = cursor.fetchall()
    # `metadata` is JSON, which comes as text; most devices have none.
    return [
        DeviceRow._make((*before, {} if metadata == "{}" else json.loads(metadata), created_at, updated_at))
        for *before, metadata, created_at, updated_at in found
    ]


@lru_cache(maxsize=512)
def _first_query(order: tuple[str, ...], count: int) -> str:
    """The ORM's own SQL, kept: building it takes longer than PostgreSQL's answer. Its one parameter is the owner.

    Ids come as text, as both JSON and the registry want them.
    """
    columns = (Cast("id", TextField()), *DEVICE_COLUMNS[1:])
    rows = devices_of(uuid.UUID(int=0)).order_by(*order).values_list(*columns)[:count]
    sql, _params = rows.query.sql_with_params()
    return sql


def entries_of(devices: Sequence[Device | DeviceRow]) -> dict[str, Entry]:
    """The registry's entries of those that are online, in one call."""
    return registry.lookup(str(device.id) for device in devices)


def accelerators_of(device: Device) -> QuerySet[Accelerator]:
    """What scans found on the device."""
    return Accelerator.objects.filter(device_id=device.id)


def events_of(device: Device) -> QuerySet[DeviceEvent]:
    """What happened to the device."""
    return DeviceEvent.objects.filter(device_id=device.id)


def choose_device(owner_id: uuid.UUID, *, header: str | None, query: str | None) -> Target:
    """Which box a call is for (api.md, "Cameras, inference"): the named one, or the only one that is online.

    Args:
        header: `X-Device-Id`, None if absent; it wins.
        query: `device_id` of the query, None if absent; it selects only if it is a UUID, else it is the box's.

    Raises DomainError: NOT_FOUND for what is not the user's, TUNNEL_DISCONNECTED for a box that is offline or when none
    is online, AMBIGUOUS_DEVICE when several are (`details`: their ids as `devices`, their names as `names`, in one
    order). And the errors of Redis.
    """
    named = header.strip() if header is not None else None
    if named is None and query is not None and as_uuid(query) is not None:
        named = query
    if named is None:
        return _only_online(owner_id)
    device_id = as_uuid(named)
    if device_id is None:
        raise not_found()
    device = device_of(owner_id, device_id)
    return target_of(device)


def target_of(device: Device) -> Target:
    """Where the device's tunnel is. Raises DomainError TUNNEL_DISCONNECTED, and the errors of Redis."""
    return Target(device, online(registry.lookup([str(device.id)], moving=True).get(str(device.id))))


def online(entry: Entry | None) -> Entry:
    """The registry's word on a device, if it is connected or on its way from one daemon to another.

    Raises DomainError TUNNEL_DISCONNECTED.
    """
    if entry is None:
        raise DomainError("TUNNEL_DISCONNECTED", retry_after=RETRY_OFFLINE_SECONDS)
    return entry


def _on_their_way(owner_id: uuid.UUID) -> tuple[list[Device], dict[str, Entry]]:
    """Those that change daemons just now, or have done so meanwhile, of the ones that were seen last."""
    latest = list(devices_of(owner_id).order_by(F("last_seen_at").desc(nulls_last=True))[:_LATEST])
    found = registry.lookup((str(device.id) for device in latest), moving=True)
    return [device for device in latest if str(device.id) in found], found


def _only_online(owner_id: uuid.UUID) -> Target:
    online = registry.lookup_user(str(owner_id))
    devices = list(devices_of(owner_id).filter(id__in=list(online)).order_by("id")) if online else []
    if not devices:
        devices, online = _on_their_way(owner_id)
    if not devices:
        raise DomainError("TUNNEL_DISCONNECTED", _("No device is connected."), retry_after=RETRY_OFFLINE_SECONDS)
    if len(devices) > 1:
        raise DomainError(
            "AMBIGUOUS_DEVICE",
            details={
                "devices": [str(device.id) for device in devices],
                "names": [device.name for device in devices],
            },
        )
    return Target(devices[0], online[str(devices[0].id)])
