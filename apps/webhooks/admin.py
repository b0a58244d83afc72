"""Webhooks for operators: who is told of what, and whether it arrives. No secret, and no URL's path or query, in which
people put tokens, is in any page."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin
from apps.webhooks import services
from apps.webhooks.models import Webhook, WebhookDelivery


@admin.register(Webhook)
class WebhookAdmin(ReadOnlyAdmin):
    list_filter_submit = True
    list_display: ClassVar[Any] = ("where", "owner", "events", "enabled", "failing_since", "created_at")
    list_filter: ClassVar[Any] = (
        "enabled", "disabled_reason", ("failing_since", admin.EmptyFieldListFilter), ("created_at", RangeDateTimeFilter)
    )  # fmt: skip
    list_select_related: ClassVar[Any] = ("owner",)
    search_fields: ClassVar[Any] = ("id", "owner__email")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("enable", "disable")
    fields: ClassVar[Any] = (
        "id", "where", "owner", "events", "enabled", "disabled_reason", "failing_since", "old_secret_until",
        "created_at", "updated_at",
    )  # fmt: skip
    readonly_fields: ClassVar[Any] = fields

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Who may switch: Django's permission to change the table, although no form changes it."""
        return bool(request.user.has_perm("webhooks.change_webhook"))

    @display(description="To")  # type: ignore[untyped-decorator]  # unfold is untyped
    def where(self, webhook: Webhook) -> str:
        return webhook.origin

    @action(description="Enable, and forgive its failures", permissions=["switch"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def enable(self, request: HttpRequest, queryset: QuerySet[Webhook]) -> None:
        self._switch(request, queryset, on=True)

    @action(description="Disable: it is told nothing", permissions=["switch"])  # type: ignore[untyped-decorator]  # unfold is untyped
    def disable(self, request: HttpRequest, queryset: QuerySet[Webhook]) -> None:
        self._switch(request, queryset, on=False)

    def _switch(self, request: HttpRequest, queryset: QuerySet[Webhook], *, on: bool) -> None:
        ids = list(queryset.values_list("id", flat=True))
        for webhook_id in ids:
            services.change_webhook(
                actor=Actor.of(request),
                owner_id=None,
                webhook_id=webhook_id,
                changes={"enabled": on},
                now=timezone.now(),
            )
        self.message_user(request, f"{len(ids)} webhooks {'enabled' if on else 'disabled'}.", messages.SUCCESS)


@admin.register(WebhookDelivery)
class WebhookDeliveryAdmin(ReadOnlyAdmin):
    list_filter_submit = True
    list_display: ClassVar[Any] = (
        "created_at", "event", "webhook", "status", "attempts", "response_status", "error", "next_attempt_at",
    )  # fmt: skip
    list_filter: ClassVar[Any] = ("status", "event", ("created_at", RangeDateTimeFilter))
    list_select_related: ClassVar[Any] = ("webhook",)
    search_fields: ClassVar[Any] = ("id", "event_id", "webhook__id", "webhook__owner__email")
    ordering: ClassVar[Any] = ("-created_at",)
    fields: ClassVar[Any] = (
        "id", "webhook", "event", "event_id", "body", "status", "attempts", "response_status", "error",
        "next_attempt_at", "delivered_at", "created_at",
    )  # fmt: skip
    readonly_fields: ClassVar[Any] = fields
