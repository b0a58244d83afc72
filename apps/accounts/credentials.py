"""Passwords and e-mails: confirming an address, changing and resetting a password, changing the address."""

import datetime as dt
import uuid

from django.contrib.auth import hashers
from django.db import IntegrityError, connection, transaction
from django.utils.translation import gettext_lazy as _
from procrastinate.contrib.django import app as jobs

from apps.accounts import mail_tokens, mails, sessions
from apps.accounts.attempts import attempt
from apps.accounts.mail_tokens import MailToken, Purpose
from apps.accounts.models import SecondFactor, User
from apps.accounts.oidc.linking import forget
from apps.accounts.services import cut_off, record_of
from apps.accounts.sessions import LoginSession
from apps.common.actor import Actor
from apps.common.emails import email_key, kept_form
from apps.common.errors import DomainError, not_found
from apps.common.limits import throttle
from tunnel.contract import client_network


# --- the e-mail -------------------------------------------------------------------------------------------------------
@transaction.atomic
def ask_verification(*, actor: Actor, user: User, now: dt.datetime) -> None:
    """Send the link that confirms the e-mail once more. Raises INVALID_STATE if it is confirmed, NOT_IMPLEMENTED."""
    mails.required()
    if user.email_verified_at is not None:
        raise DomainError("INVALID_STATE", _("This e-mail is confirmed already."))
    record_of(actor, "user.verification_asked", user, now)
    mails.defer("verify", user, actor=actor)


def ask_email_change(*, actor: Actor, user: User, email: str, password: str, now: dt.datetime) -> None:
    """Send a link to the new address; the account has it once that is opened, and keeps the old one until then.

    Whether the new address is taken is told to its owner alone, by the link. Raises INVALID_CREDENTIALS,
    INVALID_STATE (the provider holds the address), NOT_IMPLEMENTED.
    """
    mails.required()
    if user.oidc_subject:
        raise DomainError("INVALID_STATE", _("This account's e-mail is held by its identity provider."))
    check_password(actor=actor, user=user, password=password, now=now)
    with transaction.atomic():
        record_of(actor, "user.email_change_asked", user, now)
        mails.defer("verify", user, actor=actor, email=email)


def confirm_email(*, actor: Actor, token: str, now: dt.datetime, seconds: int) -> User:
    """The address that the token was sent to is the user's, and confirmed. Of two at once one succeeds.

    Raises INVALID_CREDENTIALS for a token that is forged, too old or used; EMAIL_TAKEN where another took the address.
    """
    told = _read("verify", token, seconds=seconds, now=now)
    try:
        with transaction.atomic():
            user = _holder("verify", told)
            before = user.email
            if told.email != before and not kept_form(told.email):  # of the release before, which asked for less
                raise _bad_token()
            user.email, user.email_verified_at = told.email, now
            user.save(update_fields=["email", "email_verified_at", "updated_at"])
            if before == told.email:
                record_of(actor, "user.email_verified", user, now)
            else:
                record_of(actor, "user.email_changed", user, now)
                mails.defer("email_changed", user, actor=actor, email=before)
    except IntegrityError:
        raise DomainError("EMAIL_TAKEN") from None
    return user


def set_email(*, actor: Actor, user_id: uuid.UUID, email: str, now: dt.datetime) -> None:
    """Another address, by an operator, whose word counts: who had confirmed the old one counts as confirmed still. Else
    the first reset mail would take the account for one that a stranger prepared, and rid it of its boxes (`_shed`).

    Raises NOT_FOUND, EMAIL_TAKEN.
    """
    try:
        with transaction.atomic():
            user = User.objects.select_for_update().filter(pk=user_id).first()
            if user is None:
                raise not_found()
            before = user.email
            user.email = email
            user.save(update_fields=["email", "updated_at"])
            record_of(actor, "user.email_changed", user, now)
            mails.defer("email_changed", user, actor=actor, email=before)
    except IntegrityError:
        raise DomainError("EMAIL_TAKEN") from None


# --- the password -----------------------------------------------------------------------------------------------------
def check_password(*, actor: Actor, user: User, password: str, now: dt.datetime) -> None:
    """The password of who is logged in, asked for once more. Raises INVALID_CREDENTIALS, RATE_LIMITED.

    What fails counts with the failed logins: a stolen login must not guess the password at leisure.
    """
    with attempt(user.email, actor.address) as this:
        right = hashers.check_password(password, user.password)
        if right:
            this.succeeded()
    if not right:
        record_of(actor, "user.password_refused", user, now)
        raise DomainError("INVALID_CREDENTIALS", _("The password is wrong."))


