"""Switching a second factor on and off, renewing its recovery codes; removing one that was lost."""

import datetime as dt
import uuid
from dataclasses import dataclass

from django.db import transaction
from django.utils.translation import gettext_lazy as _

from apps.accounts import mails
from apps.accounts.attempts import attempt
from apps.accounts.credentials import check_password
from apps.accounts.factors import checking, recovery, totp
from apps.accounts.factors.checking import SEALED_FOR, Proof, record_of
from apps.accounts.models import SecondFactor, User
from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.common.sealing import Unreadable, seal, unseal


@dataclass(frozen=True, slots=True)
class Offer:
    """What an authenticator is given; it is shown to the owner, until a code has shown that it took it."""

    secret: str
    uri: str


def prove(*, actor: Actor, user: User, password: str, proof: Proof, now: dt.datetime) -> None:
    """Who is logged in shows the password, and the second factor where one is on.

    Raises INVALID_CREDENTIALS, SECOND_FACTOR_REQUIRED, RATE_LIMITED, and INVALID_STATE where there is no password that
    a factor could stand beside.
    """
    if not user.has_usable_password():
        raise DomainError("INVALID_STATE", _("This account logs in with its identity provider; it has no password."))
    check_password(actor=actor, user=user, password=password, now=now)
    checking.check(actor=actor, user=user, proof=proof, now=now)


# --- the authenticator ------------------------------------------------------------------------------------------------
def begin(*, actor: Actor, user: User, password: str, proof: Proof = "", now: dt.datetime) -> Offer:
    """A new secret. Raises as `prove`, and INVALID_STATE where an authenticator is on."""
    if _has_authenticator(user.pk):
        raise _is_on()
    prove(actor=actor, user=user, password=password, proof=proof, now=now)
    return offer(user=user)


@transaction.atomic
def offer(*, user: User) -> Offer:
    """A new secret for somebody who was checked; it takes the place of one that was not confirmed."""
    factor = _row(user)
    if factor.confirmed_at is not None and factor.secret_sealed:
        raise _is_on()
    secret = totp.new_secret()
    factor.offered_sealed, factor.last_step = seal(secret, purpose=SEALED_FOR), 0
    factor.save(update_fields=["offered_sealed", "last_step", "updated_at"])
    return _offer(secret, user)


def offered(*, user: User) -> Offer | None:
    """The secret that waits for its first code; None if none does."""
    row = SecondFactor.objects.filter(user=user).exclude(offered_sealed="").first()
    try:
        return None if row is None else _offer(unseal(row.offered_sealed, purpose=SEALED_FOR), user)
    except Unreadable:
        return None


def confirm(*, actor: Actor, user: User, code: str, now: dt.datetime) -> tuple[SecondFactor, list[str]]:
    """Switch it on by the authenticator's first code; with the recovery codes, to be shown once, if it is the first
    factor.

    Raises INVALID_CREDENTIALS, RATE_LIMITED, and INVALID_STATE where nothing was begun or an authenticator is on.
    """
    codes: list[str] = []
    with attempt(user.email, actor.address) as this:
        with transaction.atomic():
            factor = SecondFactor.objects.select_for_update().filter(user=user).first()
            if factor is not None and factor.confirmed_at is not None and factor.secret_sealed:
                this.succeeded()
                raise _is_on()
            if factor is None or not factor.offered_sealed:
                this.succeeded()
                raise DomainError("INVALID_STATE", _("Begin anew: there is no secret that waits for its first code."))
            refused = checking.stepped(factor, code, now, offered=True)
            if refused is None:
                secret = factor.offered_sealed
                factor, codes = switched_on(actor=actor, user=user, now=now)
                factor.secret_sealed, factor.offered_sealed = secret, ""
                factor.save(update_fields=["secret_sealed", "offered_sealed", "updated_at"])
                record_of(actor, "user.authenticator_added", user, now)
                mails.defer("authenticator_added", user, actor=actor)
        if refused is not None:
            raise refused
        this.succeeded()
    return factor, codes


def remove_authenticator(*, actor: Actor, user: User, password: str, proof: Proof, now: dt.datetime) -> None:
    """As `switch_off`, of the authenticator alone: passkeys stay. Raises INVALID_STATE where none is on."""
    if not _has_authenticator(user.pk):
        raise _is_off()
    prove(actor=actor, user=user, password=password, proof=proof, now=now)
    with transaction.atomic():
        factor = checking.locked_factor(user.pk)
        if factor is None or not factor.secret_sealed:
            raise _is_off()
        factor.secret_sealed = ""
        factor.save(update_fields=["secret_sealed", "updated_at"])
        record_of(actor, "user.authenticator_removed", user, now)
        if not off_if_empty(factor, actor=actor, user=user, now=now):
            mails.defer("authenticator_removed", user, actor=actor)


