"""Jobs on tokens: thin, each calls one service."""

from __future__ import annotations

from django.utils import timezone
from procrastinate.contrib.django import app

from apps.pairing import services


@app.periodic(cron="*/5 * * * *", queueing_lock="pairing.expire_tokens")
@app.task(name="pairing.expire_tokens", queue="maintenance")
def expire_tokens(timestamp: int) -> None:
    """Every 5 minutes: session tokens that ended are marked, pairing tokens that nobody used for long are dropped."""
    services.expire_tokens(now=timezone.now())
