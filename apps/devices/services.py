"""What changes a device: registering, renaming, unpairing, kicking, and what a scan found on it."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.db.models import Q
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs

from apps.accounts import quotas
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.devices import twins
from apps.devices.admission_rules import clean
from apps.devices.happenings import happening
from apps.devices.models import Accelerator, Device, DeviceEvent, DeviceStatus, LinkStatus
from apps.pairing.services import revoke_of_devices
from apps.tunnels import registry
from apps.tunnels import services as tunnels
from apps.tunnels.registry import Held
from apps.webhooks import services as webhooks
from apps.webhooks.services import Happening
from tunnel.contract import CLOSE_RESTART, CLOSE_REVOKED

MAX_ACCELERATORS: Final = 256
"""How many accelerators of a device are kept; what a box answers is not trusted to be bounded."""
UNIQUE_SERIAL: Final = "devices_owner_serial_unique"


def register_device(
    *,
    actor: Actor,
    owner_id: uuid.UUID,
    serial: str,
    name: str,
    chip: str,
    metadata: Mapping[str, Any],
    now: dt.datetime,
) -> Device:
    """A device that is known by its serial before it is paired. Raises DomainError SERIAL_TAKEN, QUOTA_EXCEEDED."""
    try:
        with transaction.atomic():
            quotas.check(owner_id, devices=1)
            device = Device.objects.create(
                owner_id=owner_id, serial=serial, name=name or serial, chip=chip, metadata=dict(metadata)
            )
            _event(device.id, "registered", actor, now)
            _audit(actor, "device.register", device, {"serial": serial}, now)
    except IntegrityError as error:
        if UNIQUE_SERIAL not in str(error):
            raise
        raise DomainError(
            "SERIAL_TAKEN", details={"serial": [_("You already have a device with this serial.")]}
        ) from error
    return device


@transaction.atomic
def change_device(
    *, actor: Actor, owner_id: uuid.UUID, device_id: uuid.UUID, changes: Mapping[str, Any], now: dt.datetime
) -> Device:
    """Set `name` and `metadata` as far as given; `possible_twin` (False) dismisses that mark, of both of a pair.

    Raises DomainError NOT_FOUND.
    """
    device = _locked(device_id, owner_id)
    if "possible_twin" in changes:
        _dismiss_twin(device, actor, now)
    for name in ("name", "metadata"):
        if name in changes:
            setattr(device, name, changes[name])
    fields = sorted(changes.keys() & {"name", "metadata"})
    if fields:
        device.save(update_fields=[*fields, "updated_at"])
        _audit(actor, "device.change", device, {"fields": fields}, now)
    return device


@transaction.atomic
def dismiss_twin(*, actor: Actor, device_id: uuid.UUID, now: dt.datetime) -> Device:
    """The same for anybody's device (the admin). Raises DomainError NOT_FOUND."""
    device = _locked(device_id, None)
    _dismiss_twin(device, actor, now)
    return device


def _dismiss_twin(device: Device, actor: Actor, now: dt.datetime) -> None:
    for each in twins.dismiss(device, now=now):
        _event(each.id, "twin_dismissed", actor, now)
        _audit(actor, "device.twin_dismissed", each, {"serial": each.serial or each.claimed_serial}, now)


@transaction.atomic
def unpair_device(*, actor: Actor, owner_id: uuid.UUID | None, device_id: uuid.UUID, now: dt.datetime) -> Device:
    """Soft-delete a device with all its tokens in one transaction, then close its tunnel (4401).

    Of two at once one unpairs, the other raises DomainError NOT_FOUND. `owner_id` None: any owner's (the admin).
    """
    device = _locked(device_id, owner_id)
    _unpair([device], actor=actor, now=now)
    return device


@transaction.atomic
def unpair_all(*, actor: Actor, owner_id: uuid.UUID, now: dt.datetime, before: dt.datetime | None = None) -> int:
    """Unpair all devices of a user (who leaves), or those that were made until `before`. Returns how many."""
    rows = Device.objects.filter(owner_id=owner_id, deleted_at=None).order_by("id").select_for_update(no_key=True)
    if before is not None:
        rows = rows.filter(created_at__lte=before)
    devices = list(rows)
    if devices:
        _unpair(devices, actor=actor, now=now)
    return len(devices)


def _unpair(devices: Sequence[Device], *, actor: Actor, now: dt.datetime) -> None:
    """Of locked devices."""
    for device in devices:
        device.deleted_at, device.link_status, device.updated_at = now, LinkStatus.OFFLINE, now
        device.twin_at = device.cloned_at = None
        _event(device.id, "unpaired", actor, now)
        _audit(actor, "device.unpair", device, {"serial": device.serial or "", "name": device.name}, now)
    Device.objects.bulk_update(devices, ["deleted_at", "link_status", "twin_at", "cloned_at", "updated_at"])
    revoke_of_devices([device.id for device in devices], now=now, reason="unpaired")
    twins.settle(devices, now=now)
    webhooks.emit_many([_unpaired(device) for device in devices], now=now)
    epochs = tunnels.epochs_to_end({str(device.id): device.epoch for device in devices})
    jobs.configure_task("tunnels.end_devices").defer(
        epochs={**epochs}, code=CLOSE_REVOKED, reason="revoked", request_id=actor.request_id
    )
    transaction.on_commit(
        lambda: tunnels.end_devices(epochs, code=CLOSE_REVOKED, reason="revoked", request_id=actor.request_id),
        robust=True,  # the act stands; what could not be closed now is closed by the job and the next heartbeat
    )


