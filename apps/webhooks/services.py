"""What changes a webhook, and the telling of events: rows and jobs in the transaction of the event itself.

How a delivery goes out stands in `apps.webhooks.delivery`.
"""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.utils.translation import gettext as _
from procrastinate.contrib.django import app as jobs
from procrastinate.types import JSONValue

from apps.accounts import quotas
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError, invalid, not_found
from apps.common.ids import uuid7
from apps.common.limits.throttle import refusal
from apps.common.outbound import Policy, Refused, check_url
from apps.common.sealing import seal
from apps.webhooks.models import PING, DeliveryStatus, Event, Webhook, WebhookDelivery

DELIVER: Final = "webhooks.deliver"
SEALED_FOR: Final = "webhooks"
OLD_SECRET_SIGNS: Final = dt.timedelta(hours=24)
PINGS_A_MINUTE: Final = 10


@dataclass(frozen=True, slots=True)
class Happening:
    """Something to tell of: to the webhooks of `owner_id` that listen to `event`; `data` is plain JSON.

    Of two with the same `id` a webhook is told once: give it where the same thing may be reported twice.
    """

    owner_id: uuid.UUID
    event: str
    data: Mapping[str, Any]
    id: uuid.UUID = field(default_factory=uuid7)


def emit(*, owner_id: uuid.UUID, event: str, data: Mapping[str, Any], now: dt.datetime) -> int:
    """Tell the owner's webhooks of an event. To be called in the transaction of what happened.

    Args:
        event: one of `apps.webhooks.models.Event`.
        data: plain JSON values (UUIDs and datetimes are taken too); never a secret.
        now: when it happened, aware.

    Returns how many deliveries were begun. One query where nobody listens.
    """
    return emit_many([Happening(owner_id, event, data)], now=now)


def emit_many(happenings: Sequence[Happening], *, now: dt.datetime) -> int:
    """As `emit`, for many at once: three statements at most, one where nobody listens, none for an empty list."""
    if not happenings:
        return 0
    wanted = {Event(each.event).value for each in happenings}
    listening = _listening({each.owner_id for each in happenings}, sorted(wanted))
    by_owner: dict[tuple[uuid.UUID, str], list[uuid.UUID]] = {}
    for webhook_id, owner_id, events in listening:
        for event in events:
            by_owner.setdefault((owner_id, event), []).append(webhook_id)
    return _begin(
        [
            _delivery(webhook_id, happening, now)
            for happening in happenings
            for webhook_id in by_owner.get((happening.owner_id, happening.event), ())
        ]
    )


def _listening(owner_ids: Collection[uuid.UUID], events: list[str]) -> list[tuple[uuid.UUID, uuid.UUID, list[str]]]:
    """(id, owner, events) of the webhooks that listen to one of the events; each stays until the transaction ends.

    FOR KEY SHARE holds up a deletion alone. Without it a webhook that is deleted meanwhile would break its deliveries'
    foreign key at the commit of the event, and the event with it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT w.id, w.owner_id, w.events FROM webhooks AS w JOIN users AS u ON u.id = w.owner_id
            WHERE w.owner_id = ANY(%s) AND w.events && %s::varchar[] AND w.enabled AND u.is_active
            ORDER BY w.id FOR KEY SHARE OF w
            """,
            [list(owner_ids), events],
        )
        found: list[tuple[uuid.UUID, uuid.UUID, list[str]]] = cursor.fetchall()
    return found


def _delivery(webhook_id: uuid.UUID, happening: Happening, now: dt.datetime) -> WebhookDelivery:
    body = {"id": happening.id, "event": happening.event, "created_at": now, "data": dict(happening.data)}
    return WebhookDelivery(
        webhook_id=webhook_id,
        event_id=happening.id,
        event=happening.event,
        body=orjson.dumps(body, option=orjson.OPT_UTC_Z).decode(),
        next_attempt_at=now,
    )


