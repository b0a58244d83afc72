"""The credential of the API: `Authorization: Bearer` with a `vAu_…` or, with OIDC, a JWT; in no query and no cookie."""

from typing import Any

from django.utils import timezone
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.request import Request

from apps.accounts import demo, selectors, sessions
from apps.accounts.models import User
from apps.accounts.oidc import bearer
from apps.accounts.sessions import LoginSession
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tunnel.contract import LOGIN_PREFIX, token_prefix


class LoginTokenAuthentication(BaseAuthentication):
    """`request.user` is the User, `request.auth` its LoginSession (None for the static development user).

    Raises DomainError UNAUTHENTICATED for a credential that is unknown, expired, logged out or of a disabled user;
    TOKEN_EXPIRED and TOKEN_REVOKED for JWTs.
    """

    def authenticate(self, request: Request) -> tuple[User, LoginSession | None] | None:
        scope = getattr((request.parser_context or {}).get("view"), "throttle_scope", "")
        plain = request._request  # noqa: SLF001 - `request.user` is what is being found here
        stranger = Actor("", "", plain.client_address, plain.request_id)  # type: ignore[attr-defined]  # our middleware's
        found = authenticate_header(get_authorization_header(request).decode("latin-1"), stranger, scope)
        if found is not None and found[1] is not None and not found[1].holder:
            request.counted = bool(scope)  # type: ignore[attr-defined]  # read by `throttle.count_user`
        return found

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="visiona"'


def authenticate_header(
    header: str, stranger: Actor, throttle_scope: str = ""
) -> tuple[User, LoginSession | None] | None:
    """The user of an `Authorization` header; None if it is empty and nobody stands for strangers. One query.

    With a `throttle_scope` the call of a login of ours is counted in it, in the same call to Redis. Raises
    RATE_LIMITED, and for a JWT what `bearer.login` does; `stranger` acts where that makes a user at first sight.
    """
    scheme, _, token = header.strip().partition(" ")
    token = token.strip()
    if demo.static_user_id() and (not header.strip() or (scheme.lower() == "bearer" and token == demo.STATIC_TOKEN)):
        user = demo.ensure_demo_user()
        if not user.is_active:
            raise DomainError("UNAUTHENTICATED")
        return user, None
    if not header.strip():
        return None
    if scheme.lower() != "bearer":
        raise DomainError("UNAUTHENTICATED")
    now = timezone.now()
    if token_prefix(token) != LOGIN_PREFIX:
        return bearer.login(token, actor=stranger, now=now)
    session = (
        sessions.use_counted(token, scope=throttle_scope, now=now) if throttle_scope else sessions.use(token, now=now)
    )
    owner: Any = selectors.active_user(session.user_id) if session is not None else None
    if owner is None:
        raise DomainError("UNAUTHENTICATED")
    return owner, session
