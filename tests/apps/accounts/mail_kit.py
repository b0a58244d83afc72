"""What was asked to be sent: jobs, carried out here, and the letters that come of them."""

import re

from django.core import mail
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import tasks

_LINK = re.compile(r"^\S+#(?:verify|reset)=(\S+)$", re.MULTILINE)
_done: set[int] = set()
"""The ids of a run's jobs are never used twice."""


def deliver() -> list[mail.EmailMessage]:
    """Carry out each mail's job once, as the worker does; the new letters."""
    mail.outbox.clear()
    for job in ProcrastinateJob.objects.filter(task_name="accounts.send_mail").exclude(pk__in=_done).order_by("id"):
        _done.add(job.pk)
        tasks.send_mail(**job.args)
    return list(mail.outbox)


def token_in(letter: mail.EmailMessage) -> str:
    """The token of the letter's link."""
    found = _LINK.search(str(letter.body))
    assert found, letter.body
    return found.group(1)
