"""Writing the audit trail."""

import datetime as dt
from collections.abc import Mapping
from typing import Any

from apps.audit.models import AuditEvent
from apps.common.actor import Actor


def record(
    *,
    actor: Actor,
    action: str,
    object_type: str = "",
    object_id: str = "",
    detail: Mapping[str, Any] | None = None,
    now: dt.datetime,
) -> None:
    """One audit row, in the caller's transaction: it stands if and only if the act does.

    Args:
        action: what was done, `noun.verb`, e.g. `user.login`.
        detail: plain JSON values; never a secret.
        now: when, aware.
    """
    AuditEvent.objects.create(
        at=now,
        actor=actor.user_id,
        actor_label=actor.label[:254],
        action=action,
        object_type=object_type,
        object_id=str(object_id),
        address=actor.address[:64],
        request_id=actor.request_id[:64],
        detail=dict(detail or {}),
    )
