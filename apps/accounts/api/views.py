"""The account routes: register, log in and out, oneself, one's sessions."""

import datetime as dt
from typing import Any, cast

from django.conf import settings
from django.utils import timezone
from django.utils.translation import gettext as _
from rest_framework.request import Request
from rest_framework.response import Response

from apps.accounts import credentials, leaving, services, sessions
from apps.accounts.api.serializers import (
    LeaveBody,
    LoginAnswer,
    LoginBody,
    MeSerializer,
    NewAccountBody,
    PasskeyOptionsAnswer,
    PasswordAloneBody,
    ProfileBody,
    RegisterAnswer,
    SessionSerializer,
    UserSerializer,
)
from apps.accounts.factors.webauthn import Answer, Purpose
from apps.accounts.models import User
from apps.accounts.sessions import LoginSession
from apps.common.api.pagination import paginate_list
from apps.common.api.schema import describe
from apps.common.api.views import ApiView, PageQuery, PublicApiView, id_or_404
from apps.common.errors import DomainError, not_found
from apps.common.http.responses import ok


def login_answer(user: User, token: str, expires_at: dt.datetime) -> dict[str, Any]:
    """What every way of logging in answers."""
    return {
        "user": UserSerializer(user).data,
        "access_token": token,
        "token_type": "Bearer",
        "expires_at": expires_at,
        "idle_timeout": sessions.idle_seconds(),
    }


def proved(values: dict[str, Any], purpose: Purpose) -> dict[str, Any]:
    """A body's `code` and `passkey` as the `proof` that services take."""
    code, passkey = values.pop("code", ""), values.pop("passkey", None)
    return {**values, "proof": code if passkey is None else Answer(purpose, passkey)}


class RegisterView(PublicApiView):
    @describe(
        "Auth", body=NewAccountBody, answer=RegisterAnswer, status=201, errors=("EMAIL_TAKEN", "FORBIDDEN"), public=True
    )
    def post(self, request: Request) -> Response:
        """Make an account. The e-mail is the name, in any case of letters."""
        if settings.VISIONA["REGISTRATION"] != "open":
            raise DomainError("FORBIDDEN", _("Registration is closed here; ask an administrator."))
        user = services.register(actor=self.actor, now=timezone.now(), **self.body(NewAccountBody))
        return ok({"user": UserSerializer(user).data}, status=201)


class LoginView(PublicApiView):
    @describe(
        "Auth",
        body=LoginBody,
        answer=LoginAnswer,
        errors=("INVALID_CREDENTIALS", "SECOND_FACTOR_REQUIRED", "ACCOUNT_DISABLED"),
        public=True,
    )
    def post(self, request: Request) -> Response:
        """Log in. The token goes into `Authorization: Bearer` of all other calls; it is shown once."""
        agent = request.headers.get("User-Agent", "")
        given = proved(self.body(LoginBody), "login")
        user, token, expires_at = services.login(actor=self.actor, agent=agent, now=timezone.now(), **given)
        return ok(login_answer(user, token, expires_at))


class LoginPasskeyView(PublicApiView):
    @describe(
        "Auth",
        body=PasswordAloneBody,
        answer=PasskeyOptionsAnswer,
        errors=("INVALID_CREDENTIALS", "INVALID_STATE", "ACCOUNT_DISABLED"),
        public=True,
    )
    def post(self, request: Request) -> Response:
        """What a passkey has to sign for a login: send that as `passkey` with the next `POST /api/auth/login`."""
        asked = services.passkey_options(actor=self.actor, now=timezone.now(), **self.body(PasswordAloneBody))
        return ok({"public_key": asked})


class LogoutView(ApiView):
    @describe("Auth")
    def post(self, request: Request) -> Response:
        """End this login."""
        services.logout(
            actor=self.actor, user=self.user, session=cast("LoginSession | None", request.auth), now=timezone.now()
        )
        return ok(None)


class LogoutAllView(ApiView):
    @describe("Auth")
    def post(self, request: Request) -> Response:
        """End every login of this user."""
        services.logout_all(actor=self.actor, user=self.user, now=timezone.now())
        return ok(None)


class MeView(ApiView):
    @describe("Auth", answer=MeSerializer)
    def get(self, request: Request) -> Response:
        """Who am I, and how much of each thing I have and may have."""
        return ok(MeSerializer(self.user).data)

    @describe(
        "Auth",
        body=ProfileBody,
        answer=UserSerializer,
        errors=("INVALID_CREDENTIALS", "INVALID_STATE", "NOT_IMPLEMENTED"),
    )
    def patch(self, request: Request) -> Response:
        """Change the name, the locale; with the password the e-mail, which changes by the link that is sent to it."""
        changes = self.body(ProfileBody)
        email, password = changes.pop("email", None), changes.pop("password", "")
        now = timezone.now()
        if email is not None and email != self.user.email:
            credentials.ask_email_change(actor=self.actor, user=self.user, email=email, password=password, now=now)
        user = services.update_profile(actor=self.actor, user=self.user, changes=changes, now=now)
        return ok(UserSerializer(user).data)

    @describe("Auth", body=LeaveBody, errors=("INVALID_CREDENTIALS", "FORBIDDEN"))
    def delete(self, request: Request) -> Response:
        """End this account: devices are unpaired, data and bytes deleted, the trail pseudonymised. No way back."""
        body = self.body(LeaveBody)
        leaving.leave(
            actor=self.actor,
            user=self.user,
            session=cast("LoginSession | None", request.auth),
            password=body.get("password", ""),
            email=body.get("email", ""),
            now=timezone.now(),
        )
        return ok(None)


class SessionListView(ApiView):
    query_classes = {"GET": PageQuery}  # noqa: RUF012 - declared ClassVar in ApiView

    @describe("Auth", answer=SessionSerializer, many=True)
    def get(self, request: Request) -> Response:
        """Own login sessions."""
        rows = sessions.list_of(self.user.pk, now=timezone.now())
        found, meta = paginate_list(
            request,
            rows,
            limit=self.query["limit"],
            ordering=self.query["ordering"],
            cursor=self.query.get("cursor"),
        )
        return ok(SessionSerializer(found, many=True, context={"auth": request.auth}).data, meta=meta)


class SessionView(ApiView):
    target: LoginSession

    def load(self, request: Request, **kwargs: str) -> LoginSession:
        wanted = id_or_404(kwargs["id"])
        for session in sessions.list_of(self.user.pk, now=timezone.now()):
            if session.id == wanted:
                return session
        raise not_found()

    @describe("Auth")
    def delete(self, request: Request, id: str) -> Response:  # noqa: A002 - the path parameter's public name
        """End one of the own login sessions."""
        services.revoke_session(actor=self.actor, user=self.user, session=self.target, now=timezone.now())
        return ok(None)
