"""From an identity to a user: the one that it is linked to, a verified local account, or a new one.

find        the identity that is known, and its user
newcomer    the user of one that is not: linked to an account that is here, or made
refreshed   what the provider says by now is taken over
"""

import datetime as dt
import hashlib
from collections.abc import Iterable
from typing import Any

import structlog
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import QuerySet
from django.utils.translation import gettext_lazy as _

from apps.accounts import mails, selectors
from apps.accounts.models import EndedIdentity, MovedIssuer, User, UserIdentity
from apps.accounts.oidc.claims import Identity
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.emails import email_key
from apps.common.errors import DomainError

logger = structlog.get_logger(__name__)


def holder_of(issuer: str, subject: str) -> str:
    """Names a subject of an issuer in Redis, and where nobody is to be named."""
    return hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:40]


def holders_of(user: User) -> set[str]:
    """All that name the user at providers."""
    found = {holder_of(issuer, subject) for issuer, subject in user.identities.values_list("issuer", "subject")}
    if user.oidc_subject:  # the release before knows this one alone
        found.add(holder_of(user.oidc_issuer, user.oidc_subject))
    return found


def find(identity: Identity) -> UserIdentity | None:
    """What is known of the subject, with its user, disabled or not. None: nothing is."""
    row = selectors.by_identity(identity.issuer, identity.subject)
    if row is not None:
        return row
    of_older = User.objects.filter(oidc_issuer=identity.issuer, oidc_subject=identity.subject)
    user = of_older.exclude(oidc_subject="").first()
    if user is None:
        return None
    # Linked by the release before, which writes no row of its own.
    row, _made_now = UserIdentity.objects.get_or_create(
        issuer=identity.issuer, subject=identity.subject, defaults={"user": user}
    )
    return row


def user_of(identity: Identity, *, actor: Actor, now: dt.datetime) -> User:
    """The user of somebody who has just logged in at the provider; linked or made if they are seen for the first time.

    Raises EMAIL_TAKEN where the e-mail is another account's and one of the two sides has not verified it, FORBIDDEN
    where nobody may register, ACCOUNT_DISABLED.
    """
    row = find(identity)
    if row is None:
        return newcomer(identity, actor=actor, now=now)
    return refreshed(row, identity, actor=actor, now=now, always=True) if row.user.is_active else row.user


def ended_at(identity: Identity) -> dt.datetime | None:
    """When an account of this subject was ended, or the subject unlinked; None if that never was."""
    return ended(identity.issuer, identity.subject).values_list("ended_at", flat=True).first()


def ended(issuer: str, subject: str) -> QuerySet[EndedIdentity]:
    """That a subject was ended, the last time first: at this issuer, or at a URL that it has moved from."""
    moves = list(MovedIssuer.objects.values_list("old", "new"))
    names, size = {issuer}, 0
    while len(names) > size:
        size = len(names)
        names |= {old for old, new in moves if new in names}
    return EndedIdentity.objects.filter(holder__in=[holder_of(name, subject) for name in names]).order_by("-ended_at")


# --- seen for the first time ------------------------------------------------------------------------------------------
def newcomer(identity: Identity, *, actor: Actor, now: dt.datetime) -> User:
    """The user of a subject that is not known: linked now, or made. Raises as `user_of`."""
    try:
        with transaction.atomic():
            return _linked(identity, actor, now) or _made(identity, actor, now)
    except IntegrityError:  # somebody was quicker: the same person twice at once, or another with this e-mail
        row = find(identity)
        if row is None:
            raise DomainError("EMAIL_TAKEN") from None
        return row.user


def _linked(identity: Identity, actor: Actor, now: dt.datetime) -> User | None:
    """The account of this e-mail, linked; None if there is none.

    Both must have verified it: else whoever registers a stranger's e-mail, here or there, would get the stranger's
    account, or share it. Who was unlinked comes back by the account's owner alone.
    """
    if not identity.email:
        return None
    local = User.objects.select_for_update().filter(email_key=email_key(identity.email)).first()
    if local is None:
        return None
    if (local.oidc_issuer, local.oidc_subject) == (identity.issuer, identity.subject):
        return local  # linked while we waited for its row
    if not identity.email_verified or local.email_verified_at is None or local.oidc_subject:
        raise DomainError("EMAIL_TAKEN")
    if not local.is_active:
        raise DomainError("ACCOUNT_DISABLED")
    if ended_at(identity) is not None:
        raise DomainError("EMAIL_TAKEN")
    add(local, identity, now=now)
    record_of(actor, "user.oidc_linked", local, identity.issuer, now)
    return local


def add(user: User, identity: Identity, *, now: dt.datetime) -> UserIdentity:
    """Link a locked user, or one that is just made. Tokens from before an earlier end stay refused."""
    before = ended(identity.issuer, identity.subject)
    row = UserIdentity.objects.create(
        user=user,
        issuer=identity.issuer,
        subject=identity.subject,
        email=identity.email,
        name=identity.name,
        refreshed_at=_issued(identity, now),
        not_before=before.values_list("ended_at", flat=True).first(),
    )
    before.delete()
    if not user.oidc_subject:
        _stand_for(user, row)
    return row


