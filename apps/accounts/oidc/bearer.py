"""A JWT of the provider in the place of a login token, on the whole API and on both proxy lanes."""

import datetime as dt
from dataclasses import dataclass

from django.utils.translation import gettext_lazy as _

from apps.accounts import sessions
from apps.accounts.models import User
from apps.accounts.oidc import claims
from apps.accounts.oidc.config import config
from apps.accounts.oidc.linking import ended_at, find, holder_of, newcomer, refreshed
from apps.accounts.oidc.verify import verified
from apps.accounts.sessions import LoginSession
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tunnel.contract import hash_token


def login(token: str, *, actor: Actor, now: dt.datetime) -> tuple[User, LoginSession]:
    """The user of a JWT, made at first sight, and the session that stands for it until its end.

    Nothing is written for a token that is refused.

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
    name = Name(hash_token(token), holder_of(identity.issuer, identity.subject))
    row = find(identity)
    user = row.user if row is not None else _newcomer(identity, name, actor, now)
    if not user.is_active:
        raise DomainError("UNAUTHENTICATED")
    revoked = row is not None and row.not_before is not None and identity.issued_at <= row.not_before.timestamp()
    session = None if revoked else _adopted(identity, name, user, now)
    if session is None:
        raise DomainError("TOKEN_REVOKED")
    if row is not None:  # and not before: a token that was logged out says nothing any more
        user = refreshed(row, identity, actor=actor, now=now, always=False)
    return user, session


@dataclass(frozen=True, slots=True)
class Name:
    """What a JWT is called here: by its hash, and by a hash of whose it is."""

    token_hash: str
    holder: str


def _adopted(identity: claims.Identity, name: Name, user: User, now: dt.datetime) -> LoginSession | None:
    return sessions.adopt(
        token_hash=name.token_hash,
        user_id=user.pk,
        holder=name.holder,
        issued_at=identity.issued_at,
        expires_at=identity.expires_at + claims.LEEWAY_SECONDS,
        now=now,
    )


def _newcomer(identity: claims.Identity, name: Name, actor: Actor, now: dt.datetime) -> User:
    """The user of a subject that is not known, linked or made; a refusal is one of the credential, on any route.

    Whose account was ended comes back by logging in anew at the provider (`auth_time`), not because a page of theirs
    goes on sending tokens.
    """
    end = ended_at(identity)
    gone = end is not None and max(identity.authenticated_at, 0.0) <= end.timestamp()
    if gone or sessions.is_ended(name.token_hash, name.holder, issued_at=identity.issued_at):
        raise DomainError("TOKEN_REVOKED")
    if identity.machine:
        raise DomainError("UNAUTHENTICATED", _("This token speaks of no person, and no account is linked to it."))
    try:
        return newcomer(identity, actor=actor, now=now)
    except DomainError as error:
        if error.code == "EMAIL_TAKEN":
            raise DomainError(
                "UNAUTHENTICATED", _("An account with this e-mail is here already, and is not linked to this login.")
            ) from error
        if error.code in ("FORBIDDEN", "ACCOUNT_DISABLED"):
            raise DomainError("UNAUTHENTICATED", error.message if error.code == "FORBIDDEN" else "") from error
        raise