def change_password(
    *, actor: Actor, user: User, session: LoginSession | None, current: str, new: str, now: dt.datetime
) -> None:
    """Set a new password. Every other login ends; the one that asks goes on.

    Raises INVALID_CREDENTIALS; INVALID_STATE for an account that logs in by its provider alone.
    """
    if not user.has_usable_password():
        raise DomainError("INVALID_STATE", _("This account logs in with its identity provider; it has no password."))
    check_password(actor=actor, user=user, password=current, now=now)
    encoded = hashers.make_password(new)  # before the transaction: hashing takes long, and needs no connection
    keep = session.token_hash if session is not None else ""
    with transaction.atomic():
        held = User.objects.select_for_update().get(pk=user.pk)
        if held.password != user.password:  # changed meanwhile: what was checked is no longer the password
            raise DomainError("INVALID_CREDENTIALS", _("The password is wrong."))
        _set(held, encoded, keep=keep, actor=actor, now=now)
        record_of(actor, "user.password_changed", held, now)
        mails.defer("password_changed", held, actor=actor)


def ask_reset(*, actor: Actor, email: str, now: dt.datetime) -> None:
    """Send a link that sets a new password, if there is an account; nobody is told whether there is.

    One query that answers one row in any case, one job in any case: the time tells nothing either. The worker sees who
    is disabled, or logs in by a provider. Raises RATE_LIMITED, NOT_IMPLEMENTED.
    """
    mails.required()
    address = client_network(actor.address)
    throttle.take(
        throttle.Window(f"visiona:throttle:reset:{throttle.by_secret(email_key(email))}:{address}", 5),
        throttle.Window(f"visiona:throttle:reset_address:{address}", 60),
    )
    with transaction.atomic():
        mails.defer_to(_id_of(email), "reset", actor=actor)


def confirm_reset(*, actor: Actor, token: str, new: str, now: dt.datetime, seconds: int) -> User:
    """Set the new password; every login ends. The token was in the mailbox, so the e-mail counts as confirmed.

    Raises INVALID_CREDENTIALS for a token that is forged, too old or used, or older than the present password.
    """
    told = _read("reset", token, seconds=seconds, now=now)
    encoded = hashers.make_password(new)
    with transaction.atomic():
        user = _holder("reset", told)
        taken_over = mails.takes_over(user)
        user.email_verified_at = user.email_verified_at or now
        _set(user, encoded, keep="", actor=actor, now=now)
        record_of(actor, "user.password_reset", user, now)
        if taken_over:
            _shed(user, actor=actor, now=now)
        mails.defer("taken_over" if taken_over else "password_changed", user, actor=actor)
    return user


def _shed(user: User, *, actor: Actor, now: dt.datetime) -> None:
    """Rid a locked account of whatever was prepared in it: nobody had shown until now that its e-mail is theirs.

    Whoever registered it may have been a stranger, who waits for its boxes, its events, or a login of their own to it.
    """
    for holder in forget(user, user.identities.all(), now=now):
        sessions.end_holder(holder, now=now)
    sessions.end_adopted(user.pk)
    SecondFactor.objects.filter(user=user).delete()  # the stranger's authenticator would keep the owner out
    user.name = ""
    user.save(update_fields=["name", "updated_at"])
    record_of(actor, "user.taken_over", user, now)
    jobs.configure_task("accounts.shed").defer(
        user_id=str(user.pk), before=now.isoformat(), request_id=actor.request_id
    )
    cut_off(actor, users=[str(user.pk)])


@transaction.atomic
def send_reset(*, actor: Actor, user_id: uuid.UUID, now: dt.datetime) -> None:
    """Send the link as an operator. Raises NOT_IMPLEMENTED."""
    mails.required()
    record_of(actor, "user.reset_sent_by_staff", User(pk=user_id), now)
    mails.defer_to(str(user_id), "reset", actor=actor)


def _set(user: User, encoded: str, *, keep: str, actor: Actor, now: dt.datetime) -> None:
    """Of a locked user. The logins end before the commit: if they cannot be ended, nothing changes.

    A login with the old password at this moment loses too: it marks the row with that password still in it, or fails.
    """
    user.password = encoded
    user.save(update_fields=["password", "email_verified_at", "updated_at"])
    ended = sessions.end_others(user.pk, keep)
    cut_off(actor, logins=ended)


# --- tokens of mails --------------------------------------------------------------------------------------------------
def _bad_token() -> DomainError:
    """No VALIDATION_ERROR: its form is right, and that is all that a schema can tell a client."""
    message = str(_("This link is used, too old, or not from us; ask for a new one."))
    return DomainError("INVALID_CREDENTIALS", message, details={"token": [message]})


def _read(purpose: Purpose, token: str, *, seconds: int, now: dt.datetime) -> MailToken:
    told = mail_tokens.read(purpose, token, seconds=seconds, now=now)
    if told is None:
        raise _bad_token()
    user = User.objects.filter(pk=told.user_id).first()
    if user is None or not told.is_of(purpose, user):  # seen before anything is hashed
        raise _bad_token()
    return told


def _holder(purpose: Purpose, told: MailToken) -> User:
    """The token's user, locked, if the token is still good."""
    user = User.objects.select_for_update().filter(pk=told.user_id, is_active=True).first()
    if user is None or not told.is_of(purpose, user):
        raise _bad_token()
    return user


def _id_of(email: str) -> str:
    """The id of the user of this e-mail, empty if there is none: the same query and one row in either case."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT (SELECT id FROM users WHERE email_key = %s)", [email_key(email)])
        row = cursor.fetchone()
    return "" if row is None or row[0] is None else str(row[0])