def _begin(deliveries: list[WebhookDelivery]) -> int:
    """Write them, and a job for each, in the caller's transaction."""
    if deliveries:
        with transaction.atomic():
            WebhookDelivery.objects.bulk_create(deliveries, ignore_conflicts=True)  # the job of one left out finds none
            attempts: list[dict[str, JSONValue]] = [{"delivery_id": str(row.id), "attempt": 0} for row in deliveries]
            jobs.configure_task(DELIVER).batch_defer(*attempts)
    return len(deliveries)


# --- what its owner does with a webhook -------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Issued:
    """A webhook, and its signing secret in the clear: this once."""

    webhook: Webhook
    secret: str


def policy() -> Policy:
    """Where webhooks may go, by the settings. Plain http is for development and for one's own networks."""
    return Policy.of(
        private=settings.VISIONA["WEBHOOK_ALLOW_PRIVATE"],
        networks=settings.VISIONA["WEBHOOK_PRIVATE_NETWORKS"],
        plain=settings.VISIONA["ENV"] != "production",
    )


def _checked(url: str) -> str:
    try:
        check_url(url, policy())
    except Refused as error:
        raise invalid(url=str(error)) from None
    return url


@transaction.atomic
def create_webhook(*, actor: Actor, owner_id: uuid.UUID, url: str, events: Sequence[str], now: dt.datetime) -> Issued:
    """A webhook of `owner_id`. Raises DomainError VALIDATION_ERROR (the URL), QUOTA_EXCEEDED."""
    _checked(url)
    quotas.check(owner_id, webhooks=1)
    secret = _new_secret()
    webhook = Webhook.objects.create(
        owner_id=owner_id,
        url=url,
        events=_in_order(events),
        secret_sealed=seal(secret, purpose=SEALED_FOR),
    )
    _audit(actor, "webhook.create", webhook, {"events": webhook.events}, now)
    return Issued(webhook, secret)


@transaction.atomic
def change_webhook(
    *, actor: Actor, owner_id: uuid.UUID | None, webhook_id: uuid.UUID, changes: Mapping[str, Any], now: dt.datetime
) -> Webhook:
    """Set `url`, `events` and `enabled` as far as given; to enable it forgives its failures.

    `owner_id` None: any owner's (the admin). Raises DomainError NOT_FOUND, VALIDATION_ERROR.
    """
    webhook = _locked(webhook_id, owner_id)
    if "url" in changes:
        webhook.url = _checked(changes["url"])
    if "events" in changes:
        webhook.events = _in_order(changes["events"])
    if "enabled" in changes:
        webhook.enabled = changes["enabled"]
        webhook.disabled_reason, webhook.failing_since = "", None
    if changes:
        webhook.save()
        _audit(actor, "webhook.change", webhook, {"fields": sorted(changes)}, now)
    return webhook


@transaction.atomic
def delete_webhook(*, actor: Actor, owner_id: uuid.UUID | None, webhook_id: uuid.UUID, now: dt.datetime) -> None:
    """Delete a webhook with its log; what is on its way may still arrive. Raises DomainError NOT_FOUND."""
    webhook = _locked(webhook_id, owner_id, whole=True)
    _audit(actor, "webhook.delete", webhook, {"events": webhook.events}, now)
    webhook.delete()


@transaction.atomic
def rotate_secret(*, actor: Actor, owner_id: uuid.UUID, webhook_id: uuid.UUID, now: dt.datetime) -> Issued:
    """A new signing secret; the old one signs beside it for 24 h, so that the receiver can change over in between.

    Raises DomainError NOT_FOUND.
    """
    webhook = _locked(webhook_id, owner_id)
    secret = _new_secret()
    webhook.old_secret_sealed, webhook.old_secret_until = webhook.secret_sealed, now + OLD_SECRET_SIGNS
    webhook.secret_sealed = seal(secret, purpose=SEALED_FOR)
    webhook.save()
    _audit(actor, "webhook.rotate_secret", webhook, {}, now)
    return Issued(webhook, secret)


