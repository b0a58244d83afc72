"""How a delivery goes out: one attempt is one job; each records its outcome and defers the next in one transaction.

A job that is done again (its worker was killed) finds by the number of its attempt whether the outcome was recorded: if
not, the event is sent again, with the same id. So every event arrives at least once while the receiver answers at all.

Slots of a worker are few, and a receiver may take its time: of one webhook two attempts run at once in a process, of
all together a third of a worker's slots, and no owner has all of these (`Places`). What finds no place goes on when an
attempt ends, or is found by the sweep of every minute.
"""

from __future__ import annotations

import datetime as dt
import random
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Min
from procrastinate.contrib.django import app as jobs

from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.db.connections import release_database
from apps.common.limits.places import Places
from apps.common.outbound import Refused, Reply, Unanswered, post
from apps.common.sealing import Unreadable, reseal, unseal
from apps.webhooks.models import DeliveryStatus, Webhook, WebhookDelivery
from apps.webhooks.services import DELIVER, SEALED_FOR, policy
from apps.webhooks.signing import HEADER, sign

logger = structlog.get_logger(__name__)

FIRST_DELAY_SECONDS: Final = 10
FACTOR: Final = 3
LONGEST_DELAY_SECONDS: Final = 8 * 3600
ATTEMPTS: Final = 11
"""10 s, 30 s, 90 s … at most 8 h between them: a day and an hour from the first to the last."""
JITTER: Final = 0.2
GIVE_UP_AFTER: Final = dt.timedelta(days=3)
"""A webhook that took nothing for this long is disabled: nobody listens any more."""
BUSY: Final = "busy"
_PER_WEBHOOK: Final = 2
_TOGETHER: Final = 4
_OVERDUE: Final = dt.timedelta(minutes=1)
_SWEPT: Final = 500
_REMOVED: Final = 5000

