"""What the daemons tell: heartbeats, connects and disconnects; and PostgreSQL's copy of presence, which follows.

The registry's word counts at once; `devices.link_status` and `last_seen_at` are for lists, filters and history. All is
fenced by the device's epoch: what an older session says changes nothing.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from itertools import starmap
from operator import xor
from typing import Final

import structlog
from django.db import connection, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from apps.devices import installation, twins
from apps.devices.happenings import happening
from apps.devices.models import Device, DeviceEvent, LinkStatus
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.tunnels import registry
from apps.tunnels import services as tunnels
from apps.webhooks import services as webhooks
from apps.webhooks.services import Happening
from tunnel.contract import (
    CLOSE_DISABLED,
    CLOSE_REPLACED,
    CLOSE_REVOKED,
    CloseOrder,
    Heartbeat,
    HeartbeatAnswer,
    SessionFact,
    TunnelEvent,
    session_mark,
    sessions_digest,
)

logger = structlog.get_logger(__name__)

SEEN_EVERY: Final = dt.timedelta(seconds=30)
"""How far `last_seen_at` of a device that stays online may lag: writing it every 5 s would rewrite every row."""
_BATCH: Final = 1000
NOBODYS: Final = 1 << 63
"""The epoch of a device that is not there: above any that a message may name."""
LEAP: Final = 1 << 20
"""By how much a message may be ahead of the table: a million admissions are more than a backup or a failover loses. An
epoch out of nowhere would stay for good, and leave none above it."""
_TOLD_FIELDS: Final = ("id", "owner_id", "name", "serial", "epoch", "link_status", "deleted_at")
_BARRED: Final = (
    Q(deleted_at__isnull=False)
    | Q(owner__is_active=False)
    | ~Exists(SessionToken.objects.filter(device_id=OuterRef("pk"), revoked_at=None))
    & ~Exists(PairingToken.objects.filter(device_id=OuterRef("pk"), status=PairingStatus.PAIRED))
)
"""That a device may have no tunnel: unpaired, of a disabled user, or without a good token."""


# --- heartbeats -------------------------------------------------------------------------------------------------------
def heartbeat(beat: Heartbeat, *, now: dt.datetime) -> HeartbeatAnswer:
    """Keep a node alive and tell it what to close. With its full list, right the registry (after a loss of Redis)."""
    heard = registry.heartbeat(
        node=beat["node"],
        url=beat["url"],
        version=beat["version"],
        started_at=min(dt.datetime.fromisoformat(beat["started_at"]), now),
        sessions_count=beat["sessions_count"],
        streams_count=beat["streams_count"],
        draining=beat["draining"],
    )
    if heard.state == "superseded":
        logger.warning("heartbeat_of_superseded_node", node=beat["node"], url=beat["url"])
        return HeartbeatAnswer(close=[], send_sessions=False)
    closes = {
        pending.session: CloseOrder(session=pending.session, code=pending.code, reason=pending.reason)
        for pending in heard.closes
    }
    listed = beat["sessions"]
    if listed is not None:
        closes |= _lawful(_right_registry(beat["node"], listed))
        return HeartbeatAnswer(close=list(closes.values()), send_sessions=False)
    held = registry.whole_sessions(beat["node"])
    closes |= _lawful(_orders(held))
    unsure = heard.state == "new" or not _as_told(held, beat)
    return HeartbeatAnswer(close=list(closes.values()), send_sessions=unsure)


def _as_told(held: Mapping[str, str], beat: Heartbeat) -> bool:
    """Whether the registry holds (session → device) what the node says that it holds: a key may have been lost.

    By its count alone where a daemon of the former release tells no digest.
    """
    if len(held) != beat["sessions_count"]:
        return False
    digest = beat.get("digest")
    return digest is None or digest == sessions_digest(reduce(xor, starmap(session_mark, held.items()), 0))


def _right_registry(node: str, listed: Sequence[SessionFact]) -> dict[str, CloseOrder]:
    """Check the full list against PostgreSQL in one query, write what is good, take out what is not listed."""
    rows = Device.objects.filter(id__in={fact["device_id"] for fact in listed}).annotate(barred=_BARRED)
    known = {str(device.id): device for device in rows.select_related("owner")}
    closes, good = {}, []
    older = [fact["device_id"] for fact in listed if fact["epoch"] < _epoch(known.get(fact["device_id"]))]
    bases = registry.bases(older)
    for fact in listed:
        device = known.get(fact["device_id"])
        order: tuple[int, str] | None = None
        if device is None:
            order = CLOSE_REVOKED, "revoked"
        elif device.barred:
            order = close_code(device)
        elif fact["epoch"] > device.epoch + LEAP:
            order = CLOSE_REPLACED, "replaced"  # its agent comes again, and has an epoch of ours
        elif fact["epoch"] < device.epoch:
            _, base = bases.get(fact["device_id"], (device.epoch, device.epoch))
            if fact["epoch"] >= base:
                continue  # it was handed over: its daemon closes it when its streams have ended
            order = CLOSE_REPLACED, "replaced"
        if order is not None:
            closes[fact["session"]] = CloseOrder(session=fact["session"], code=order[0], reason=order[1])
            continue
        good.append(
            registry.Session(
                device_id=fact["device_id"],
                session=fact["session"],
                epoch=fact["epoch"],
                user_id=fact["user_id"],
                connected_at=fact["connected_at"],
                address=fact["address"],
                agent=fact["agent"],
                features=tuple(fact["features"]),
            )
        )
    registry.put(node, good)
    _lift({each.device_id: each.epoch for each in good if each.epoch > _epoch(known.get(each.device_id))})
    registry.remove_missing(node, {fact["session"] for fact in listed})
    return closes


def _epoch(device: Device | None) -> int:
    return 0 if device is None else device.epoch


def _lawful(orders: dict[str, CloseOrder]) -> dict[str, CloseOrder]:
    """What this database would have closed; nothing while it is another than the boxes' own."""
    return {} if orders and installation.is_foreign() else orders