@transaction.atomic
def ping(*, actor: Actor, owner_id: uuid.UUID, webhook_id: uuid.UUID, now: dt.datetime) -> WebhookDelivery:
    """A trial delivery (`event` is `ping`). Raises DomainError NOT_FOUND, INVALID_STATE (disabled), RATE_LIMITED."""
    webhook = _enabled(webhook_id, owner_id)
    recent = webhook.deliveries.filter(event=PING, created_at__gt=now - dt.timedelta(minutes=1)).count()
    if recent >= PINGS_A_MINUTE:
        raise refusal(PINGS_A_MINUTE, 60_000)
    delivery = _delivery(webhook.id, Happening(owner_id, PING, {"webhook_id": str(webhook.id)}), now)
    _begin([delivery])
    _audit(actor, "webhook.ping", webhook, {"delivery": str(delivery.id)}, now)
    return delivery


@transaction.atomic
def redeliver(
    *, actor: Actor, owner_id: uuid.UUID, webhook_id: uuid.UUID, delivery_id: uuid.UUID, now: dt.datetime
) -> WebhookDelivery:
    """Send a delivery that ended once more, with its old event id, and all attempts anew.

    Raises DomainError NOT_FOUND, INVALID_STATE (the webhook is disabled, or the delivery is still under way).
    """
    webhook = _enabled(webhook_id, owner_id)
    delivery = webhook.deliveries.select_for_update().filter(id=delivery_id).first()
    if delivery is None:
        raise not_found()
    if delivery.status == DeliveryStatus.PENDING:
        raise DomainError("INVALID_STATE", _("This delivery is still under way."))
    delivery.status, delivery.error, delivery.response_status = DeliveryStatus.PENDING, "", None
    delivery.next_attempt_at, delivery.delivered_at, delivery.first_attempt = now, None, delivery.attempts
    delivery.save()
    jobs.configure_task(DELIVER).defer(delivery_id=str(delivery.id), attempt=delivery.attempts)
    _audit(actor, "webhook.redeliver", webhook, {"delivery": str(delivery.id), "event": delivery.event}, now)
    return delivery


@transaction.atomic
def delete_all(*, user_id: uuid.UUID, before: dt.datetime | None = None) -> int:
    """Delete all webhooks of a user who leaves, or those made until `before`, with their logs. Returns how many."""
    mine = Webhook.objects.filter(owner_id=user_id).order_by("id")
    if before is not None:
        mine = mine.filter(created_at__lte=before)
    ids = list(mine.select_for_update().values_list("id", flat=True))
    Webhook.objects.filter(id__in=ids).delete()
    return len(ids)


def _locked(webhook_id: uuid.UUID, owner_id: uuid.UUID | None, *, whole: bool = False) -> Webhook:
    """`whole`: to delete it. Else events may go on being told to it meanwhile."""
    rows = Webhook.objects.select_for_update(no_key=not whole).filter(id=webhook_id)
    webhook = (rows if owner_id is None else rows.filter(owner_id=owner_id)).first()
    if webhook is None:
        raise not_found()
    return webhook


def _enabled(webhook_id: uuid.UUID, owner_id: uuid.UUID) -> Webhook:
    webhook = _locked(webhook_id, owner_id)
    if not webhook.enabled:
        raise DomainError("INVALID_STATE", _("This webhook is disabled; enable it first."))
    return webhook


def _new_secret() -> str:
    return "whsec_" + secrets.token_hex(32)


def _in_order(events: Sequence[str]) -> list[str]:
    return [event for event in Event.values if event in set(events)]


def _audit(actor: Actor, action: str, webhook: Webhook, detail: Mapping[str, Any], now: dt.datetime) -> None:
    """The audit trail names where it goes, without the path and query, in which people put tokens."""
    record(
        actor=actor,
        action=action,
        object_type="webhook",
        object_id=str(webhook.id),
        detail={"to": webhook.origin, **detail},
        now=now,
    )
