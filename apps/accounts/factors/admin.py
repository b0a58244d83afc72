"""Whose second factor is on, for operators; what was lost is removed here. No secret is shown."""

import uuid
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils import timezone
from unfold.decorators import action

from apps.accounts.factors import owner, passkeys
from apps.accounts.models import Passkey, SecondFactor
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


@admin.register(Passkey)
class PasskeyAdmin(ReadOnlyAdmin):
    list_display: ClassVar[Any] = ("name", "owner", "last_used_at", "created_at")
    list_select_related: ClassVar[Any] = ("factor__user",)
    search_fields: ClassVar[Any] = ("factor__user__email", "name")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("remove_passkey",)
    fields: ClassVar[Any] = ("id", "owner", "name", "sign_count", "last_used_at", "created_at", "updated_at")
    readonly_fields: ClassVar[Any] = fields

    def owner(self, passkey: Passkey) -> str:
        return passkey.factor.user.email

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Remove a passkey that was lost", permissions=["remove_passkey"]
    )
    @asks_first("Remove these passkeys? Where one is an account's only factor, the password alone opens it then.")
    def remove_passkey(self, request: HttpRequest, queryset: QuerySet[Passkey]) -> None:
        actor, now = Actor.of(request), timezone.now()
        removed = sum(passkeys.remove_lost(actor=actor, passkey_id=each, now=now) for each in _ids(queryset))
        self.message_user(request, f"{removed} passkeys removed.", messages.SUCCESS)

    def has_remove_passkey_permission(self, request: HttpRequest) -> bool:
        """A superuser's, as of factors."""
        return bool(request.user.is_superuser)


def _ids(queryset: QuerySet[Passkey]) -> list[uuid.UUID]:
    return list(queryset.values_list("pk", flat=True))
