"""Admitting agents (tunnel.md, "Agents"): a call of many credentials is one transaction, then one write of presence.

The rules stand in `apps.devices.admission_rules`, which does no I/O; here is what they are fed with and what becomes of
their verdicts. Locks: users who pair a box, devices by id, then pairing tokens by hash; session tokens are written
under their device's lock.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import structlog
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.db.models import Q

from apps.accounts import quotas
from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.common.errors import DomainError
from apps.devices import installation, twins
from apps.devices.admission_rules import Ask, Book, Grant, Presence, Refusal, UnaskedError, admit
from apps.devices.happenings import happening
from apps.devices.models import Device, DeviceEvent
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.pairing.services import ATTEMPTS, SESSION_IDLE, StaleRead, retry_stale
from apps.tunnels import registry
from apps.tunnels.registry import Held, Put, Session
from apps.webhooks import services as webhooks
from apps.webhooks.services import Happening
from tunnel.contract import PAIRING_PREFIX, Admitted, Credential, Refused, Replaced, hash_token

logger = structlog.get_logger(__name__)

_DEVICE_FIELDS: Final = (
    "owner_id", "name", "serial", "claimed_serial", "chip", "firmware", "agent_version", "address", "instance", "epoch",
    "local_address", "local_listening", "twin_at", "cloned_at", "deleted_at",
)  # fmt: skip
_SESSION_FIELDS: Final = (
    "device_id", "issued_at", "expires_at", "last_used_at", "rotated_from_id", "revoked_at", "revoke_reason",
)  # fmt: skip
REPLACED_WAIT_SECONDS: Final = 30
"""How long an agent stays away when a newer connection of its device took over (tunnel.md, close code 4409)."""


def authenticate(credentials: Sequence[Credential], *, node: str, now: dt.datetime) -> list[Admitted | Refused]:
    """Answer each credential in order: redeem, rotate, raise epochs in one transaction, then write presence.

    Raises the errors of PostgreSQL and Redis; nothing is admitted then, and an agent may ask again: the same instance
    may redeem its pairing token again (a lost answer locks no box out).
    """
    registry.ping()  # without presence nobody is admitted: better known before tokens are used up
    asks = [Ask.of(credential) for credential in credentials]
    verdicts = _judge(asks, now)
    grants = [verdict for verdict in verdicts if isinstance(verdict, Grant)]
    if grants:
        installation.remember()
    written = iter(_write(grants, node, now))
    return [_refused(verdict) if isinstance(verdict, Refusal) else next(written) for verdict in verdicts]


def _write(grants: Sequence[Grant], node: str, now: dt.datetime) -> list[Admitted | Refused]:
    """Tell the registry who was admitted; of those that it does not take, why, or once more with a higher epoch."""
    puts = registry.put(node, [_session(grant, grant.epoch, now) for grant in grants])
    answers: dict[int, Admitted | Refused] = {
        place: _admitted(grant, grant.epoch, put, node)
        for place, (grant, put) in enumerate(zip(grants, puts, strict=True))
        if put.verdict == "ok"
    }
    left = [place for place in range(len(grants)) if place not in answers]
    looks = _second_look([grants[place] for place in left]) if left else []
    for place, look in zip(left, looks, strict=True):
        if isinstance(look, Refusal):
            answers[place] = _refused(look)
            continue
        (put,) = registry.put(node, [_session(grants[place], look, now)])
        answers[place] = (
            _admitted(grants[place], look, put, node) if put.verdict == "ok" else _refused(Refusal.of("OVERLOADED"))
        )
    return [answers[place] for place in range(len(grants))]


def _session(grant: Grant, epoch: int, now: dt.datetime) -> Session:
    return Session(
        device_id=str(grant.device.id),
        session=grant.ask.session,
        epoch=epoch,
        user_id=str(grant.device.owner_id),
        connected_at=now.isoformat().replace("+00:00", "Z"),
        address=grant.ask.address,
        agent=grant.ask.agent,
        features=grant.ask.features,
        handover=grant.ask.handover,
    )


def _refused(refusal: Refusal) -> Refused:
    error = refusal.error
    answer = Refused(ok=False, status=error.status, code=error.code, message=error.message)
    if error.retry_after is not None:
        answer["retry_after"] = error.retry_after
    return answer


def _admitted(grant: Grant, epoch: int, put: Put, node: str) -> Admitted:
    old = put.replaced
    elsewhere = old is not None and old.node != node and old.node_url
    return Admitted(
        ok=True,
        device_id=str(grant.device.id),
        user_id=str(grant.device.owner_id),
        epoch=epoch,
        session_token=grant.session_token,
        replaced=_replaced(old, handed_over=put.handed_over) if old is not None and elsewhere else None,
    )


def _replaced(old: Held, *, handed_over: bool) -> Replaced:
    if handed_over:
        return Replaced(node_url=old.node_url, session=old.session, handover=True)
    return Replaced(node_url=old.node_url, session=old.session)


@transaction.atomic
def _second_look(grants: Sequence[Grant]) -> list[int | Refusal]:
    """Of grants that the registry did not take: why, or the epoch that is above the registry's, with which it will.

    Between the commit and the write of presence a device may be overtaken by a newer connection, unpaired, or lose its
    token: they are refused. Where nothing of that is so, the registry knows an epoch that the database never had or has
    lost (a failover meanwhile). All under the device's lock, under which tokens are revoked: who revokes later ends the
    epoch that is given here.
    """
    locked = Device.objects.select_for_update(no_key=True, of=("self",)).select_related("owner").order_by("id")
    devices = {device.id: device for device in locked.filter(id__in={grant.device.id for grant in grants})}
    hashes = {text for grant in grants for text in _hashes(grant)}
    revoked = set(
        SessionToken.objects.filter(token_hash__in=hashes, revoked_at__isnull=False).values_list("pk", flat=True)
    )
    revoked |= set(
        PairingToken.objects.filter(token_hash__in=hashes, status=PairingStatus.REVOKED).values_list("pk", flat=True)
    )
    known = registry.epochs(str(device_id) for device_id in devices)
    looks: list[int | Refusal] = []
    for grant in grants:
        device = devices.get(grant.device.id)
        if device is not None and not device.owner.is_active:
            looks.append(Refusal.of("ACCOUNT_DISABLED"))
        elif device is None or device.deleted_at is not None or revoked & _hashes(grant):
            looks.append(Refusal.of("TOKEN_REVOKED"))
        elif device.epoch > grant.epoch:
            looks.append(Refusal.of("CONFLICT", "A newer connection of this device took over.", REPLACED_WAIT_SECONDS))
        else:
            device.epoch = max(device.epoch, known.get(str(device.id), 0)) + 1
            device.save(update_fields=["epoch"])
            looks.append(device.epoch)
    return looks


def _hashes(grant: Grant) -> set[str]:
    """Of the token that came, and of the one that was issued for it."""
    fresh = {hash_token(grant.session_token)} if grant.session_token else set()
    return {grant.ask.token_hash} | fresh


# --- the transaction --------------------------------------------------------------------------------------------------
def _judge(asks: Sequence[Ask], now: dt.datetime) -> list[Grant | Refusal]:
    """Ask who is there, outside of any transaction, and judge; anew where a device has turned up meanwhile."""
    for _ in range(ATTEMPTS):
        answers = twins.presences(asks, now)
        try:
            return retry_stale(lambda answers=answers: _decide(asks, answers, now))  # type: ignore[misc]  # mypy#12557
        except UnaskedError:
            continue
    raise DomainError("OVERLOADED")


def _decide(asks: Sequence[Ask], answers: Mapping[uuid.UUID, Presence], now: dt.datetime) -> list[Grant | Refusal]:
    book = _load(asks)
    book.answers = answers
    book.lift(registry.epochs(str(device_id) for device_id in book.devices))
    verdicts = [ask.fault or admit(ask, book, now) for ask in asks]
    verdicts = installation.excuse(verdicts)
    try:
        _save(book, now)
    except IntegrityError as error:  # the serial was registered meanwhile
        raise StaleRead from error
    return verdicts


def _load(asks: Sequence[Ask]) -> Book:
    """Lock and read all rows that the verdicts rest on, in the order of locks. Raises StaleRead."""
    good = [ask for ask in asks if ask.fault is None]
    pairing_hashes = {ask.token_hash for ask in good if ask.prefix == PAIRING_PREFIX}
    session_hashes = {ask.token_hash for ask in good} - pairing_hashes
    pairing_seen = {token.token_hash: token for token in _pairing(pairing_hashes)}
    session_seen = {
        row[0]: row[1:]
        for row in (
            SessionToken.objects.filter(token_hash__in=session_hashes).values_list(
                "token_hash", "device_id", "device__owner_id", "device__serial"
            )
            if session_hashes
            else ()
        )
    }
    ids = {token.device_id for token in pairing_seen.values()} | {row[0] for row in session_seen.values()}
    wanted = Q(id__in=ids - {None})
    for ask in good:
        if not ask.serial:
            continue
        if token := pairing_seen.get(ask.token_hash):
            wanted |= Q(owner_id=token.owner_id, serial=ask.serial)
        elif (row := session_seen.get(ask.token_hash)) and row[2] != ask.serial:
            wanted |= Q(owner_id=row[1], serial=ask.serial)
    book = Book(reconnect=settings.VISIONA["PAIRING_TOKEN_RECONNECT"])
    redeeming = {token.owner_id for token in pairing_seen.values() if token.status == PairingStatus.ISSUED}
    if redeeming:
        book.room = quotas.left(redeeming, "devices")
    if pairing_seen or session_seen:
        locked = Device.objects.select_for_update(no_key=True).filter(wanted).order_by("id")
        book.add_devices(locked.only(*_DEVICE_FIELDS))
    for token in _pairing(pairing_hashes, lock=True):
        seen = pairing_seen.get(token.token_hash)
        if seen is None or seen.device_id != token.device_id:
            raise StaleRead
        book.pairing[token.token_hash] = token
    if session_hashes:
        book.sessions = SessionToken.objects.only(*_SESSION_FIELDS).in_bulk(list(session_hashes))
    owners = {device.owner_id for device in book.devices.values()} | {t.owner_id for t in book.pairing.values()}
    book.active_owners = set(User.objects.filter(id__in=owners, is_active=True).values_list("id", flat=True))
    return book


def _pairing(hashes: Iterable[str], *, lock: bool = False) -> Iterable[PairingToken]:
    if not hashes:
        return ()
    rows = PairingToken.objects.filter(token_hash__in=hashes).order_by("token_hash")
    return rows.select_for_update(no_key=True) if lock else rows


def _save(book: Book, now: dt.datetime) -> None:
    """Write what the verdicts changed: a fixed number of statements, however many credentials there were."""
    if book.repaired:
        repaired = list(book.repaired)
        SessionToken.objects.filter(device_id__in=repaired, revoked_at=None).update(
            revoked_at=now, revoke_reason="paired_anew", updated_at=now
        )
        PairingToken.objects.filter(
            device_id__in=repaired, status__in=(PairingStatus.PAIRED, PairingStatus.CONSUMED)
        ).exclude(token_hash__in=list(book.pairing)).update(status=PairingStatus.REVOKED, updated_at=now)
    if book.new_devices:
        Device.objects.bulk_create(sorted(book.new_devices, key=lambda each: (each.owner_id, each.serial or "")))
    _update_devices(list(book.changed_devices.values()), now)
    _update_pairing(list(book.changed_pairing.values()), now)
    if book.used_sessions:
        SessionToken.objects.filter(token_hash__in=list(book.used_sessions), revoked_at=None).update(
            last_used_at=now, expires_at=now + SESSION_IDLE, updated_at=now
        )
    if book.rotated:
        # An earlier successor that was never used got lost on the way: only the newest is good.
        SessionToken.objects.filter(rotated_from_id__in=list(book.rotated), last_used_at=None, revoked_at=None).update(
            revoked_at=now, revoke_reason="superseded", updated_at=now
        )
    if book.succeeded:
        SessionToken.objects.filter(token_hash__in=list(book.succeeded), revoked_at=None).update(
            revoked_at=now, revoke_reason="rotated", updated_at=now
        )
    if book.new_sessions:
        SessionToken.objects.bulk_create(book.new_sessions)
    if book.twins:
        twins.mark(book.twins, now=now)
    if book.paired:
        DeviceEvent.objects.bulk_create([_event(grant, now) for grant in book.paired])
        AuditEvent.objects.bulk_create([_audit(grant, now) for grant in book.paired])
        webhooks.emit_many([_paired(grant) for grant in book.paired], now=now)


def _paired(grant: Grant) -> Happening:
    device = grant.device
    return happening(
        "device.paired",
        owner_id=device.owner_id,
        device_id=device.id,
        name=device.name,
        serial=device.serial,
        how=grant.how,
    )


def _update_devices(devices: Sequence[Device], now: dt.datetime) -> None:
    """One statement for all rows (bulk_update makes a CASE for each column and row: ten times as long)."""
    if not devices:
        return
    columns: list[list[Any]] = [
        [device.id for device in devices],
        [device.epoch for device in devices],
        [device.serial for device in devices],
        [device.chip for device in devices],
        [device.firmware for device in devices],
        [device.agent_version for device in devices],
        [device.address for device in devices],
        [device.instance for device in devices],
        [device.claimed_serial for device in devices],
        [device.cloned_at for device in devices],
        [device.local_address for device in devices],
        [device.local_listening for device in devices],
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE devices AS d SET epoch = v.epoch, serial = v.serial, chip = v.chip, firmware = v.firmware,
                agent_version = v.agent_version, address = v.address, instance = v.instance,
                claimed_serial = v.claimed_serial, cloned_at = v.cloned_at, local_address = v.local_address,
                local_listening = v.local_listening, deleted_at = NULL, last_seen_at = %s, updated_at = %s
            FROM unnest(%s::uuid[], %s::bigint[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
                %s::text[], %s::text[], %s::timestamptz[], %s::text[], %s::boolean[])
                AS v(id, epoch, serial, chip, firmware, agent_version, address, instance, claimed_serial, cloned_at,
                    local_address, local_listening)
            WHERE d.id = v.id
            """,
            [now, now, *columns],
        )