def _lift(epochs: Mapping[str, int]) -> None:
    """Raise the table's epochs to those that admissions have given: the table has lost them (data.md, "Presence")."""
    if not epochs:
        return
    with transaction.atomic():
        rows = Device.objects.select_for_update(no_key=True).filter(id__in=list(epochs)).order_by("id").only("epoch")
        lower = [device for device in rows if device.epoch < epochs[str(device.id)]]
        for device in lower:
            device.epoch = epochs[str(device.id)]
        Device.objects.bulk_update(lower, ["epoch"])
    logger.warning("epochs_lifted", count=len(lower))


def _orders(held: Mapping[str, str]) -> dict[str, CloseOrder]:
    """What must be closed of sessions (session → device): unpaired, revoked or disabled meanwhile."""
    bad = {str(device.id): device for device in must_close(held.values())}
    orders = {}
    for session, device_id in held.items():
        device = bad.get(device_id)
        if device is not None:
            code, reason = close_code(device)
            orders[session] = CloseOrder(session=session, code=code, reason=reason)
    return orders


def must_close(device_ids: Iterable[str]) -> QuerySet[Device]:
    """Those of the devices that may have no tunnel: unpaired, without a good token, or of a disabled user."""
    return Device.objects.filter(_BARRED, id__in=set(device_ids)).select_related("owner")


def close_code(device: Device) -> tuple[int, str]:
    """The close code and reason for a device that must have no tunnel."""
    if device.deleted_at is None and not device.owner.is_active:
        return CLOSE_DISABLED, "disabled"
    return CLOSE_REVOKED, "revoked"


