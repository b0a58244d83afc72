"""Passkeys of one's own account: registered, and removed."""

import datetime as dt
import uuid
from typing import Any, Final

from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from apps.accounts import mails
from apps.accounts.factors import checking, owner, webauthn
from apps.accounts.factors.checking import Proof, record_of
from apps.accounts.factors.webauthn import Answer
from apps.accounts.models import Passkey, SecondFactor, User
from apps.common.actor import Actor
from apps.common.errors import DomainError, not_found

MOST: Final = 10
"""Of one user: one for each thing they own, and an end to what a login asks for."""


def begin(*, actor: Actor, user: User, password: str, proof: Proof, now: dt.datetime) -> dict[str, Any]:
    """What a browser is asked to make, on the password, and on the second factor where one is on.

    Raises INVALID_CREDENTIALS, SECOND_FACTOR_REQUIRED, RATE_LIMITED, QUOTA_EXCEEDED; INVALID_STATE without a password.
    """
    owner.prove(actor=actor, user=user, password=password, proof=proof, now=now)
    return options(user=user)


def options(*, user: User) -> dict[str, Any]:
    """As `begin`, for somebody who was checked."""
    factor = checking.factor_of(user.pk)
    if factor is not None and factor.passkeys.count() >= MOST:
        raise _too_many()
    return webauthn.creation_options(user=user, factor=factor)


def register(
    *, actor: Actor, user: User, name: str, answer: Answer, now: dt.datetime
) -> tuple[Passkey, SecondFactor, list[str]]:
    """Keep what the browser made; with the recovery codes, to be shown once, if this is the first factor.

    Raises INVALID_CREDENTIALS for what answers no challenge that is still good, QUOTA_EXCEEDED, CONFLICT (it is here).
    """
    before = checking.factor_of(user.pk)
    made = webauthn.registered(answer, user=user, factor=before)
    if made is None or made.credential_data is None:
        raise checking.wrong_passkey("credential")
    try:
        with transaction.atomic():
            factor, codes = owner.switched_on(actor=actor, user=user, now=now)
            if bool(codes) is (before is not None):  # switched on or off meanwhile: it was asked for otherwise
                raise checking.wrong_passkey("credential")
            if factor.passkeys.count() >= MOST:
                raise _too_many()
            passkey = Passkey.objects.create(
                factor=factor,
                name=name,
                credential_id=made.credential_data.credential_id,
                attested=bytes(made.credential_data),
                sign_count=made.counter,
            )
            record_of(actor, "user.passkey_added", user, now, passkey=str(passkey.pk), name=name)
            mails.defer("passkey_added", user, actor=actor)
    except IntegrityError:
        raise DomainError("CONFLICT", _("This passkey is registered already.")) from None
    return passkey, factor, codes


def remove(*, actor: Actor, user: User, passkey_id: uuid.UUID, password: str, proof: Proof, now: dt.datetime) -> None:
    """Raises INVALID_CREDENTIALS, SECOND_FACTOR_REQUIRED, RATE_LIMITED, NOT_FOUND. With the last factor all is off."""
    owner.prove(actor=actor, user=user, password=password, proof=proof, now=now)
    with transaction.atomic():
        factor = checking.locked_factor(user.pk)
        passkey = None if factor is None else factor.passkeys.filter(pk=passkey_id).first()
        if factor is None or passkey is None:
            raise not_found()
        _drop(passkey, factor, "user.passkey_removed", actor=actor, user=user, now=now)


@transaction.atomic
def remove_lost(*, actor: Actor, passkey_id: uuid.UUID, now: dt.datetime) -> bool:
    """Take a passkey off somebody, as an operator. False: there is none."""
    passkey = Passkey.objects.select_related("factor__user").filter(pk=passkey_id).first()
    factor = None if passkey is None else checking.locked_factor(passkey.factor.user_id)
    if passkey is None or factor is None:
        return False
    _drop(passkey, factor, "user.passkey_removed_by_staff", actor=actor, user=passkey.factor.user, now=now)
    return True


def _drop(passkey: Passkey, factor: SecondFactor, action: str, *, actor: Actor, user: User, now: dt.datetime) -> None:
    record_of(actor, action, user, now, passkey=str(passkey.pk), name=passkey.name)
    passkey.delete()
    if not owner.off_if_empty(factor, actor=actor, user=user, now=now):
        mails.defer("passkey_removed", user, actor=actor)


def _too_many() -> DomainError:
    text = _("An account may have %(most)d passkeys; remove one first.") % {"most": MOST}
    details = {"quota": ["passkeys"], "limit": [str(MOST)], "used": [str(MOST)]}
    return DomainError("QUOTA_EXCEEDED", text, details=details, status=409)
