"""Two boxes that look like one (data.md, "Redeeming a pairing token"): of one serial, or of one credential.

A serial is what firmware says, and a card is easily copied. Neither may cost anybody a box: nothing is revoked for it,
the owner is told.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from typing import Final

import structlog
from django.db.models import Count, Q

from apps.devices.admission_rules import Ask, Presence, Twins
from apps.devices.models import Device, DeviceEvent
from apps.pairing.models import PairingStatus, PairingToken
from apps.tunnels import registry
from apps.tunnels import services as tunnels
from tunnel.contract import PAIRING_PREFIX, TunnelEvent

logger = structlog.get_logger(__name__)

CLONED_AFTER: Final = 3
CLONED_WITHIN: Final = dt.timedelta(minutes=10)
"""A device whose own credential takes it over so often in so long is on two boxes (tunnel.md, "The agent")."""
CLONED_SHOWN: Final = dt.timedelta(hours=24)
"""How long after the last of it a device is shown as cloned."""


# --- one serial -------------------------------------------------------------------------------------------------------
def presences(asks: Sequence[Ask], now: dt.datetime) -> dict[uuid.UUID, Presence]:
    """Of the live devices whose serials new boxes say: whether their agents are there. Asked before any lock is taken.

    A tunnel may be up by the registry's word and dead: its agent is asked by a ping (2 s for all of them together). Not
    for a token that is good for nothing, which could be shown again and again, and hold up all that wait for admission.
    """
    serials = {
        ask.token_hash: ask.serial for ask in asks if ask.prefix == PAIRING_PREFIX and ask.serial and not ask.fault
    }
    if not serials:
        return {}
    new = PairingToken.objects.filter(token_hash__in=list(serials), status=PairingStatus.ISSUED, expires_at__gt=now)
    wanted = Q()
    for token_hash, owner_id in new.values_list("token_hash", "owner_id"):
        wanted |= Q(owner_id=owner_id, serial=serials[token_hash])
    if not wanted:
        return {}
    ids = list(Device.objects.filter(wanted, deleted_at=None).values_list("id", flat=True))
    entries = registry.lookup([str(device_id) for device_id in ids], moving=True)
    answers = tunnels.ping([entry for entry in entries.values() if entry.session])
    return {device_id: _presence(str(device_id), entries, answers) for device_id in ids}


def _presence(device: str, entries: Mapping[str, registry.Entry], answers: Mapping[str, bool | None]) -> Presence:
    entry = entries.get(device)
    if entry is None:
        return "offline"
    if not entry.session:
        return "unknown"  # on its way from one daemon to another
    match answers.get(entry.session):
        case True:
            return "answers"
        case False:
            return "silent"
    return "unknown"


def mark(found: Sequence[Twins], *, now: dt.datetime) -> None:
    """Both devices of each pair are possible twins, and their histories say of whom. The caller has locked them."""
    ids = {each.id for pair in found for each in (pair.device, pair.other)}
    Device.objects.filter(id__in=ids).update(twin_at=now, updated_at=now)
    for pair in found:
        pair.device.twin_at = pair.other.twin_at = now
    DeviceEvent.objects.bulk_create(
        _twin_event(mine, other, pair, now)
        for pair in found
        for mine, other in ((pair.device, pair.other), (pair.other, pair.device))
    )


def _twin_event(mine: Device, other: Device, pair: Twins, now: dt.datetime) -> DeviceEvent:
    addresses = {pair.device.id: pair.ask.address, pair.other.id: pair.other.address}
    return DeviceEvent(
        at=now,
        device_id=mine.id,
        action="possible_twin",
        address=addresses[mine.id],
        request_id=pair.ask.request_id,
        detail={
            "serial": pair.ask.serial,
            "twin": str(other.id),
            "twin_name": other.name,
            "twin_address": addresses[other.id],
        },
    )


def settle(gone: Sequence[Device], *, now: dt.datetime) -> None:
    """Devices left: who was a possible twin of none but them is one no more.

    A device that is being admitted just now is passed over, so that nobody waits for anybody's lock; it stays marked.
    """
    serials: dict[uuid.UUID, set[str]] = defaultdict(set)
    for device in gone:
        serials[device.owner_id] |= {text for text in (device.serial, device.claimed_serial) if text}
    for owner_id, texts in serials.items():
        left = Device.objects.filter(
            Q(serial__in=texts) | Q(claimed_serial__in=texts), owner_id=owner_id, deleted_at=None
        ).select_for_update(no_key=True, skip_locked=True)
        sharing: dict[str, list[Device]] = defaultdict(list)
        for device in left.order_by("id"):
            sharing[device.claimed_serial or device.serial or ""].append(device)
        alone = [group[0].id for group in sharing.values() if len(group) == 1 and group[0].twin_at is not None]
        Device.objects.filter(id__in=alone).update(twin_at=None, updated_at=now)


def dismiss(device: Device, *, now: dt.datetime) -> list[Device]:
    """The owner has looked: a locked device is no possible twin, nor is the other of its pair. Returns whose mark went.

    Of three that share a serial the other two go on being shown. It comes back for a new finding only, since a box that
    says again what it said is none (`admission_rules`).
    """
    if device.twin_at is None:
        return []
    texts = {text for text in (device.serial, device.claimed_serial) if text}
    sharing = Device.objects.filter(
        Q(serial__in=texts) | Q(claimed_serial__in=texts), owner_id=device.owner_id, deleted_at=None
    ).exclude(id=device.id)
    others = [other for other in sharing.select_for_update(no_key=True, skip_locked=True) if other.twin_at is not None]
    settled = [device, *(others if len(others) == 1 else ())]
    Device.objects.filter(id__in=[each.id for each in settled]).update(twin_at=None, updated_at=now)
    for each in settled:
        each.twin_at = None
    return settled


# --- one credential ---------------------------------------------------------------------------------------------------
def note_replaced(events: Sequence[TunnelEvent], rows: Sequence[DeviceEvent], *, now: dt.datetime) -> None:
    """Keep which sessions were taken over by newer ones of the same device, and mark the devices that it happens to
    again and again. `rows` are the events as they are to be written. The caller has locked the devices."""
    fresh = [row for event, row in zip(events, rows, strict=True) if is_takeover(event)]
    if not fresh:
        return
    devices = Device.objects.in_bulk({row.device_id for row in fresh})
    known = [row for row in fresh if row.device_id in devices]
    for row in known:
        row.action = "replaced"
        row.detail = {**row.detail, "by_address": devices[row.device_id].address}
    DeviceEvent.objects.bulk_create(known, ignore_conflicts=True)
    _mark_clones({row.device_id: row for row in known}, devices, now)


def is_takeover(event: TunnelEvent) -> bool:
    """Whether the session ended since a newer one came, while its agent was there to say goodbye.

    That of a box whose line broke is replaced too, but nobody answers at its end. A daemon that does not tell
    (N-1) is taken at the first word.
    """
    return event["type"] == "disconnected" and event["reason"] == "replaced" and event.get("answered", True)


def _mark_clones(last: Mapping[uuid.UUID, DeviceEvent], devices: Mapping[uuid.UUID, Device], now: dt.datetime) -> None:
    counts = DeviceEvent.objects.filter(device_id__in=list(last), action="replaced", at__gt=now - CLONED_WITHIN)
    often = counts.values("device_id").annotate(times=Count("id")).filter(times__gte=CLONED_AFTER)
    cloned: Collection[uuid.UUID] = set(often.values_list("device_id", flat=True))
    if not cloned:
        return
    Device.objects.filter(id__in=cloned).update(cloned_at=now, updated_at=now)
    begun = [each for each in cloned if not is_cloned(devices[each].cloned_at, now)]
    DeviceEvent.objects.bulk_create(
        DeviceEvent(
            at=now,
            device_id=each,
            action="cloned",
            address=devices[each].address,
            request_id=last[each].request_id,
            detail={
                "address": devices[each].address,
                "other_address": last[each].address,
                "replaced_session": last[each].detail["session"],
            },
        )
        for each in begun
    )
    for each in begun:
        logger.warning("device_cloned", device=str(each))


def is_cloned(cloned_at: dt.datetime | None, now: dt.datetime) -> bool:
    """Whether a device that was marked then is shown as cloned still."""
    return cloned_at is not None and cloned_at > now - CLONED_SHOWN
