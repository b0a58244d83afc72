"""Jobs on webhooks: thin, each calls one service. An attempt that ends without an outcome is made again by its job."""

from __future__ import annotations

import datetime as dt
import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.webhooks import delivery, services

RETRY = RetryStrategy(max_attempts=10, wait=2)
"""For what is not the receiver's fault: the database does not answer, say."""


@app.task(name=services.DELIVER, queue="webhooks", retry=RETRY)
def deliver(*, delivery_id: str, attempt: int) -> None:
    """Attempt number `attempt` (from 0) of a delivery."""
    delivery.attempt(delivery_id=uuid.UUID(delivery_id), number=attempt, now=timezone.now())


@app.task(name="webhooks.delete_all", queue="webhooks", retry=RETRY)
def delete_all(*, user_id: str, before: str = "") -> None:
    """Delete all webhooks of a user who leaves, or those that were made until a moment (ISO 8601)."""
    services.delete_all(user_id=uuid.UUID(user_id), before=dt.datetime.fromisoformat(before) if before else None)


@app.periodic(cron="* * * * *", queueing_lock="webhooks.sweep")
@app.task(name="webhooks.sweep", queue="maintenance")
def sweep(timestamp: int) -> None:
    """Every minute: deliveries that are overdue get a job again."""
    delivery.sweep(now=timezone.now())


@app.periodic(cron="23 * * * *", queueing_lock="webhooks.upkeep")
@app.task(name="webhooks.upkeep", queue="maintenance")
def upkeep(timestamp: int) -> None:
    """Every hour: old deliveries are dropped, and secrets sealed with the newest key."""
    delivery.remove_old(now=timezone.now())
    delivery.reseal_secrets(now=timezone.now())
