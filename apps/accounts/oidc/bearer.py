"""A JWT of the provider in the place of a login token, on the whole API and on both proxy lanes."""

import datetime as dt

from django.utils.translation import gettext_lazy as _

from apps.accounts import sessions
from apps.accounts.models import User
from apps.accounts.oidc import claims
from apps.accounts.oidc.config import config
from apps.accounts.oidc.linking import holder_of, user_of
from apps.accounts.oidc.verify import verified
from apps.accounts.sessions import LoginSession
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tunnel.contract import hash_token


def login(token: str, *, actor: Actor, now: dt.datetime) -> tuple[User, LoginSession]:
    """The user of a JWT, made at first sight, and the session that stands for it until its end.

    One query, one call to Redis, and no network but for keys that are not known yet. Raises DomainError
    UNAUTHENTICATED, TOKEN_EXPIRED, TOKEN_REVOKED (logged out here); OVERLOADED while the provider's keys are unknown
    and cannot be fetched; the errors of Redis and PostgreSQL.
    """
    known = config()
    if known is None or not claims.is_jwt(token):
        raise DomainError("UNAUTHENTICATED")
    try:
        found = verified(token, known, now=now, at_once=False)
        claims.check_bearer(found, known)
    except claims.TokenError as error:
        raise DomainError("TOKEN_EXPIRED" if error.expired else "UNAUTHENTICATED") from error
    identity = claims.identity(found, known)
    user = _user(identity, actor, now)
    session = sessions.adopt(
        token_hash=hash_token(token),
        user_id=user.pk,
        holder=holder_of(identity.issuer, identity.subject),
        issued_at=identity.issued_at,
        expires_at=identity.expires_at + claims.LEEWAY_SECONDS,
        now=now,
    )
    if session is None:
        raise DomainError("TOKEN_REVOKED")
    return user, session


def _user(identity: claims.Identity, actor: Actor, now: dt.datetime) -> User:
    """As `user_of`; a refusal is one of the credential, for this may be any route."""
    try:
        user = user_of(identity, actor=actor, now=now)
    except DomainError as error:
        if error.code == "EMAIL_TAKEN":
            raise DomainError(
                "UNAUTHENTICATED", _("An account with this e-mail is here already, and is not linked to this login.")
            ) from error
        if error.code == "FORBIDDEN":
            raise DomainError("UNAUTHENTICATED", error.message) from error
        raise
    if not user.is_active:
        raise DomainError("UNAUTHENTICATED")
    return user