def _update_pairing(tokens: Sequence[PairingToken], now: dt.datetime) -> None:
    if not tokens:
        return
    columns: list[list[Any]] = [
        [token.token_hash for token in tokens],
        [str(token.status) for token in tokens],
        [token.device_id for token in tokens],
        [token.instance for token in tokens],
        [token.paired_at for token in tokens],
    ]
    with connection.cursor() as cursor:
        cursor.execute(
            """
            UPDATE pairing_tokens AS t SET status = v.status, device_id = v.device_id, instance = v.instance,
                paired_at = v.paired_at, last_used_at = %s, updated_at = %s
            FROM unnest(%s::text[], %s::text[], %s::uuid[], %s::text[], %s::timestamptz[])
                AS v(token_hash, status, device_id, instance, paired_at)
            WHERE t.token_hash = v.token_hash
            """,
            [now, now, *columns],
        )


def _event(grant: Grant, now: dt.datetime) -> DeviceEvent:
    return DeviceEvent(
        at=now,
        device_id=grant.device.id,
        action="paired",
        address=grant.ask.address,
        request_id=grant.ask.request_id,
        detail={"agent": grant.ask.agent, "how": grant.how},
    )


def _audit(grant: Grant, now: dt.datetime) -> AuditEvent:
    return AuditEvent(
        at=now,
        actor=str(grant.device.owner_id),
        actor_label="agent",
        action="device.pair",
        object_type="device",
        object_id=str(grant.device.id),
        address=grant.ask.address,
        request_id=grant.ask.request_id,
        detail={"serial": grant.device.serial or "", "agent": grant.ask.agent, "how": grant.how},
    )
