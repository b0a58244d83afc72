"""`POST /api/ws/ticket`: a ticket for a browser's `WebSocket` and `<img>`, which can send no header."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts.sessions import LoginSession
from apps.common.api.fields import FlagField, UuidField
from apps.common.api.schema import describe
from apps.common.api.views import ApiView
from apps.common.errors import DomainError, invalid
from apps.common.http.responses import ok
from apps.devices.selectors import device_of
from apps.proxy import tickets


class PathPrefixField(serializers.RegexField):
    """A raw path: from `/` on, percent-encoded, without query or fragment."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(r"^/[!-\"$->@-~]*$", max_length=tickets.PREFIX_MAX, trim_whitespace=False, **kwargs)

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str) or data.endswith("\n"):
            self.fail("invalid")
        return super().to_internal_value(data)


class TicketBody(serializers.Serializer[Any]):
    device_id = UuidField()
    path_prefix = PathPrefixField(
        default="/",
        help_text="As the box sees paths; the ticket is good below it, by whole segments. Required with `reusable`.",
    )
    reusable = FlagField(
        default=False,
        help_text="For what a browser asks for again and again under the same URL (`<video>`, `EventSource`): good for"
        " any number of GET and HEAD without an upgrade, for 15 minutes.",
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["reusable"] and "path_prefix" not in self.initial_data:
            raise invalid(path_prefix=_("This field is required."))
        return attrs


class TicketAnswer(serializers.Serializer[Any]):
    ticket = serializers.CharField(help_text="For `?ticket=`; once, unless it is reusable.")
    expires_at = serializers.DateTimeField()


class TicketView(ApiView):
    @describe("Tickets", body=TicketBody, answer=TicketAnswer, status=201, errors=("NOT_FOUND", "QUOTA_EXCEEDED"))
    def post(self, request: Request) -> Response:
        """Make a ticket: one use within 60 s, for this device and path; it dies with the login that made it.

        A reusable one is good for 15 minutes; 100 of them live at once, more are refused with `QUOTA_EXCEEDED`.
        """
        body = self.body(TicketBody)
        device = device_of(self.user.pk, body["device_id"])
        login = request.auth
        try:
            ticket, expires_at = tickets.issue(
                user_id=self.user.pk,
                login=login.token_hash if isinstance(login, LoginSession) else "",
                device_id=device.pk,
                path_prefix=body["path_prefix"],
                now=timezone.now(),
                reusable=body["reusable"],
            )
        except tickets.TooMany as error:
            limit = [str(tickets.REUSABLE_MAX)]
            details = {"quota": ["reusable_tickets"], "limit": limit, "used": limit}
            raise DomainError("QUOTA_EXCEEDED", details=details, retry_after=error.seconds) from None
        return ok({"ticket": ticket, "expires_at": expires_at}, status=201)