# --- all of it --------------------------------------------------------------------------------------------------------
def switched_on(*, actor: Actor, user: User, now: dt.datetime) -> tuple[SecondFactor, list[str]]:
    """The user's factor, locked and on, in the caller's transaction; with recovery codes if it was off until now."""
    factor = _row(user)
    if factor.confirmed_at is not None:
        return factor, []
    codes = _renewed(factor)
    # What was begun on the password alone is void: whoever began it must not be let in beside the owner's factor. (The
    # release before keeps in `secret_sealed` what nobody has confirmed.)
    factor.confirmed_at, factor.secret_sealed, factor.offered_sealed = now, "", ""
    factor.save(update_fields=["confirmed_at", "secret_sealed", "offered_sealed", "updated_at"])
    record_of(actor, "user.factor_enabled", user, now)
    return factor, codes


def off_if_empty(factor: SecondFactor, *, actor: Actor, user: User, now: dt.datetime) -> bool:
    """After the last authenticator or passkey has gone a login asks for nothing, and the recovery codes go too.

    Whether that was so; the owner is told then.
    """
    if factor.secret_sealed or factor.passkeys.exists():
        return False
    _off(factor, "user.factor_disabled", actor=actor, user=user, now=now)
    return True


def renew(*, actor: Actor, user: User, password: str, proof: Proof, now: dt.datetime) -> list[str]:
    """New recovery codes, to be shown once; those before are void. On password and proof, as `switch_off`."""
    _must_be_on(user.pk)
    prove(actor=actor, user=user, password=password, proof=proof, now=now)
    with transaction.atomic():
        factor = checking.locked_factor(user.pk)
        if factor is None:
            raise _is_off()
        codes = _renewed(factor)
        record_of(actor, "user.recovery_codes_renewed", user, now)
        mails.defer("recovery_codes_renewed", user, actor=actor)
    return codes


def switch_off(*, actor: Actor, user: User, password: str, proof: Proof, now: dt.datetime) -> None:
    """Authenticator, passkeys and recovery codes go. Raises as `prove`, and INVALID_STATE where nothing is on."""
    _must_be_on(user.pk)
    prove(actor=actor, user=user, password=password, proof=proof, now=now)
    with transaction.atomic():
        factor = checking.locked_factor(user.pk)
        if factor is None:
            raise _is_off()
        _off(factor, "user.factor_disabled", actor=actor, user=user, now=now)


@transaction.atomic
def remove(*, actor: Actor, user_id: uuid.UUID, now: dt.datetime) -> bool:
    """Take a lost factor off somebody, as an operator: the password does alone again. False: none is on."""
    factor = checking.locked_factor(user_id)
    if factor is None:
        return False
    _off(factor, "user.factor_removed_by_staff", actor=actor, user=User(pk=user_id), now=now)
    return True


def _off(factor: SecondFactor, action: str, *, actor: Actor, user: User, now: dt.datetime) -> None:
    factor.delete()
    record_of(actor, action, user, now)
    mails.defer("factor_disabled", user, actor=actor)


def _row(user: User) -> SecondFactor:
    """The user's row, locked: of two that make it at once, the second sees the first's."""
    User.objects.select_for_update().get(pk=user.pk)
    factor, _made = SecondFactor.objects.select_for_update().get_or_create(user=user)
    return factor


def _has_authenticator(user_id: uuid.UUID) -> bool:
    factor = checking.factor_of(user_id)
    return factor is not None and bool(factor.secret_sealed)


def _must_be_on(user_id: uuid.UUID) -> None:
    if checking.factor_of(user_id) is None:
        raise _is_off()


def _renewed(factor: SecondFactor) -> list[str]:
    codes = recovery.new_codes()
    factor.recovery_hashes = [recovery.hash_of(code) for code in codes]
    factor.save(update_fields=["recovery_hashes", "updated_at"])
    return codes


def _offer(secret: str, user: User) -> Offer:
    return Offer(secret, totp.uri(secret, name=user.email))


def _is_on() -> DomainError:
    return DomainError("INVALID_STATE", _("An authenticator is on already; remove it first."))


def _is_off() -> DomainError:
    return DomainError("INVALID_STATE", _("No second factor is on."))
