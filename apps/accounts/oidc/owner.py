"""What an account's owner does with its identities, and what operators do with an issuer: link, unlink, move.

Linking goes the way of a login: the owner asks for a URL of ours that is good once, their browser goes there and comes
back with a code, and they hand it in with their own login. The code is good for the account that asked, and for no
login: a link that somebody else began, or a code of theirs, links nothing.
"""

import datetime as dt
import uuid
from typing import Final
from urllib.parse import urlencode

from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext_lazy as _

from apps.accounts import sessions
from apps.accounts.credentials import check_password
from apps.accounts.models import MovedIssuer, User, UserIdentity
from apps.accounts.oidc import flow
from apps.accounts.oidc.config import Config
from apps.accounts.oidc.linking import add, ended, find, forget, record_of
from apps.accounts.services import cut_off
from apps.accounts.sessions import LoginSession
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found

FRESH: Final = dt.timedelta(minutes=15)
"""Who has no password shows by a login this young that it is them."""
MAX_IDENTITIES: Final = 20


def begin_link(
    config: Config,
    *,
    actor: Actor,
    user: User,
    session: LoginSession | None,
    redirect_uri: str,
    password: str,
    now: dt.datetime,
) -> str:
    """Where the owner's browser is to go. Raises INVALID_CREDENTIALS, RATE_LIMITED, FORBIDDEN for a login that is not
    fresh, VALIDATION_ERROR for a page that is not on the list.
    """
    flow.check_page(config, redirect_uri)
    if user.has_usable_password():
        check_password(actor=actor, user=user, password=password, now=now)
    elif session is None or now - session.created_at > FRESH:
        raise DomainError("FORBIDDEN", _("Log in anew at your identity provider, then link another."))
    asked = {"redirect_uri": redirect_uri, "link": flow.link_ticket(user.pk)}
    return f"{settings.VISIONA['PUBLIC_URL']}/api/auth/oidc/login?{urlencode(asked)}"


def link(*, actor: Actor, user: User, code: str, now: dt.datetime) -> UserIdentity:
    """Link who came back with this code. Raises INVALID_CREDENTIALS for a code that is not this account's, CONFLICT
    where the identity is another account's.
    """
    identity, link_for = flow.redeem(code)
    if link_for != str(user.pk):
        raise flow.bad_code()
    known = find(identity)
    with transaction.atomic():
        held = User.objects.select_for_update().get(pk=user.pk)
        known = known or find(identity)  # linked while we waited
        if known is not None:
            if known.user_id != user.pk:
                raise DomainError("CONFLICT", _("This identity is linked to another account."))
            return known
        if held.identities.count() >= MAX_IDENTITIES:
            raise DomainError("CONFLICT", _("An account has at most %d identities.") % MAX_IDENTITIES)
        row = add(held, identity, now=now)
        record_of(actor, "user.oidc_linked", held, identity.issuer, now)
    return row


def unlink(*, actor: Actor, user_id: uuid.UUID, identity_id: uuid.UUID, now: dt.datetime) -> None:
    """Unlink an identity; its tokens are refused from here on. Raises NOT_FOUND, INVALID_STATE for the last one of an
    account without a password.
    """
    with transaction.atomic():
        user = User.objects.select_for_update().get(pk=user_id)
        row = user.identities.filter(pk=identity_id).first()
        if row is None:
            raise not_found()
        if not user.has_usable_password() and not user.identities.exclude(pk=row.pk).exists():
            raise DomainError("INVALID_STATE", _("This is the only way into the account; link another one first."))
        holders = forget(user, [row], now=now)
        record_of(actor, "user.oidc_unlinked", user, row.issuer, now)
        for holder in holders:  # before the commit: were Redis away, nothing would have happened
            sessions.end_holder(holder, now=now)
        cut_off(actor, logins=sessions.end_adopted(user.pk))


def move_issuer(*, actor: Actor, old: str, new: str, now: dt.datetime) -> int:
    """Everybody of one issuer is of another from here on, since the provider's URL has changed; whoever was ended at
    the old one stays ended. Returns how many.

    Raises CONFLICT with the subjects, if some are known of both.
    """
    with transaction.atomic():
        of_old = UserIdentity.objects.filter(issuer=old)
        both = UserIdentity.objects.filter(issuer=new, subject__in=of_old.values("subject"))
        names = list(both.order_by("subject").values_list("subject", flat=True)[:20])
        if names:
            raise DomainError("CONFLICT", _("Known of both issuers: %s") % ", ".join(names))
        for user in User.objects.filter(oidc_issuer=old, identities=None):  # linked by the release before
            UserIdentity.objects.get_or_create(issuer=old, subject=user.oidc_subject, defaults={"user": user})
        moved = of_old.update(issuer=new, updated_at=now)
        User.objects.filter(oidc_issuer=old).update(oidc_issuer=new, updated_at=now)
        MovedIssuer.objects.get_or_create(old=old, new=new)
        record(
            actor=actor, action="oidc.issuer_moved", object_type="issuer", object_id="",
            detail={"from": old, "to": new, "identities": moved}, now=now,
        )  # fmt: skip
    return moved


def readmit(*, actor: Actor, issuer: str, subject: str, now: dt.datetime) -> bool:
    """Tokens of a subject whose account was ended may make one again; False if none was."""
    with transaction.atomic():
        gone, _each = ended(issuer, subject).delete()
        if gone:
            record(
                actor=actor, action="oidc.readmitted", object_type="issuer", object_id="", detail={"issuer": issuer},
                now=now,
            )  # fmt: skip
    return bool(gone)
