"""Users for operators: add and find them, disable and enable them, send a link for a new password, end an account.

No password is typed here: who is added gets a link, and so does who forgot.
"""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.forms import ModelForm
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from unfold.admin import ModelAdmin
from unfold.decorators import action, display

from apps.accounts import credentials, leaving, mails, selectors, services
from apps.accounts.factors.admin import PasskeyAdmin, SecondFactorAdmin
from apps.accounts.models import User, UserIdentity
from apps.accounts.oidc import owner
from apps.accounts.oidc.config import config
from apps.accounts.oidc.provider import provider
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin, asks_first
from apps.common.errors import DomainError

__all__ = ["PasskeyAdmin", "SecondFactorAdmin"]  # they register themselves

admin.site.unregister(Group)


class NewUserForm(forms.ModelForm):  # type: ignore[type-arg]  # the stubs alone know it as generic
    """Who is added: the e-mail is their name, in any case of letters."""

    class Meta:
        model = User
        fields = ("email", "name", "locale", "is_staff")

    def clean_email(self) -> str:
        email: str = self.cleaned_data["email"]
        if selectors.by_email(email) is not None:
            raise forms.ValidationError(_("A user with this e-mail is here already."))
        return email


@admin.register(UserIdentity)
class UserIdentityAdmin(ReadOnlyAdmin):
    """Who users are at their provider. Where its URL has changed, all of one issuer are moved to the present one."""

    list_display: ClassVar[Any] = ("user", "issuer", "subject", "email", "name", "refreshed_at", "created_at")
    list_filter: ClassVar[Any] = ("issuer",)
    list_select_related: ClassVar[Any] = ("user",)
    search_fields: ClassVar[Any] = ("user__email", "email", "subject", "issuer")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("move_issuer",)
    fields: ClassVar[Any] = (
        "id", "user", "issuer", "subject", "email", "name", "refreshed_at", "not_before", "created_at", "updated_at",
    )  # fmt: skip
    readonly_fields: ClassVar[Any] = fields

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Move everybody of this issuer to the one that is configured now", permissions=["move_issuer"]
    )
    @asks_first(
        "Move everybody of these issuers, and not these alone, to the one that is configured now? Who came from "
        "which is forgotten: there is no way back."
    )
    def move_issuer(self, request: HttpRequest, queryset: QuerySet[UserIdentity]) -> None:
        known, moved = config(), 0
        try:
            if known is None:
                raise DomainError("NOT_FOUND", _("No identity provider is configured."))
            new = provider(known).known().issuer
            for old in sorted({*queryset.values_list("issuer", flat=True)} - {new}):
                moved += owner.move_issuer(actor=Actor.of(request), old=old, new=new, now=timezone.now())
        except DomainError as error:
            self.message_user(request, error.message, messages.ERROR)
        else:
            self.message_user(request, f"{moved} identities are of {new} now.", messages.SUCCESS)

    def has_move_issuer_permission(self, request: HttpRequest) -> bool:
        """A superuser's: it decides who may log in."""
        return bool(request.user.is_superuser)


@admin.register(User)
class UserAdmin(ModelAdmin):  # type: ignore[misc]  # unfold is untyped
    list_display: ClassVar[Any] = ("email", "name", "state", "is_staff", "last_login", "created_at")
    list_filter: ClassVar[Any] = ("is_active", "is_staff", "is_superuser")
    search_fields: ClassVar[Any] = ("email", "name", "id")
    ordering: ClassVar[Any] = ("-created_at",)
    actions: ClassVar[Any] = ("disable", "enable", "send_reset", "end_account")
    readonly_fields: ClassVar[Any] = (
        "id", "email", "email_verified_at", "is_active", "oidc_issuer", "last_login", "created_at", "updated_at",
    )  # fmt: skip
    fields: ClassVar[Any] = (*readonly_fields, "name", "locale", "is_staff", "is_superuser", "user_permissions")
    filter_horizontal: ClassVar[Any] = ("user_permissions",)

    def has_delete_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        return False

    def get_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        return self.fields if obj is not None else NewUserForm.Meta.fields

    def get_form(self, request: HttpRequest, obj: User | None = None, change: bool = False, **kwargs: Any) -> Any:
        return super().get_form(request, obj, change, **({"form": NewUserForm} if obj is None else {}), **kwargs)

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> Any:
        """Only a superuser gives rights away."""
        always = self.readonly_fields if obj is not None else ()
        if request.user.is_superuser:
            return always
        return (*always, "is_staff", "is_superuser", "user_permissions") if obj is not None else ("is_staff",)

    def save_model(self, request: HttpRequest, obj: User, form: "ModelForm[User]", change: bool) -> None:
        """Saved with its audit row: rights are given here. Who is new gets a link to set a password by."""
        with transaction.atomic():
            if not change:
                obj.set_unusable_password()
            super().save_model(request, obj, form, change)
            if not change and mails.possible():
                mails.defer("reset", obj, actor=Actor.of(request))
            record(
                actor=Actor.of(request),
                action="user.changed_by_staff" if change else "user.added_by_staff",
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
    @asks_first("Disable these accounts? Their logins and tunnels end at once.")
    def disable(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self._set_active(request, queryset.exclude(pk=Actor.of(request).user_id), active=False)

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Enable"
    )
    def enable(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        self._set_active(request, queryset, active=True)

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Send a link to set a new password"
    )
    def send_reset(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        actor, now = Actor.of(request), timezone.now()
        try:
            for user_id in queryset.values_list("pk", flat=True):
                credentials.send_reset(actor=actor, user_id=user_id, now=now)
        except DomainError as error:
            self.message_user(request, error.message, messages.ERROR)
        else:
            self.message_user(request, "Links are sent to those who may have a password.", messages.SUCCESS)

    @action(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="End the account for good: unpairs all, deletes data and bytes", permissions=["end_account"]
    )
    @asks_first(
        "End these accounts for good? Their boxes are unpaired, their data and models deleted. There is no way back."
    )
    def end_account(self, request: HttpRequest, queryset: QuerySet[User]) -> None:
        actor, now = Actor.of(request), timezone.now()
        others = queryset.exclude(pk=Actor.of(request).user_id).values_list("pk", flat=True)
        ended = sum(leaving.end_account(actor=actor, user_id=user_id, now=now) for user_id in others)
        self.message_user(request, f"{ended} accounts ended; what they hold is being deleted.", messages.SUCCESS)

    def has_end_account_permission(self, request: HttpRequest) -> bool:
        """A superuser's: there is no way back."""
        return bool(request.user.is_superuser)

    def _set_active(self, request: HttpRequest, users: QuerySet[User], *, active: bool) -> None:
        actor, now = Actor.of(request), timezone.now()
        changed = sum(
            services.set_active(actor=actor, user_id=user_id, active=active, now=now)
            for user_id in users.values_list("pk", flat=True)
        )
        word = "enabled" if active else "disabled"
        self.message_user(request, f"{changed} users {word}.", messages.SUCCESS)
