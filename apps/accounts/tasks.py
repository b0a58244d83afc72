"""Jobs on accounts: thin, each calls one service. They are deferred in the transaction of the act that causes them."""

from __future__ import annotations

import uuid
from typing import Any, cast

from django.conf import settings
from django.utils import timezone
from procrastinate import RetryStrategy
from procrastinate.contrib.django import app

from apps.accounts import leaving, mails, selectors
from apps.accounts.factors import checking

MAIL_RETRY = RetryStrategy(max_attempts=8, exponential_wait=4)
"""Over some six hours, for a mail server that is away."""
ERASE_RETRY = RetryStrategy(max_attempts=20, linear_wait=60)


@app.task(name="accounts.send_mail", queue="mail", retry=MAIL_RETRY)
def send_mail(*, kind: str, user_id: str, email: str = "", language: str = "en", request_id: str = "") -> None:
    """Send a mail to a user; an empty id is nobody's, and nothing happens."""
    user = selectors.active_user(uuid.UUID(user_id)) if user_id else None
    if user is not None:
        mails.send(cast("Any", kind), user, email=email, language=language, now=timezone.now())


@app.periodic(cron="41 * * * *", queueing_lock="accounts.upkeep")
@app.task(name="accounts.upkeep", queue="maintenance")
def upkeep(timestamp: int) -> None:
    """Every hour: secrets of second factors are sealed with the newest key."""
    checking.reseal_secrets()


@app.task(name="accounts.erase", queue="maintenance", retry=ERASE_RETRY)
def erase(*, user_id: str, email: str, request_id: str = "") -> None:
    """Delete what is left of a user who has gone."""
    leaving.erase(user_id=uuid.UUID(user_id), email=email, run=lambda name: app.tasks[name](user_id=user_id))


@app.task(name="accounts.shed", queue="maintenance", retry=ERASE_RETRY)
def shed(*, user_id: str, before: str, request_id: str = "") -> None:
    """Rid an account of what was made in it until `before`, when its e-mail was first shown to be somebody's."""
    for name in settings.ACCOUNT_SHED_TASKS:
        app.tasks[name](user_id=user_id, before=before)
