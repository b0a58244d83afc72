"""Jobs on conversions: thin, each calls one service."""

from __future__ import annotations

import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.converter import services

RETRY = RetryStrategy(max_attempts=10, wait=5)
"""For what is not the converter's fault: the database or the storage does not answer, say."""


@app.task(name=services.SUBMIT, queue="converter", retry=RETRY)
def submit(*, conversion_id: str, attempt: int) -> None:
    """Send an order to the converter, attempt number `attempt` (from 0)."""
    services.submit(conversion_id=uuid.UUID(conversion_id), number=attempt, now=timezone.now())


@app.periodic(cron="* * * * *", queueing_lock="converter.expire")
@app.task(name="converter.expire", queue="maintenance")
def expire(timestamp: int) -> None:
    """Every minute: what the converter did not end in time has failed."""
    services.expire(now=timezone.now())
