"""Pairing and session tokens for operators: to find and to revoke. Neither a token nor its hash is in any page."""

from __future__ import annotations

import uuid
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin import helpers
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponseBase
from django.utils import timezone
from unfold.admin import ModelAdmin, checkbox
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.decorators import action, display

from apps.common.actor import Actor
from apps.common.admin import ReadOnlyAdmin, asks_first
from apps.pairing import services
from apps.pairing.models import PairingToken, SessionToken


class TokenAdmin(ReadOnlyAdmin):
    """The list tells all there is to tell; its checkboxes go by the public id, since the primary key is the hash.

    There is no page of one token: Django's own puts the primary key into its links.
    """

    list_display_links = None
    actions: ClassVar[Any] = ("revoke",)
    ordering: ClassVar[Any] = ("-created_at",)

    def has_revoke_permission(self, request: HttpRequest) -> bool:
        """Who may revoke: Django's permission to change the table, although no form changes it."""
        name = self.model._meta.model_name  # noqa: SLF001 - Django's documented model API
        return bool(request.user.has_perm(f"pairing.change_{name}"))

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponseBase:
        raise Http404

    def history_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> HttpResponseBase:
        raise Http404

    @display(description=ModelAdmin.action_checkbox.short_description)  # type: ignore[untyped-decorator]  # unfold is untyped
    def action_checkbox(self, obj: Any) -> str:
        return str(checkbox.render(helpers.ACTION_CHECKBOX_NAME, str(obj.id)))

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], **location: Any
    ) -> HttpResponseBase | None:
        """Django looks for the checked rows by primary key."""
        chosen = []
        for text in request.POST.getlist(helpers.ACTION_CHECKBOX_NAME):
            try:
                chosen.append(uuid.UUID(text))
            except ValueError:
                raise PermissionDenied from None
        form = request.POST.copy()
        form.setlist(
            helpers.ACTION_CHECKBOX_NAME, list(queryset.filter(id__in=chosen).values_list("token_hash", flat=True))
        )
        request.POST = form  # type: ignore[assignment]  # Django itself puts plain QueryDicts there
        answer: HttpResponseBase | None = super().response_action(request, queryset, **location)
        return answer


@admin.register(PairingToken)
class PairingTokenAdmin(TokenAdmin):
    list_display: ClassVar[Any] = (
        "label", "state", "owner", "device", "created_at", "expires_at", "paired_at", "last_used_at",
    )  # fmt: skip
    list_filter: ClassVar[Any] = ("status", ("created_at", RangeDateTimeFilter))
    list_filter_submit = True
    list_select_related: ClassVar[Any] = ("owner", "device")
    search_fields: ClassVar[Any] = ("name", "owner__email", "device__name", "device__serial", "id")

    @display(description="Name")  # type: ignore[untyped-decorator]  # unfold is untyped
    def label(self, token: PairingToken) -> str:
        return token.name or f"…{str(token.id)[-8:]}"

    @display(  # type: ignore[untyped-decorator]  # unfold is untyped
        description="Status",
        label={"issued": "info", "expired": "warning", "paired": "success", "consumed": "success", "revoked": "danger"},
    )
    def state(self, token: PairingToken) -> str:
        expired = token.status == "issued" and token.expires_at <= timezone.now()
        return "expired" if expired else str(token.status)

    @action(description="Revoke: closes the tunnel that it holds", permissions=["revoke"])  # type: ignore[untyped-decorator]  # unfold is untyped
    @asks_first("Revoke these tokens? The tunnels that they hold close, and those boxes have to be paired again.")
    def revoke(self, request: HttpRequest, queryset: QuerySet[PairingToken]) -> None:
        ids = list(queryset.exclude(status="revoked").values_list("id", flat=True))
        for token_id in ids:
            services.revoke_token(actor=Actor.of(request), token_id=token_id, owner_id=None, now=timezone.now())
        self.message_user(request, f"{len(ids)} pairing tokens revoked.", messages.SUCCESS)


@admin.register(SessionToken)
class SessionTokenAdmin(TokenAdmin):
    list_display: ClassVar[Any] = (
        "device", "owner", "state", "issued_at", "last_used_at", "expires_at", "revoked_at", "revoke_reason",
    )  # fmt: skip
    list_filter: ClassVar[Any] = (("revoked_at", admin.EmptyFieldListFilter), "revoke_reason")
    list_select_related: ClassVar[Any] = ("device__owner",)
    search_fields: ClassVar[Any] = ("device__name", "device__serial", "device__owner__email", "device__id", "id")

    @display(description="Owner")  # type: ignore[untyped-decorator]  # unfold is untyped
    def owner(self, token: SessionToken) -> str:
        return str(token.device.owner)

    @display(description="State", label={"good": "success", "expired": "warning", "revoked": "danger"})  # type: ignore[untyped-decorator]  # unfold is untyped
    def state(self, token: SessionToken) -> str:
        if token.revoked_at is not None:
            return "revoked"
        return "expired" if token.expires_at <= timezone.now() else "good"

    @action(description="Revoke: closes its device's tunnel", permissions=["revoke"])  # type: ignore[untyped-decorator]  # unfold is untyped
    @asks_first("Revoke these tokens? Their devices' tunnels close, and those boxes have to be paired again.")
    def revoke(self, request: HttpRequest, queryset: QuerySet[SessionToken]) -> None:
        ids = list(queryset.filter(revoked_at=None).values_list("id", flat=True))
        for token_id in ids:
            services.revoke_session_token(actor=Actor.of(request), token_id=token_id, now=timezone.now())
        self.message_user(request, f"{len(ids)} session tokens revoked.", messages.SUCCESS)
