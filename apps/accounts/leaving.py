"""The end of an account: cut off at once, then erased by a job, then the e-mail is anybody's again.

    in the request     the row loses name, e-mail, password and rights; logins end; tunnels and devices follow by jobs
    accounts.erase     each app deletes what it holds (settings.ACCOUNT_END_TASKS, in order), the trail is
                       pseudonymised, the row deleted with what still hangs on it

Each step may run twice, and one that fails is tried again: none of them is lost with a worker.
"""

import datetime as dt
import uuid
from collections.abc import Callable
from typing import Final

import structlog
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext_lazy as _
from procrastinate.contrib.django import app as jobs

from apps.accounts import sessions
from apps.accounts.credentials import check_password
from apps.accounts.models import SecondFactor, User
from apps.accounts.oidc.linking import forget
from apps.accounts.services import record_of
from apps.accounts.sessions import LoginSession
from apps.audit.pseudonyms import email_hash, pseudonymise
from apps.common.actor import Actor
from apps.common.emails import email_key
from apps.common.errors import DomainError

logger = structlog.get_logger(__name__)

FRESH: Final = dt.timedelta(minutes=15)
"""Who has no password shows by a login this young that it is them."""


def leave(
    *, actor: Actor, user: User, session: LoginSession | None, password: str, email: str, now: dt.datetime
) -> None:
    """End one's own account, on the password; on the e-mail and a fresh login where there is no password.

    Raises INVALID_CREDENTIALS, RATE_LIMITED, and FORBIDDEN for a login that is not fresh.
    """
    if user.has_usable_password():
        check_password(actor=actor, user=user, password=password, now=now)
    elif email_key(email) != email_key(user.email):
        raise DomainError("INVALID_CREDENTIALS", _("Repeat this account's e-mail to end it."))
    elif session is None or now - session.created_at > FRESH:
        raise DomainError("FORBIDDEN", _("Log in anew at your identity provider, then end the account."))
    end_account(actor=actor, user_id=user.pk, now=now)


@transaction.atomic
def end_account(*, actor: Actor, user_id: uuid.UUID, now: dt.datetime) -> bool:
    """Cut a user off for good and have the rest erased; False if they are gone already."""
    user = User.objects.select_for_update().filter(pk=user_id).first()
    if user is None or user.email == _freed(user_id):
        return False
    email = user.email
    record_of(actor, "user.deleted", user, now)
    holders = forget(user, user.identities.all(), now=now)
    user.email, user.name, user.locale = _freed(user_id), "", ""
    user.email_verified_at = None
    user.is_active = user.is_staff = user.is_superuser = False
    user.set_unusable_password()
    user.save()
    SecondFactor.objects.filter(user=user).delete()
    who = {"user_id": str(user_id), "request_id": actor.request_id}
    jobs.configure_task("tunnels.close_user").defer(**who)
    jobs.configure_task("devices.unpair_all").defer(**who)
    jobs.configure_task("accounts.erase").defer(**who, email=email_hash(email))
    # Before the commit: were Redis away, nothing would have happened. Tickets die with their logins.
    sessions.end_all(user_id)
    for holder in holders:
        sessions.end_holder(holder, now=now)
    return True


def erase(*, user_id: uuid.UUID, email: str, run: Callable[[str], object]) -> None:
    """Delete what there is of a user who was cut off. `run` carries out a job of another app, by name, here and now.

    Args:
        email: the hash of the e-mail that the user had.
    """
    for name in settings.ACCOUNT_END_TASKS:
        run(name)
    renamed = pseudonymise(user_id=str(user_id), email=email)
    User.objects.filter(pk=user_id, email=_freed(user_id)).delete()
    logger.info("account_erased", user=str(user_id), audit_rows=renamed)


def _freed(user_id: uuid.UUID) -> str:
    return f"{user_id}@deleted.invalid"
