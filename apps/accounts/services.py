"""What can be done with accounts and logins."""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final

from django.contrib.auth import hashers
from django.db import IntegrityError, transaction
from procrastinate.contrib.django import app as jobs

from apps.accounts import demo, mails, selectors, sessions
from apps.accounts.attempts import attempt, audited
from apps.accounts.factors import checking, webauthn
from apps.accounts.factors.checking import Proof
from apps.accounts.models import User
from apps.accounts.oidc.linking import holders_of
from apps.accounts.sessions import LoginSession
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.emails import email_key
from apps.common.errors import DomainError, not_found
from apps.common.limits import throttle
from tunnel.contract import client_network

Login = tuple[User, str, dt.datetime]
"""The user, the token to show once, and when it ends in any case."""
_NO_FAILURE: Final = frozenset({"ACCOUNT_DISABLED", "SECOND_FACTOR_REQUIRED"})
"""What a right password may still be told, and what no guess is counted for."""


def register(*, actor: Actor, email: str, password: str, name: str, locale: str, now: dt.datetime) -> User:
    """A new user. Raises RATE_LIMITED, and EMAIL_TAKEN (from the constraint: of two that race, one)."""
    throttle.take(throttle.window("REGISTER", client_network(actor.address)))
    user = User(email=email, name=name, locale=locale)
    user.set_password(password)  # before the transaction: hashing takes long, and needs no connection
    try:
        with transaction.atomic():
            user.save(force_insert=True)
            record_of(actor, "user.register", user, now)
            mails.defer("verify", user, actor=actor)
    except IntegrityError:
        raise DomainError("EMAIL_TAKEN") from None
    return user


def login(*, actor: Actor, email: str, password: str, agent: str, now: dt.datetime, proof: Proof = "") -> Login:
    """Checks the password, and the second factor where one is on, and opens a session. Raises INVALID_CREDENTIALS;
    after a right password ACCOUNT_DISABLED or SECOND_FACTOR_REQUIRED; RATE_LIMITED after too many that failed,
    OVERLOADED where too many wait.
    """
    if demo.static_user_id() and email_key(email) == demo.DEMO_KEY:
        user = demo.ensure_demo_user()
        if not user.is_active:
            raise DomainError("ACCOUNT_DISABLED")
        record_of(actor, "user.login", user, now)
        return user, demo.STATIC_TOKEN, now + dt.timedelta(seconds=sessions.absolute_seconds())

    def second_step(user: User) -> DomainError | None:
        return checking.refusal(actor=actor, user=user, proof=proof, now=now)

    user = _authenticated(actor, email, password, now, second_step)
    return open_login(actor=actor, user=user, agent=agent, refused="INVALID_CREDENTIALS", now=now)


def passkey_options(*, actor: Actor, email: str, password: str, now: dt.datetime) -> dict[str, Any]:
    """What a browser's passkey has to sign for a login: told after the right password alone. Raises as `login`, and
    INVALID_STATE where the account has no passkey."""
    user = _authenticated(actor, email, password, now, lambda _user: None)
    return webauthn.request_options("login", user=user, factor=checking.factor_of(user.pk))


def _authenticated(
    actor: Actor, email: str, password: str, now: dt.datetime, second_step: Callable[[User], DomainError | None]
) -> User:
    """Whose password this is, if the second step refuses nothing either. Raises as `login`.

    An unknown e-mail costs the hash of a password too, so that time does not tell whether an account exists.
    """
    with attempt(email, actor.address) as this:  # and only then a connection: who waits for the turn holds none
        found = selectors.by_email(email)
        if found is None:
            hashers.make_password(password)
            refused: DomainError | None = DomainError("INVALID_CREDENTIALS")
        else:
            refused = _refusal(found, password) or second_step(found)
        if refused is None or refused.code in _NO_FAILURE:
            this.succeeded()
    if found is None or refused is not None:
        raise _refused(actor, email, found, refused or DomainError("INVALID_CREDENTIALS"), now)
    return found


def open_login(
    *, actor: Actor, user: User, agent: str, refused: str, now: dt.datetime, detail: dict[str, Any] | None = None
) -> Login:
    """A new session for a user whose credential was checked. Raises `refused` if they are no longer as they were then:
    a password that is changed meanwhile, or an account disabled, opens nothing.
    """
    token, session = sessions.create(user_id=user.pk, address=actor.address, agent=agent, now=now)
    try:
        with transaction.atomic():
            if not User.objects.filter(pk=user.pk, password=user.password, is_active=True).update(last_login=now):
                raise DomainError(refused)
            record_of(actor, "user.login", user, now, {"session": str(session.id), **(detail or {})})
    except BaseException:
        sessions.end(session)  # what was not audited is not handed out
        raise
    return user, token, session.expires_at


