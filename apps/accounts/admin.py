"""Users for operators: find them, disable and enable them. Passwords are set by command or by reset, not shown here."""

from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from apps.accounts import services
from apps.accounts.models import User
from apps.audit.services import record
from apps.common.actor import Actor

admin.site.unregister(Group)


@admin.register(User)
class UserAdmin(ModelAdmin):  # type: ignore[misc]  # unfold is untyped
    list_display: ClassVar[Any] = ("email", "name", "state", "is_staff", "last_login", "created_at")
    list_filter: ClassVar[Any] = ("is_active", "is_staff", "is_superuser")
    search_fields: ClassVar[Any] = ("email", "name", "id")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("disable", "enable")
    readonly_fields: ClassVar[Any] = (
        "id", "email", "email_verified_at", "is_active", "oidc_issuer", "last_login", "created_at", "updated_at",
    )  # fmt: skip
    fields: ClassVar[Any] = (*readonly_fields, "name", "locale", "is_staff", "is_superuser", "user_permissions")
    filter_horizontal: ClassVar[Any] = ("user_permissions",)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Only a superuser gives rights away."""
        if request.user.is_superuser:
            return self.readonly_fields
        return (*self.readonly_fields, "is_staff", "is_superuser", "user_permissions")

    def save_model(self, request: HttpRequest, obj: User, form: "ModelForm[User]", change: bool) -> None:
        """Saved with its audit row: rights are given here."""
        with transaction.atomic():
            super().save_model(request, obj, form, change)
            record(
                actor=Actor.of(request),
                action="user.changed_by_staff",
                object_type="user",
                object_id=str(obj.pk),
                detail={"fields": sorted(form.changed_data)},
                now=timezone.now(),
            )

    @display(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="State", label={"active": "success", "disabled": "danger"}
    )
    def state(self, user: User) -> str:
        return "active" if user.is_active else "disabled"

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Disable: ends their logins and tunnels at once"
    )
    def disable(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self._set_active(request, queryset.exclude(pk=Actor.of(request).user_id), active=False)

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Enable"
    )
    def enable(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self._set_active(request, queryset, active=True)

    def _set_active(self, request: HttpRequest, users: QuerySet[User], *, active: bool) -> None:
        actor, now = Actor.of(request), timezone.now()
        changed = sum(
            services.set_active(actor=actor, user_id=user_id, active=active, now=now)
            for user_id in users.values_list("pk", flat=True)
        )
        word = "enabled" if active else "disabled"
        self.message_user(request, f"{changed} users {word}.", messages.SUCCESS)
