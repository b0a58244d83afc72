"""Issuing and revoking pairing and session tokens.

Locks are taken in one order everywhere: devices by id, then pairing tokens by hash; session tokens are written only
under their device's lock (`apps.devices.admission` does the same), so that no two acts deadlock.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, TypeVar
from urllib.parse import urlsplit

from django.apps import apps
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from procrastinate.contrib.django import app as jobs

from apps.accounts import quotas
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.tunnels import services as tunnels
from tunnel.contract import CLOSE_REVOKED, PAIRING_PREFIX, hash_token, new_token

DEFAULT_TTL_MINUTES: Final = 60
MAX_TTL_MINUTES: Final = 10_080
SESSION_IDLE: Final = dt.timedelta(days=365)
"""A session token ends this long after its last use (tunnel.md, "Agents")."""
EXPIRED: Final = "expired"
"""The reason by which a session token that ended unused differs from one that was revoked."""
ATTEMPTS: Final = 5
UNUSED_KEPT: Final = dt.timedelta(days=30)
"""How long an unused pairing token stays listed after it has expired."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Issued:
    """A new pairing token: the row, and the secret, which exists nowhere else."""

    token: PairingToken
    secret: str

    @property
    def command(self) -> str:
        """The line to paste on the box."""
        url = urlsplit(settings.VISIONA["TUNNEL_PUBLIC_URL"])
        scheme = {"http": "ws", "https": "wss"}.get(url.scheme, url.scheme)
        return f"visiona-agent run --url {url._replace(scheme=scheme).geturl()} --pairing-token {self.secret}"


@transaction.atomic
def issue_token(*, actor: Actor, owner_id: uuid.UUID, name: str, ttl_minutes: int, now: dt.datetime) -> Issued:
    """A pairing token of `owner_id` that must be used first within `ttl_minutes` (1 to 10 080).

    Raises DomainError QUOTA_EXCEEDED.
    """
    quotas.check(owner_id, pairing_tokens=1)
    secret = new_token(PAIRING_PREFIX)
    token = PairingToken.objects.create(
        token_hash=hash_token(secret),
        owner_id=owner_id,
        name=name,
        expires_at=now + dt.timedelta(minutes=ttl_minutes),
    )
    record(
        actor=actor,
        action="pairing_token.issue",
        object_type="pairing_token",
        object_id=str(token.id),
        detail={"name": name, "ttl_minutes": ttl_minutes},
        now=now,
    )
    return Issued(token, secret)


class StaleRead(Exception):
    """What was read before the locks were taken is no longer so: the transaction is to be done anew."""


def retry_stale(act: Callable[[], Result]) -> Result:
    """Run `act` in a transaction of its own, anew while it raises StaleRead. Raises DomainError OVERLOADED after 5."""
    for _ in range(ATTEMPTS):
        try:
            with transaction.atomic():
                return act()
        except StaleRead:
            continue
    raise DomainError("OVERLOADED")


def revoke_token(*, actor: Actor, token_id: uuid.UUID, owner_id: uuid.UUID | None, now: dt.datetime) -> PairingToken:
    """Revoke a pairing token and what its device got by it; the tunnel that they hold closes (4401).

    Idempotent. `owner_id` None: any owner's (the admin). Raises DomainError NOT_FOUND.
    """
    return retry_stale(lambda: _revoke_token(actor, token_id, owner_id, now))


def revoke_all(*, actor: Actor, owner_id: uuid.UUID, before: dt.datetime, now: dt.datetime) -> int:
    """Revoke a user's pairing tokens that were made until `before`. Returns how many."""
    rows = PairingToken.objects.filter(owner_id=owner_id, created_at__lte=before)
    ids = list(rows.exclude(status=PairingStatus.REVOKED).values_list("id", flat=True))
    for token_id in ids:
        revoke_token(actor=actor, token_id=token_id, owner_id=owner_id, now=now)
    return len(ids)


def _revoke_token(actor: Actor, token_id: uuid.UUID, owner_id: uuid.UUID | None, now: dt.datetime) -> PairingToken:
    owned = Q() if owner_id is None else Q(owner_id=owner_id)
    seen = PairingToken.objects.filter(owned, id=token_id).first()
    if seen is None:
        raise not_found()
    epoch = _lock_device(seen.device_id)
    token = PairingToken.objects.select_for_update().get(token_hash=seen.token_hash)
    if token.device_id != seen.device_id:
        raise StaleRead
    if token.status == PairingStatus.REVOKED:
        return token
    held = token.status in (PairingStatus.PAIRED, PairingStatus.CONSUMED)
    token.status = PairingStatus.REVOKED
    token.save(update_fields=["status", "updated_at"])
    record(
        actor=actor,
        action="pairing_token.revoke",
        object_type="pairing_token",
        object_id=str(token.id),
        detail={"name": token.name, "device_id": str(token.device_id or "")},
        now=now,
    )
    if held and token.device_id is not None and epoch is not None:
        # At most one token of a device is paired or consumed: to pair anew revokes the older ones.
        live_sessions(token.device_id).update(revoked_at=now, revoke_reason="pairing_token_revoked", updated_at=now)
        _close_after_commit(actor, token.device_id, epoch, now)
    return token


