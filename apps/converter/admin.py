"""Conversions for operators: to find, to read, and to cancel what hangs."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin, asks_first
from apps.converter import services
from apps.converter.models import OPEN, Conversion


@admin.register(Conversion)
class ConversionAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("created_at", "model", "chip", "owner", "state", "attempts", "error", "finished_at")
    list_filter: ClassVar[Any] = ("status", "chip", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    list_select_related: ClassVar[Any] = ("model", "owner")
    search_fields: ClassVar[Any] = ("id", "model__name", "model__id", "owner__email", "chip")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("cancel",)
    fields: ClassVar[Any] = (
        "id", "model", "chip", "owner", "status", "bytes_done", "error", "result", "attempts", "created_at",
        "updated_at", "finished_at",
    )  # fmt: skip
    readonly_fields: ClassVar[Any] = fields

    def has_cancel_permission(self, request: HttpRequest) -> bool:
        """Who may cancel: Django's permission to change the table, although no form changes it."""
        return bool(request.user.has_perm("converter.change_conversion"))

    @display(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Status",
        label={"queued": "info", "running": "info", "done": "success", "failed": "danger", "cancelled": "warning"},
    )
    def state(self, conversion: Conversion) -> str:
        return str(conversion.status)

    @action(description="Cancel", permissions=["cancel"])  # type: ignore[untyped-decorator]  # unfold is untyped
    @asks_first("Cancel these conversions? What was done of them is lost.")
    def cancel(self, request: HttpRequest, queryset: QuerySet[Conversion]) -> None:
        ids = list(queryset.filter(status__in=OPEN).values_list("id", flat=True))
        for conversion_id in ids:
            services.cancel_conversion(
                actor=Actor.of(request), owner_id=None, conversion_id=conversion_id, now=timezone.now()
            )
        self.message_user(request, f"{len(ids)} conversions cancelled.", messages.SUCCESS)
