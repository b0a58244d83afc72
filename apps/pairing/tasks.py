"""Jobs on tokens: thin, each calls one service."""

from __future__ import annotations

import datetime as dt
import uuid

from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.common.actor import Actor
from apps.pairing import services


@app.periodic(cron="*/5 * * * *", queueing_lock="pairing.expire_tokens")
@app.task(name="pairing.expire_tokens", queue="maintenance")
def expire_tokens(timestamp: int) -> None:
    """Every 5 minutes: session tokens that ended are marked, pairing tokens that nobody used for long are dropped."""
    services.expire_tokens(now=timezone.now())


@app.task(name="pairing.revoke_all", queue="tunnels", retry=RetryStrategy(max_attempts=10, wait=2))
def revoke_all(*, user_id: str, before: str) -> None:
    """Revoke a user's pairing tokens that were made until a moment (ISO 8601)."""
    services.revoke_all(
        actor=Actor.system("worker"),
        owner_id=uuid.UUID(user_id),
        before=dt.datetime.fromisoformat(before),
        now=timezone.now(),
    )