# --- events -----------------------------------------------------------------------------------------------------------
def apply_events(events: Sequence[TunnelEvent], *, now: dt.datetime) -> int:
    """Note connects and disconnects; those of an older epoch change nothing. Returns how many counted.

    A batch that is sent again (its answer was lost) is not noted twice.
    """
    ended = [event for event in events if event["type"] == "disconnected"]
    for drained in (True, False):
        told = [event for event in ended if (event["reason"] == "drain") is drained]
        registry.remove([(event["device_id"], event["session"]) for event in told], drained=drained)
    with transaction.atomic():
        ids = {event["device_id"] for event in events}
        rows = Device.objects.select_for_update(no_key=True).filter(id__in=ids).order_by("id")
        locked = {str(device.id): device for device in rows.only(*_TOLD_FIELDS)}
        epochs = {key: device.epoch for key, device in locked.items()}
        overtaken = [event for event in events if twins.is_takeover(event) and event["device_id"] in locked]
        twins.note_replaced(overtaken, [_row(event, now) for event in overtaken], now=now)
        current = [each for each in events if 0 <= each["epoch"] - epochs.get(each["device_id"], NOBODYS) <= LEAP]
        _lift({event["device_id"]: event["epoch"] for event in current if event["epoch"] > epochs[event["device_id"]]})
        DeviceEvent.objects.bulk_create([_row(event, now) for event in current], ignore_conflicts=True)
        # Of several events of one session in a batch the last counts: a connect and its disconnect come in this order.
        last = {event["device_id"]: event["type"] for event in current}
        _set_link([key for key, kind in last.items() if kind == "connected"], LinkStatus.ONLINE, now)
        _set_link([key for key, kind in last.items() if kind == "disconnected"], LinkStatus.OFFLINE, now)
        webhooks.emit_many(_turns(current, locked, now), now=now)
    return len(current)


def _turns(events: Iterable[TunnelEvent], locked: Mapping[str, Device], now: dt.datetime) -> list[Happening]:
    """Where a device goes online or offline, as webhooks are told; one that was unpaired has been told of already."""
    link = {key: device.link_status for key, device in locked.items() if device.deleted_at is None}
    turns = []
    for event in events:
        became = LinkStatus.ONLINE if event["type"] == "connected" else LinkStatus.OFFLINE
        if link.get(event["device_id"], became) == became:
            continue
        link[event["device_id"]] = became
        event_id = _event_id(event, min(dt.datetime.fromisoformat(event["at"]), now))
        turns.append(_turn(locked[event["device_id"]], became, event["reason"][:64], event_id))
    return turns


def _turn(device: Device, became: LinkStatus, reason: str, event_id: uuid.UUID | None = None) -> Happening:
    return happening(
        f"device.{became.value}",
        owner_id=device.owner_id,
        device_id=device.id,
        name=device.name,
        serial=device.serial,
        event_id=event_id,
        **({"reason": reason} if became == LinkStatus.OFFLINE else {}),
    )


def _row(event: TunnelEvent, now: dt.datetime) -> DeviceEvent:
    at = min(dt.datetime.fromisoformat(event["at"]), now)
    detail: dict[str, object] = {"session": event["session"], "epoch": event["epoch"], "agent": event["agent"][:128]}
    if event["type"] == "disconnected":
        detail |= {
            "reason": event["reason"][:64],
            "code": event["code"],
            "bytes_in": event["bytes_in"],
            "bytes_out": event["bytes_out"],
            "streams": event["streams"],
        }
    return DeviceEvent(
        id=_event_id(event, at),
        at=at,
        device_id=uuid.UUID(event["device_id"]),
        action=event["type"],
        address=event["address"][:64],
        request_id=event["request_id"][:64],
        detail=detail,
    )


def _event_id(event: TunnelEvent, at: dt.datetime) -> uuid.UUID:
    """A UUIDv7 whose random part follows from the session and the kind, so that a repeated event has the same id."""
    digest = hashlib.sha256(f"{event['session']}|{event['type']}".encode()).digest()
    milliseconds = max(0, int(at.timestamp() * 1000)) & 0xFFFF_FFFF_FFFF
    rest = int.from_bytes(digest[:10], "big")
    value = milliseconds << 80 | 0x7 << 76 | (rest >> 62 & 0xFFF) << 64 | 0b10 << 62 | rest & (1 << 62) - 1
    return uuid.UUID(int=value)