def _refused(actor: Actor, email: str, found: User | None, refused: DomainError, now: dt.datetime) -> DomainError:
    """The refusal, on record. That a second factor is asked for is a step of a login, and no failure."""
    detail = {"email": audited(email), "code": refused.code}
    if refused.details:
        detail["wrong"] = ", ".join(refused.details)  # the second factor, after the right password
    asked = refused.code == "SECOND_FACTOR_REQUIRED"
    record(
        actor=actor,
        action="user.factor_asked" if asked else "user.login_failed",
        object_type="user",
        object_id=str(found.pk) if found else "",
        detail={} if asked else detail,
        now=now,
    )
    return refused


def _refusal(user: User, password: str) -> DomainError | None:
    if not hashers.check_password(password, user.password):
        return DomainError("INVALID_CREDENTIALS")
    return None if user.is_active else DomainError("ACCOUNT_DISABLED")


def logout(*, actor: Actor, user: User, session: LoginSession | None, now: dt.datetime) -> None:
    """Ends this session. The static development user has none; logging it out changes nothing."""
    if session is not None:
        sessions.end(session)
        with transaction.atomic():
            record_of(actor, "user.logout", user, now, {"session": str(session.id)})
            cut_off(actor, logins=[session.token_hash])


def logout_all(*, actor: Actor, user: User, now: dt.datetime) -> None:
    """Ends every session of the user; JWTs of a provider that were issued until now are refused from here on."""
    ended = sessions.end_all(user.pk)
    for holder in holders_of(user):
        sessions.end_holder(holder, now=now)
    with transaction.atomic():
        user.identities.update(not_before=now)  # Redis may forget
        record_of(actor, "user.logout_all", user, now, {"sessions": ended})
        cut_off(actor, users=[str(user.pk)])


def revoke_session(*, actor: Actor, user: User, session: LoginSession, now: dt.datetime) -> None:
    """Ends one of the user's own sessions. Raises NOT_FOUND if it is over already."""
    if not sessions.end(session):
        raise not_found()
    with transaction.atomic():
        record_of(actor, "user.session_revoked", user, now, {"session": str(session.id)})
        cut_off(actor, logins=[session.token_hash])


def update_profile(*, actor: Actor, user: User, changes: dict[str, Any], now: dt.datetime) -> User:
    """Changes name or locale, and nothing else."""
    changed = {key: value for key, value in changes.items() if getattr(user, key) != value}
    if not changed:
        return user
    with transaction.atomic():
        for key, value in changed.items():
            setattr(user, key, value)
        user.save(update_fields=[*changed, "updated_at"])
        record_of(actor, "user.profile_changed", user, now, {"fields": sorted(changed)})
    return user


def set_active(*, actor: Actor, user_id: uuid.UUID, active: bool, now: dt.datetime) -> bool:
    """Enables or disables a user; whether that changed anything. Disabling ends their logins and tunnels.

    The row is what each request asks, so a disabled user is cut off at once, even while Redis is down; the logins end
    after the commit, the tunnels by a job of the app above that is deferred in this transaction.
    """

    def end_logins() -> None:
        sessions.end_all(user_id)

    with transaction.atomic():
        changed = User.objects.filter(pk=user_id, is_active=not active).update(is_active=active, updated_at=now)
        if not changed:
            return False
        record_of(actor, "user.enabled" if active else "user.disabled", User(pk=user_id), now)
        if not active:
            jobs.configure_task("tunnels.close_user").defer(user_id=str(user_id), request_id=actor.request_id)
            transaction.on_commit(end_logins, robust=True)
    return True


def cut_off(actor: Actor, *, users: Sequence[str] = (), logins: Sequence[str] = ()) -> None:
    """Have the daemons drop at once what they were told of these: a job of the app above, after the commit."""
    jobs.configure_task("tunnels.invalidate").defer(users=list(users), logins=list(logins), request_id=actor.request_id)


def record_of(actor: Actor, action: str, user: User, now: dt.datetime, detail: dict[str, Any] | None = None) -> None:
    """An audit row about a user, in the caller's transaction; where nobody is logged in the user is who acts."""
    who = actor
    if not actor.user_id:
        who = Actor(str(user.pk), user.email, actor.address, actor.request_id)
    record(actor=who, action=action, object_type="user", object_id=str(user.pk), detail=detail, now=now)
