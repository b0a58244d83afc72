"""From an identity to a user: the one that it is linked to, a verified local account, or a new one."""

import datetime as dt
import hashlib

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.translation import gettext_lazy as _

from apps.accounts import mails, selectors
from apps.accounts.models import User
from apps.accounts.oidc.claims import Identity
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.emails import email_key
from apps.common.errors import DomainError


def holder_of(issuer: str, subject: str) -> str:
    """Names a subject of an issuer in Redis."""
    return hashlib.sha256(f"{issuer}\0{subject}".encode()).hexdigest()[:40]


def user_of(identity: Identity, *, actor: Actor, now: dt.datetime) -> User:
    """The identity's user, disabled or not; made or linked if it is seen for the first time.

    Raises EMAIL_TAKEN where the e-mail is another account's and one of the two sides has not verified it, and
    FORBIDDEN where nobody may register.
    """
    known = selectors.by_identity(identity.issuer, identity.subject)
    if known is not None:
        return known
    try:
        with transaction.atomic():
            return _linked(identity, actor, now) or _made(identity, actor, now)
    except IntegrityError:  # somebody was quicker: the same person twice at once, or another with this e-mail
        known = selectors.by_identity(identity.issuer, identity.subject)
        if known is None:
            raise DomainError("EMAIL_TAKEN") from None
        return known


def _linked(identity: Identity, actor: Actor, now: dt.datetime) -> User | None:
    """The account of this e-mail, linked; None if there is none.

    Both must have verified it: else whoever registers a stranger's e-mail, here or there, would get the stranger's
    account, or share it.
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
    local.oidc_issuer, local.oidc_subject = identity.issuer, identity.subject
    local.save(update_fields=["oidc_issuer", "oidc_subject", "updated_at"])
    _record(actor, "user.oidc_linked", local, now)
    return local


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
    _record(actor, "user.register", user, now)
    if user.email_verified_at is None:
        mails.defer("verify", user, actor=actor)
    return user


def _record(actor: Actor, action: str, user: User, now: dt.datetime) -> None:
    record(
        actor=Actor(str(user.pk), user.email, actor.address, actor.request_id),
        action=action,
        object_type="user",
        object_id=str(user.pk),
        detail={"issuer": user.oidc_issuer},
        now=now,
    )