def revoke_session_token(*, actor: Actor, token_id: uuid.UUID, now: dt.datetime) -> SessionToken:
    """Revoke one session token (the admin's act); its device's tunnel closes (4401). Idempotent.

    Raises DomainError NOT_FOUND.
    """
    with transaction.atomic():
        seen = SessionToken.objects.filter(id=token_id).first()
        if seen is None:
            raise not_found()
        epoch = _lock_device(seen.device_id)
        token = SessionToken.objects.get(token_hash=seen.token_hash)
        if token.revoked_at is not None:
            return token
        token.revoked_at, token.revoke_reason = now, "revoked"
        token.save(update_fields=["revoked_at", "revoke_reason", "updated_at"])
        record(
            actor=actor,
            action="session_token.revoke",
            object_type="session_token",
            object_id=str(token.id),
            detail={"device_id": str(token.device_id)},
            now=now,
        )
        if epoch is not None:
            _close_after_commit(actor, token.device_id, epoch, now)
        return token


def revoke_of_devices(device_ids: Collection[uuid.UUID], *, now: dt.datetime, reason: str) -> None:
    """Revoke every token of devices that the caller has locked (unpairing)."""
    tokens = PairingToken.objects.filter(device_id__in=device_ids).exclude(status=PairingStatus.REVOKED)
    list(tokens.order_by("token_hash").select_for_update().values_list("token_hash"))
    tokens.update(status=PairingStatus.REVOKED, updated_at=now)
    SessionToken.objects.filter(device_id__in=device_ids, revoked_at=None).update(
        revoked_at=now, revoke_reason=reason, updated_at=now
    )


def expire_tokens(*, now: dt.datetime) -> dict[str, int]:
    """Mark session tokens that ended, drop pairing tokens that nobody used for long. Returns the counts.

    A tunnel that is up is a use: the tokens of devices that are online are prolonged instead.
    """
    ended = SessionToken.objects.filter(revoked_at=None, expires_at__lte=now)
    prolonged = ended.filter(device__link_status="online").update(expires_at=now + SESSION_IDLE, updated_at=now)
    expired = ended.update(revoked_at=now, revoke_reason=EXPIRED, updated_at=now)
    unused = PairingToken.objects.filter(status=PairingStatus.ISSUED, expires_at__lte=now - UNUSED_KEPT)
    dropped, _by_model = unused.delete()
    return {"prolonged": prolonged, "expired": expired, "dropped": dropped}


def live_sessions(device_id: uuid.UUID) -> QuerySet[SessionToken]:
    """The session tokens of a device that are not revoked."""
    return SessionToken.objects.filter(device_id=device_id, revoked_at=None)


def _lock_device(device_id: uuid.UUID | None) -> int | None:
    """Lock a device's row until the transaction ends; the epoch up to which it would end, None if it is not there."""
    if device_id is None:
        return None
    devices = apps.get_model("devices", "Device").objects  # by name: the app `devices` stands above this one
    epoch: int | None = (
        devices.select_for_update(no_key=True).filter(pk=device_id).values_list("epoch", flat=True).first()
    )
    return None if epoch is None else tunnels.epochs_to_end({str(device_id): epoch})[str(device_id)]


def _close_after_commit(actor: Actor, device_id: uuid.UUID, epoch: int, now: dt.datetime) -> None:
    """Close at once what this process can, and leave a job in the transaction in case that it cannot."""
    jobs.configure_task("devices.token_revoked").defer(
        device_id=str(device_id),
        epoch=epoch,
        at=now.isoformat(),
        actor=actor.user_id,
        address=actor.address,
        request_id=actor.request_id,
    )
    transaction.on_commit(
        lambda: tunnels.end_devices(
            {str(device_id): epoch}, code=CLOSE_REVOKED, reason="revoked", request_id=actor.request_id
        ),
        robust=True,  # the act stands; what could not be closed now is closed by the job and the next heartbeat
    )
