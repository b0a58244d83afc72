"""The audit trail (data.md, `audit_events`): append-only, actor and object as plain values."""

from django.db import models

from apps.common.db.append_only import TRIGGERS
from apps.common.ids import uuid7


class AuditEvent(models.Model):
    """One security-relevant act. No foreign keys: the trail outlives what it speaks of."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    at = models.DateTimeField(db_index=True)
    actor = models.CharField(max_length=64, blank=True, default="", db_index=True)
    actor_label = models.CharField(max_length=254, blank=True, default="")
    action = models.CharField(max_length=64, db_index=True)
    object_type = models.CharField(max_length=64, blank=True, default="")
    object_id = models.CharField(max_length=64, blank=True, default="", db_index=True)
    address = models.CharField(max_length=64, blank=True, default="")
    request_id = models.CharField(max_length=64, blank=True, default="")
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        db_table = "audit_events"
        ordering = ("-at", "-id")
        triggers = TRIGGERS

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S} {self.action}"
