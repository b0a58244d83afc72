"""Jobs on models: thin, each calls one service."""

from __future__ import annotations

import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.model_registry import finalization_tasks as finalization_tasks  # procrastinate looks for jobs here
from apps.model_registry import services, upkeep
from apps.storage import services as storage

RETRY = RetryStrategy(max_attempts=10, exponential_wait=2)


@app.periodic(cron="23 * * * *", queueing_lock="models.reap")
@app.task(name="models.reap", queue="maintenance")
def reap(timestamp: int) -> None:
    """Every hour: uploads given up, deleted models that are old, bytes that nothing speaks of."""
    upkeep.reap(now=timezone.now())


@app.task(name=services.DISCARD, queue="maintenance", retry=RETRY)
def discard(*, key: str, upload_id: str) -> None:
    """Bytes that nothing speaks of any more."""
    storage.store().discard(key, upload_id=upload_id)


@app.task(name=services.WITHDRAW, queue="maintenance", retry=RETRY)
def withdraw(*, key: str) -> None:
    """A deleted model's bytes: the URLs that are out lead nowhere."""
    services.withdraw(key=key)


@app.task(name="models.purge_owner", queue="maintenance", retry=RETRY)
def purge_owner(*, user_id: str) -> None:
    """All models of a user who leaves, with their bytes."""
    upkeep.purge_owner(owner_id=uuid.UUID(user_id), now=timezone.now())
