"""Confirming an e-mail, changing a password, and resetting one that is forgotten."""

from typing import cast

from django.conf import settings
from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import credentials
from apps.accounts.api.serializers import (
    MailTokenBody,
    NewPasswordBody,
    PasswordBody,
    ResetBody,
    UserSerializer,
)
from apps.accounts.sessions import LoginSession
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PublicApiView
from apps.common.http.responses import ok


class VerifyEmailView(PublicApiView):
    @describe(
        "Auth", body=MailTokenBody, answer=UserSerializer, errors=("INVALID_CREDENTIALS", "EMAIL_TAKEN"), public=True
    )
    def post(self, request: Request) -> Response:
        """Confirm an e-mail by the token from the link. It is good once; a bad one is 401, with `details.token`."""
        user = credentials.confirm_email(
            actor=self.actor,
            now=timezone.now(),
            seconds=settings.VISIONA["EMAIL_VERIFY_SECONDS"],
            **self.body(MailTokenBody),
        )
        return ok(UserSerializer(user).data)


class ResendView(ApiView):
    @describe("Auth", errors=("INVALID_STATE", "NOT_IMPLEMENTED"))
    def post(self, request: Request) -> Response:
        """Have the link that confirms the e-mail sent once more (five a minute at most)."""
        credentials.ask_verification(actor=self.actor, user=self.user, now=timezone.now())
        return ok(None)


class PasswordView(ApiView):
    @describe("Auth", body=PasswordBody, errors=("INVALID_CREDENTIALS", "INVALID_STATE"))
    def post(self, request: Request) -> Response:
        """Change the password. Every other login ends; the one that asks goes on."""
        credentials.change_password(
            actor=self.actor,
            user=self.user,
            session=cast("LoginSession | None", request.auth),
            now=timezone.now(),
            **self.body(PasswordBody),
        )
        return ok(None)


class ResetView(PublicApiView):
    @describe("Auth", body=ResetBody, errors=("NOT_IMPLEMENTED",), public=True)
    def post(self, request: Request) -> Response:
        """Have a link that sets a new password sent. The answer and its time are the same if there is no account."""
        credentials.ask_reset(actor=self.actor, now=timezone.now(), **self.body(ResetBody))
        return ok(None)


class ConfirmResetView(PublicApiView):
    @describe("Auth", body=NewPasswordBody, errors=("INVALID_CREDENTIALS",), public=True)
    def post(self, request: Request) -> Response:
        """Set a new password by the token from the link. Every login of the account ends; log in with the new one."""
        body = self.body(NewPasswordBody)
        credentials.confirm_reset(
            actor=self.actor,
            token=body["token"],
            new=body["password"],
            now=timezone.now(),
            seconds=settings.VISIONA["EMAIL_RESET_SECONDS"],
        )
        return ok(None)