def _set_link(device_ids: Sequence[str | uuid.UUID], status: LinkStatus, now: dt.datetime) -> None:
    """For rows that the caller has locked."""
    if device_ids:
        Device.objects.filter(id__in=device_ids).update(link_status=status, last_seen_at=now, updated_at=now)


# --- PostgreSQL's copy ------------------------------------------------------------------------------------------------
def follow_registry(*, now: dt.datetime) -> dict[str, int]:
    """Make `link_status` what the registry says: the job of every 5 s. Returns how many rows went which way.

    Usually the daemons' events have done so already; what is left are devices of daemons that were killed, or whose
    events got lost. The table is read before the registry, and each row again under its lock, so that a connect or
    disconnect that comes meanwhile is not undone. While a registry that was lost is being told anew, nobody is taken
    for offline: the tunnels stand.
    """
    registry.reap()
    settled = registry.settled()
    believed = set(map(str, Device.objects.filter(link_status=LinkStatus.ONLINE).values_list("id", flat=True)))
    online = registry.online_devices()
    changes = {"online": 0, "offline": 0, "seen": 0}
    differ = sorted(believed ^ online if settled else online - believed)
    for start in range(0, len(differ), _BATCH):
        up, down = _correct(differ[start : start + _BATCH], now)
        changes["online"] += up
        changes["offline"] += down
    steady = sorted(believed & online)
    for start in range(0, len(steady), _BATCH):
        changes["seen"] += _touch(steady[start : start + _BATCH], now)
    return changes


@transaction.atomic
def _correct(device_ids: Sequence[str], now: dt.datetime) -> tuple[int, int]:
    rows = Device.objects.select_for_update(no_key=True, skip_locked=True).filter(id__in=device_ids).order_by("id")
    locked = list(rows.only(*_TOLD_FIELDS))
    there = registry.lookup([str(row.id) for row in locked])
    found = [row for row in locked if str(row.id) in there and row.link_status == LinkStatus.OFFLINE]
    lost = [row for row in locked if str(row.id) not in there and row.link_status == LinkStatus.ONLINE]
    _set_link([row.id for row in found], LinkStatus.ONLINE, now)
    _set_link([row.id for row in lost], LinkStatus.OFFLINE, now)
    DeviceEvent.objects.bulk_create(
        DeviceEvent(at=now, device_id=row.id, action="disconnected", detail={"reason": "lost", "epoch": row.epoch})
        for row in lost
    )
    turns = [_turn(row, LinkStatus.ONLINE, "") for row in found if row.deleted_at is None]
    turns += [_turn(row, LinkStatus.OFFLINE, "lost") for row in lost if row.deleted_at is None]
    webhooks.emit_many(turns, now=now)
    return len(found), len(lost)


def _touch(device_ids: Sequence[str], now: dt.datetime) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE devices SET last_seen_at = %s WHERE id IN (
                SELECT id FROM devices WHERE id = ANY(%s::uuid[]) AND (last_seen_at IS NULL OR last_seen_at < %s)
                ORDER BY id FOR NO KEY UPDATE SKIP LOCKED)
            """,
            [now, list(device_ids), now - SEEN_EVERY],
        )
        touched: int = cursor.rowcount
    return touched


def close_forbidden(*, request_id: str = "") -> int:
    """Close the tunnels of devices that may have none (a late admission of a user disabled meanwhile, say).

    The heartbeats find them too, within 10 s; this is for the promised 5 s. Returns how many.
    """
    groups: dict[tuple[int, str], dict[str, int]] = {}
    suspects = [str(device_id) for device_id in must_close(registry.online_devices()).values_list("id", flat=True)]
    if suspects and installation.is_foreign():
        return 0
    known = registry.epochs(suspects)  # before the look that counts: what was admitted after it is not ended
    for device in must_close(suspects) if suspects else ():
        groups.setdefault(close_code(device), {})[str(device.id)] = max(device.epoch, known.get(str(device.id), 0))
    for (code, reason), epochs in groups.items():
        tunnels.end_devices(epochs, code=code, reason=reason, request_id=request_id)
    return sum(map(len, groups.values()))
