"""How long rows are kept (product.md, "Over time"): rules that the apps above state too, and what sweeps by them.

A sweep deletes in batches with a transaction each (`apps.common.db.append_only.purge`), so that it may run on every
host at once and be killed at any time; what it deleted stands in the audit trail.
"""

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings
from django.db.models import QuerySet

from apps.audit.models import AuditEvent
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.db.append_only import purge


@dataclass(frozen=True, slots=True)
class Rule:
    """Rows of one kind.

    Attributes:
        what: their name, for people and for the audit trail.
        setting: of `VISIONA_*`, days that they are kept.
        older: those from before a time.
    """

    what: str
    setting: str
    older: Callable[[dt.datetime], "QuerySet[Any]"]

    @property
    def days(self) -> int:
        """How long its rows are kept."""
        days: int = settings.VISIONA[self.setting]
        return days

    def rows(self, now: dt.datetime) -> "QuerySet[Any]":
        """What is kept no longer."""
        return self.older(now - dt.timedelta(days=self.days))


AUDIT: Final = Rule("audit events", "KEEP_AUDIT_DAYS", lambda before: AuditEvent.objects.filter(at__lt=before))


def sweep(rule: Rule, *, actor: Actor, now: dt.datetime) -> int:
    """Deletes for good what the rule keeps no longer. Returns how many rows."""
    deleted = purge(rule.rows(now))
    if deleted:
        detail = {"what": rule.what, "rows": deleted, "days": rule.days}
        record(actor=actor, action="retention.purge", object_type="table", detail=detail, now=now)
    return deleted
