"""Webhooks without the API: rows and the jobs that wait for the worker."""

import json
from typing import Any

from django.db import connection

from apps.accounts.models import User
from apps.common.sealing import seal
from apps.webhooks.models import Webhook
from apps.webhooks.services import SEALED_FOR

SECRET = "whsec_" + "5" * 64


def make(owner: User, *events: str, **fields: Any) -> Webhook:
    """A webhook of the owner that listens to the events; its secret is SECRET."""
    sealed = seal(SECRET, purpose=SEALED_FOR)
    return Webhook.objects.create(
        **{"owner": owner, "events": list(events), "url": "https://example.com/hook", "secret_sealed": sealed, **fields}
    )


def jobs(task: str = "webhooks.deliver") -> list[dict[str, Any]]:
    """The arguments of the task's jobs, in order, done ones too."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT args FROM procrastinate_jobs WHERE task_name = %s ORDER BY id", [task])
        return [json.loads(row[0]) if isinstance(row[0], str) else row[0] for row in cursor.fetchall()]