_places: Final = Places("webhooks", lambda: _TOGETHER)
_lock = threading.Lock()
_running: Counter[uuid.UUID] = Counter()
_in_hand: set[uuid.UUID] = set()
_waiting: dict[uuid.UUID, str] = {}  # webhooks whose deliveries found no place, in order, with their owners


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one attempt: an answer's status, or why there was none."""

    status: int | None
    error: str

    @property
    def good(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


def attempt(*, delivery_id: uuid.UUID, number: int, now: dt.datetime) -> str:
    """Make attempt `number` (from 0) of a delivery unless it was made; record it, defer the next.

    Returns what became of it: `delivered`, `retry`, `failed`, BUSY (no place; it goes on by itself), or `done` (there
    was nothing to do).
    """
    delivery = WebhookDelivery.objects.select_related("webhook__owner").filter(id=delivery_id).first()
    if delivery is None or delivery.status != DeliveryStatus.PENDING or delivery.attempts != number:
        return "done"
    webhook = delivery.webhook
    if not webhook.enabled or not webhook.owner.is_active:
        return _record(delivery, Outcome(None, "the webhook is disabled"), now, last=True)
    with _place(delivery, str(webhook.owner_id)) as free:
        if not free:
            return BUSY
        release_database()
        result = _record(delivery, _send(webhook, delivery, now), now)  # in hand until it is recorded
    logger.info("webhook_attempt", to=webhook.origin, event_id=str(delivery.event_id), number=number, result=result)
    _next_waiting(now)
    return result


@contextmanager
def _place(delivery: WebhookDelivery, owner: str) -> Iterator[bool]:
    """Whether this process has a place for an attempt; it is given back at the end."""
    with _lock:
        free = delivery.id not in _in_hand and _running[delivery.webhook_id] < _PER_WEBHOOK and _places.enter(owner)
        if free:
            _running[delivery.webhook_id] += 1
            _in_hand.add(delivery.id)
        elif delivery.id not in _in_hand:
            _waiting[delivery.webhook_id] = owner
    try:
        yield free
    finally:
        if free:
            with _lock:
                _places.leave(owner)
                _running[delivery.webhook_id] -= 1
                if not _running[delivery.webhook_id]:
                    del _running[delivery.webhook_id]
                _in_hand.discard(delivery.id)


def _send(webhook: Webhook, delivery: WebhookDelivery, now: dt.datetime) -> Outcome:
    body = delivery.body.encode()
    try:
        reply: Reply = post(
            webhook.url,
            body,
            headers={
                "Content-Type": "application/json",
                "User-Agent": "VisionA-Webhooks/1",
                HEADER: sign(_secrets(webhook, now), body, int(now.timestamp())),
                "X-VisionA-Event": delivery.event,
                "X-VisionA-Delivery": str(delivery.id),
            },
            policy=policy(),
            connect_seconds=settings.VISIONA["WEBHOOK_CONNECT_SECONDS"],
            total_seconds=settings.VISIONA["WEBHOOK_TIMEOUT_SECONDS"],
        )
    except (Refused, Unanswered) as error:
        return Outcome(None, str(error)[:200])
    except Unreadable as error:
        logger.warning("webhook_secret_unreadable", webhook=str(webhook.id))
        return Outcome(None, str(error)[:200])
    redirect = 300 <= reply.status < 400
    return Outcome(reply.status, "redirects are not followed" if redirect else "")


def _secrets(webhook: Webhook, now: dt.datetime) -> list[str]:
    sealed = [webhook.secret_sealed]
    if webhook.old_secret_until is not None and now < webhook.old_secret_until:
        sealed.append(webhook.old_secret_sealed)
    return [unseal(each, purpose=SEALED_FOR) for each in sealed]


def delay_seconds(tries: int) -> float:
    """How long to wait after that many tries (from 1), with a fifth of jitter either way."""
    plain = min(FIRST_DELAY_SECONDS * FACTOR ** (tries - 1), LONGEST_DELAY_SECONDS)
    return float(plain * random.uniform(1 - JITTER, 1 + JITTER))  # noqa: S311 - spreads load, hides nothing


@transaction.atomic
def _record(delivery: WebhookDelivery, outcome: Outcome, now: dt.datetime, *, last: bool = False) -> str:
    """Note the outcome, once: of two that made the same attempt the second changes nothing."""
    tries = delivery.attempts + (0 if last else 1)  # the last word on it was none to the receiver
    changes: dict[str, object] = {
        "attempts": tries,
        "response_status": outcome.status,
        "error": outcome.error,
        "next_attempt_at": None,
        "updated_at": now,
    }
    wait: float | None = None
    if outcome.good:
        changes |= {"status": DeliveryStatus.DELIVERED, "delivered_at": now}
    elif last or tries - delivery.first_attempt >= ATTEMPTS:
        changes |= {"status": DeliveryStatus.FAILED}
    else:
        wait = delay_seconds(tries - delivery.first_attempt)
        changes |= {"next_attempt_at": now + dt.timedelta(seconds=wait)}
    same = WebhookDelivery.objects.filter(id=delivery.id, status=DeliveryStatus.PENDING, attempts=delivery.attempts)
    if not same.update(**changes):
        return "done"
    if not last:
        _judge(delivery.webhook_id, outcome, now, given_up=wait is None)
    if wait is None:
        return "delivered" if outcome.good else "failed"
    jobs.configure_task(DELIVER, schedule_in={"seconds": wait}).defer(delivery_id=str(delivery.id), attempt=tries)
    return "retry"


def _judge(webhook_id: uuid.UUID, outcome: Outcome, now: dt.datetime, *, given_up: bool) -> None:
    """Since when it fails. One that has failed for days is disabled once a delivery is given up, after a day of its
    own, and the audit trail of its owner says so."""
    rows = Webhook.objects.filter(id=webhook_id)
    if outcome.good:
        rows.exclude(failing_since=None).update(failing_since=None, updated_at=now)
        return
    if rows.filter(failing_since=None).update(failing_since=now, updated_at=now) or not given_up:
        return
    tired = rows.filter(enabled=True, failing_since__lte=now - GIVE_UP_AFTER)
    if tired.update(enabled=False, disabled_reason="failing", updated_at=now):
        webhook = Webhook.objects.get(id=webhook_id)
        record(
            actor=Actor(user_id=str(webhook.owner_id), label="worker"),
            action="webhook.disabled",
            object_type="webhook",
            object_id=str(webhook_id),
            detail={"to": webhook.origin, "reason": "failing", "last": outcome.error or str(outcome.status)},
            now=now,
        )
        logger.warning("webhook_disabled", webhook=str(webhook_id), to=webhook.origin)


# --- what waits -------------------------------------------------------------------------------------------------------
def _next_waiting(now: dt.datetime) -> None:
    """A place is free: of the webhooks that found none, and may have it, the first has its turn, with what of it has
    waited longest."""
    with _lock:
        webhook_id = next((each for each, owner in _waiting.items() if _may_run(each, owner)), None)
        if webhook_id is None:
            return
        owner = _waiting.pop(webhook_id)
        busy = list(_in_hand)
    due = WebhookDelivery.objects.filter(
        webhook_id=webhook_id, status=DeliveryStatus.PENDING, next_attempt_at__lte=now
    ).order_by("next_attempt_at")
    found = list(due.exclude(id__in=busy)[:2])
    if len(found) > 1:
        with _lock:
            _waiting[webhook_id] = owner
    _defer(found[:1])


def _may_run(webhook_id: uuid.UUID, owner: str) -> bool:
    return _running[webhook_id] < _PER_WEBHOOK and _places.may_enter(owner)


def sweep(*, now: dt.datetime) -> int:
    """Deliveries that are overdue get a job again, two of each webhook. Returns how many.

    Whatever became of their jobs: refused for want of a place, or lost. One job too many finds nothing to do.
    """
    overdue = WebhookDelivery.objects.filter(status=DeliveryStatus.PENDING, next_attempt_at__lte=now - _OVERDUE)
    found = 0
    webhooks = overdue.values("webhook_id").annotate(since=Min("next_attempt_at")).order_by("since")
    for row in webhooks[:_SWEPT]:
        mine = overdue.filter(webhook_id=row["webhook_id"]).order_by("next_attempt_at")
        found += _defer(list(mine[:_PER_WEBHOOK]))
    return found


def _defer(deliveries: Sequence[WebhookDelivery]) -> int:
    for delivery in deliveries:
        jobs.configure_task(DELIVER).defer(delivery_id=str(delivery.id), attempt=delivery.attempts)
    return len(deliveries)


# --- upkeep -----------------------------------------------------------------------------------------------------------
def remove_old(*, now: dt.datetime) -> int:
    """Drop deliveries older than `KEEP_JOBS_DAYS`, some thousand at a time. Returns how many."""
    before = now - dt.timedelta(days=settings.VISIONA["KEEP_JOBS_DAYS"])
    removed = 0
    while True:
        old = WebhookDelivery.objects.filter(created_at__lt=before).values_list("id", flat=True)[:_REMOVED]
        count, _ = WebhookDelivery.objects.filter(id__in=list(old)).delete()
        removed += count
        if count < _REMOVED:
            return removed


def reseal_secrets(*, now: dt.datetime) -> int:
    """Seal each secret with the newest key, so that an older one may leave `SECRET_KEY`; drop old ones that no longer
    sign. Returns how many rows changed."""
    Webhook.objects.filter(old_secret_until__lte=now).update(old_secret_sealed="", old_secret_until=None)
    changed = 0
    for webhook in Webhook.objects.only("id", "secret_sealed", "old_secret_sealed").iterator():
        try:
            anew = reseal(webhook.secret_sealed, purpose=SEALED_FOR)
            old = webhook.old_secret_sealed and reseal(webhook.old_secret_sealed, purpose=SEALED_FOR)
        except Unreadable:
            logger.warning("webhook_secret_unreadable", webhook=str(webhook.id))
            continue
        if (anew, old) != (webhook.secret_sealed, webhook.old_secret_sealed):
            same = Webhook.objects.filter(id=webhook.id, secret_sealed=webhook.secret_sealed)
            changed += same.update(secret_sealed=anew, old_secret_sealed=old)
    return changed