def _unpaired(device: Device) -> Happening:
    return happening(
        "device.unpaired", owner_id=device.owner_id, device_id=device.id, name=device.name, serial=device.serial
    )


def kick_devices(*, actor: Actor, device_ids: Iterable[uuid.UUID], now: dt.datetime) -> int:
    """Close the tunnels of devices (1012: their agents come back by themselves). Returns how many there were.

    The admin's act. Raises the errors of Redis.
    """
    online = registry.lookup(str(device_id) for device_id in device_ids)
    with transaction.atomic():
        for device in Device.objects.filter(id__in=online).order_by("id"):
            _event(device.id, "kicked", actor, now)
            _audit(actor, "device.kick", device, {"session": online[str(device.id)].session}, now)
    held = [Held(entry.device_id, entry.node, entry.session, entry.node_url) for entry in online.values()]
    tunnels.close(held, code=CLOSE_RESTART, reason="kicked", request_id=actor.request_id)
    return len(held)


def note_revocation(*, actor: Actor, device_id: uuid.UUID, at: dt.datetime) -> None:
    """The device's own history of a revoked token (deferred by `apps.pairing`, which knows no devices)."""
    _event(device_id, "token_revoked", actor, at)


# --- scans ------------------------------------------------------------------------------------------------------------
def store_scan(device: Device, payload: Any, now: dt.datetime) -> list[Accelerator]:
    """Keep the accelerators that a scan found, as the box told them (docs/box-api.md). Returns those of this scan.

    Args:
        payload: the box's parsed JSON: `{devices: [{serial, chip, usb_id, firmware, status}]}`, also within `data`. It
            is not trusted: what has no serial is passed over, texts are cut, at most MAX_ACCELERATORS are kept.
    """
    found: dict[str, Accelerator] = {}
    for item in _scanned(payload):
        serial = _text(item, "serial", 128)
        if serial and len(found) < MAX_ACCELERATORS:
            found[serial] = Accelerator(
                device_id=device.id,
                serial=serial,
                chip=_text(item, "chip", 64),
                usb_id=_text(item, "usb_id", 32),
                firmware=_text(item, "firmware", 64),
                status=_text(item, "status", 32),
                seen_at=now,
            )
    rows = [found[serial] for serial in sorted(found)]
    with transaction.atomic():
        # The lock makes two scans of one device follow each other, and fences out one that is unpaired meanwhile.
        live = Device.objects.select_for_update(no_key=True).filter(id=device.id, deleted_at=None).first()
        if live is None:
            return []
        Accelerator.objects.bulk_create(
            rows,
            update_conflicts=True,
            unique_fields=["device", "serial"],
            update_fields=["chip", "usb_id", "firmware", "status", "seen_at", "updated_at"],
        )
        newest = Accelerator.objects.filter(device_id=device.id).order_by("-seen_at", "serial").values("pk")
        Accelerator.objects.filter(device_id=device.id).exclude(pk__in=newest[:MAX_ACCELERATORS]).delete()
        status = _device_status(rows)
        if live.device_status != status:
            live.device_status = status
            live.save(update_fields=["device_status", "updated_at"])
    return list(Accelerator.objects.filter(device_id=device.id, serial__in=found).order_by("serial"))


def _scanned(payload: Any) -> Iterable[Mapping[str, Any]]:
    """The items of a scan's answer, wherever a box puts them."""
    for __ in range(2):
        if isinstance(payload, Mapping):
            payload = payload.get("devices", payload.get("data"))
    items = payload[: 4 * MAX_ACCELERATORS] if isinstance(payload, list) else []
    return [item for item in items if isinstance(item, Mapping)]


def _text(item: Mapping[str, Any], name: str, limit: int) -> str:
    value = item.get(name)
    return clean(value, limit) if isinstance(value, str) else ""


def _device_status(found: Sequence[Accelerator]) -> DeviceStatus:
    words = {accelerator.status.lower() for accelerator in found}
    if not found:
        return DeviceStatus.UNKNOWN
    if "error" in words:
        return DeviceStatus.ERROR
    return DeviceStatus.BUSY if "busy" in words else DeviceStatus.READY


# --- shared -----------------------------------------------------------------------------------------------------------
def _locked(device_id: uuid.UUID, owner_id: uuid.UUID | None) -> Device:
    """The live device, locked until the transaction ends. Raises DomainError NOT_FOUND."""
    owned = Q() if owner_id is None else Q(owner_id=owner_id)
    device = Device.objects.select_for_update(no_key=True).filter(owned, id=device_id, deleted_at=None).first()
    if device is None:
        raise not_found()
    return device


def _event(device_id: uuid.UUID, action: str, actor: Actor, at: dt.datetime) -> None:
    DeviceEvent.objects.create(
        at=at,
        device_id=device_id,
        action=action,
        actor=actor.user_id,
        address=actor.address[:64],
        request_id=actor.request_id[:64],
    )


def _audit(actor: Actor, action: str, device: Device, detail: Mapping[str, Any], now: dt.datetime) -> None:
    record(actor=actor, action=action, object_type="device", object_id=str(device.id), detail=detail, now=now)
