"""Whose second factor is on, for operators; one that was lost is removed here. No secret is shown."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.decorators import action

from apps.accounts.factors import owner
from apps.accounts.models import SecondFactor
from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin, asks_first


@admin.register(SecondFactor)
class SecondFactorAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("user", "confirmed_at", "failures", "locked_until", "created_at")
    list_select_related: ClassVar[Any] = ("user",)
    search_fields: ClassVar[Any] = ("user__email",)
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("remove_factor",)
    fields: ClassVar[Any] = ("id", "user", "confirmed_at", "failures", "locked_until", "created_at", "updated_at")
    readonly_fields: ClassVar[Any] = fields

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Remove a factor that was lost", permissions=["remove_factor"]
    )
    @asks_first("Remove these second factors? The password alone opens the accounts then: be sure who asks for it.")
    def remove_factor(self, request: HttpRequest, queryset: QuerySet[SecondFactor]) -> None:
        actor, now = Actor.of(request), timezone.now()
        removed = sum(
            owner.remove(actor=actor, user_id=user_id, now=now)
            for user_id in queryset.values_list("user_id", flat=True)
        )
        self.message_user(request, f"{removed} second factors removed.", messages.SUCCESS)

    def has_remove_factor_permission(self, request: HttpRequest) -> bool:
        """A superuser's: it takes away half of what protects an account."""
        return bool(request.user.is_superuser)
