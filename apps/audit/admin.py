"""The audit trail for operators: to search and to read, never to change."""

from typing import Any, ClassVar

from django.contrib import admin
from unfold.contrib.filters.admin import RangeDateTimeFilter

from apps.audit.models import AuditEvent
from apps.common.admin import ReadOnlyAdmin


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("at", "actor_label", "action", "object_type", "object_id", "address", "request_id")
    list_filter: ClassVar[Any] = ("action", "object_type", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields: ClassVar[Any] = ("actor", "actor_label", "object_id", "address", "request_id")
    date_hierarchy = "at"
    ordering: ClassVar[Any] = ("-at", "-id")
    list_per_page = 100