def _made(identity: Identity, actor: Actor, now: dt.datetime) -> User:
    if settings.VISIONA["REGISTRATION"] != "open":
        raise DomainError("FORBIDDEN", _("Registration is closed here; ask an administrator."))
    user = User(
        email=identity.email or f"{holder_of(identity.issuer, identity.subject)[:32]}@{mails.NOWHERE}",
        email_verified_at=now if identity.email and identity.email_verified else None,
        name=identity.name,
        locale=identity.locale,
        oidc_issuer=identity.issuer,
        oidc_subject=identity.subject,
    )
    user.set_unusable_password()
    user.save(force_insert=True)
    add(user, identity, now=now)
    record_of(actor, "user.register", user, identity.issuer, now)
    if user.email_verified_at is None:
        mails.defer("verify", user, actor=actor)
    return user


# --- seen again -------------------------------------------------------------------------------------------------------
def refreshed(row: UserIdentity, told: Identity, *, actor: Actor, now: dt.datetime, always: bool) -> User:
    """The identity's user, with what the provider says by now; what a token leaves out changes nothing.

    Args:
        always: at a login. Else claims are taken if they are newer than those before and say something else.
    """
    newer = row.refreshed_at is None or told.issued_at > row.refreshed_at.timestamp()
    if not always and not (newer and _says_more(row, told)):
        return row.user
    try:
        with transaction.atomic():
            user = User.objects.select_for_update().filter(pk=row.user_id, is_active=True).first()
            if user is None:  # gone meanwhile
                raise DomainError("UNAUTHENTICATED")
            _take_over(user, row, told, actor=actor, now=now)
            row.email, row.name = told.email or row.email, told.name or row.name
            row.refreshed_at = _issued(told, now)
            row.save(update_fields=["email", "name", "refreshed_at", "updated_at"])
    except IntegrityError:  # another account took the e-mail at this moment; at the next login it is seen
        logger.warning("oidc_email_taken", user=str(row.user_id))
        return User.objects.get(pk=row.user_id)
    return user


def _says_more(row: UserIdentity, told: Identity) -> bool:
    if told.email and (told.email != row.email or (told.email_verified and row.user.email_verified_at is None)):
        return True
    return bool(told.name) and told.name != row.name


def _take_over(user: User, row: UserIdentity, told: Identity, *, actor: Actor, now: dt.datetime) -> None:
    """What a locked user still has by the provider's word follows that word; what they chose here stays."""
    before, placeholder = user.email, _is_placeholder(user)
    changed = {**_newer_name(user, row, told), **_newer_email(user, row, told, now)}
    if not changed:
        return
    for name, value in changed.items():
        setattr(user, name, value)
    user.save(update_fields=[*changed, "updated_at"])
    if "email" in changed:
        record_of(actor, "user.email_changed", user, row.issuer, now)
        if user.email_verified_at is None:
            mails.defer("verify", user, actor=actor)
        elif not placeholder:
            mails.defer("email_changed", user, actor=actor, email=before)
    elif "email_verified_at" in changed:
        record_of(actor, "user.email_verified", user, row.issuer, now)


def _newer_name(user: User, row: UserIdentity, told: Identity) -> dict[str, Any]:
    changed = {}
    if told.name and told.name != user.name and user.name in ("", row.name):
        changed["name"] = told.name
    if told.locale and not user.locale:
        changed["locale"] = told.locale
    return changed


def _newer_email(user: User, row: UserIdentity, told: Identity, now: dt.datetime) -> dict[str, Any]:
    """A placeholder gives way to any address; one that the provider has told gives way to one that it has verified."""
    if not told.email:
        return {}
    key = email_key(told.email)
    if key == user.email_key:
        return {"email_verified_at": now} if told.email_verified and user.email_verified_at is None else {}
    theirs = told.email_verified and user.email_key == email_key(row.email)
    if not (theirs or _is_placeholder(user)):
        return {}
    if User.objects.filter(email_key=key).exists():
        logger.warning("oidc_email_taken", user=str(user.pk))
        return {}
    return {"email": told.email, "email_verified_at": now if told.email_verified else None}


def _is_placeholder(user: User) -> bool:
    return user.email.endswith("@" + mails.NOWHERE)


def _issued(identity: Identity, now: dt.datetime) -> dt.datetime:
    """When the claims were issued; a provider's clock that runs ahead must not keep later ones out."""
    return min(dt.datetime.fromtimestamp(identity.issued_at, dt.UTC), now)


# --- seen no more -----------------------------------------------------------------------------------------------------
def forget(user: User, rows: Iterable[UserIdentity], *, now: dt.datetime) -> list[str]:
    """Unlink identities of a locked user: no token of theirs makes or links an account again. Returns their holders."""
    gone = {holder_of(row.issuer, row.subject): row for row in rows}
    if user.oidc_subject and not user.identities.exclude(pk__in=[row.pk for row in gone.values()]).exists():
        gone.setdefault(holder_of(user.oidc_issuer, user.oidc_subject), UserIdentity())
    for holder, row in gone.items():
        EndedIdentity.objects.update_or_create(holder=holder, defaults={"ended_at": now})
        UserIdentity.objects.filter(pk=row.pk).delete()
    _stand_for(user, user.identities.order_by("created_at").first())
    return list(gone)


def _stand_for(user: User, row: UserIdentity | None) -> None:
    """The identity that the release before knows the user by."""
    user.oidc_issuer, user.oidc_subject = (row.issuer, row.subject) if row is not None else ("", "")
    user.save(update_fields=["oidc_issuer", "oidc_subject", "updated_at"])


def record_of(actor: Actor, action: str, user: User, issuer: str, now: dt.datetime) -> None:
    """An audit row about a user and a provider, in the caller's transaction."""
    record(
        actor=Actor(str(user.pk), user.email, actor.address, actor.request_id),
        action=action,
        object_type="user",
        object_id=str(user.pk),
        detail={"issuer": issuer},
        now=now,
    )
