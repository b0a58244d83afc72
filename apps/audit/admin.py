"""The audit trail for operators: to search and to read, never to change."""

from typing import Any, ClassVar

from django.contrib import admin
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import RangeDateTimeFilter

from apps.audit.models import AuditEvent


@admin.register(AuditEvent)
class AuditEventAdmin(ModelAdmin):  # type: ignore[misc]  # unfold is untyped
    list_display: ClassVar[Any] = ("at", "actor_label", "action", "object_type", "object_id", "address", "request_id")
    list_filter: ClassVar[Any] = ("action", "object_type", ("at", RangeDateTimeFilter))
    list_filter_submit = True
    search_fields: ClassVar[Any] = ("actor", "actor_label", "object_id", "address", "request_id")
    date_hierarchy = "at"
    ordering: ClassVar[Any] = ("-at", "-id")
    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: AuditEvent | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: AuditEvent | None = None) -> bool:
        return False
