"""Reading the audit trail."""

import datetime as dt
import uuid

from django.db.models import Q, QuerySet

from apps.audit.models import AuditEvent


def events_of(
    user_id: uuid.UUID, *, action: str = "", since: dt.datetime | None = None, until: dt.datetime | None = None
) -> QuerySet[AuditEvent]:
    """What a user did, and what was done to their account by others (failed logins, an operator's acts).

    Args:
        action: this one alone, or with a last `.` all that begin so (`user.`); empty: all.
        since: from then on, inclusive.
        until: before then.
    """
    own = str(user_id)
    rows = AuditEvent.objects.filter(Q(actor=own) | Q(object_type="user", object_id=own))
    if action.endswith("."):
        rows = rows.filter(action__startswith=action)
    elif action:
        rows = rows.filter(action=action)
    if since is not None:
        rows = rows.filter(at__gte=since)
    if until is not None:
        rows = rows.filter(at__lt=until)
    return rows
