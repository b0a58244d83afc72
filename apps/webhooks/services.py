"""What changes a webhook, and the telling of events: rows and jobs in the transaction of the event itself."""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson
from django.db import transaction
from procrastinate.contrib.django import app as jobs
from procrastinate.types import JSONValue

from apps.common.ids import uuid7
from apps.webhooks.models import Event, Webhook, WebhookDelivery

DELIVER: Final = "webhooks.deliver"
SEALED_FOR: Final = "webhooks"


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
    listening = Webhook.objects.filter(
        owner_id__in={each.owner_id for each in happenings},
        events__overlap=sorted(wanted),
        enabled=True,
        owner__is_active=True,
    ).values_list("id", "owner_id", "events")
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


def new_secret() -> str:
    """A fresh signing secret of 256 random bits: `whsec_` and 64 hex digits."""
    return "whsec_" + secrets.token_hex(32)
