"""Switching a second factor on and off, renewing its recovery codes; removing one that was lost."""

import datetime as dt
import uuid
from dataclasses import dataclass

from django.db import transaction
from django.utils.translation import gettext_lazy as _

from apps.accounts.attempts import attempt
from apps.accounts.credentials import check_password
from apps.accounts.factors import checking, recovery, totp
from apps.accounts.factors.checking import SEALED_FOR, record_of
from apps.accounts.models import SecondFactor, User
from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.common.sealing import Unreadable, seal, unseal


@dataclass(frozen=True, slots=True)
class Offer:
    """What an authenticator is given; it is shown to the owner, until a code has shown that it took it."""

    secret: str
    uri: str


def begin(*, actor: Actor, user: User, password: str, now: dt.datetime) -> Offer:
    """A new secret, on the password. Raises INVALID_CREDENTIALS, RATE_LIMITED, and INVALID_STATE where a factor is on,
    or where there is no password that it could stand beside."""
    if not user.has_usable_password():
        raise DomainError("INVALID_STATE", _("This account logs in with its identity provider; it has no password."))
    check_password(actor=actor, user=user, password=password, now=now)
    return offer(user=user)


@transaction.atomic
def offer(*, user: User) -> Offer:
    """A new secret for somebody whose password was checked; it takes the place of one that was not confirmed."""
    User.objects.select_for_update().get(pk=user.pk)  # of two at once, the second sees the first's
    if checking.factor_of(user.pk) is not None:
        raise _is_on()
    SecondFactor.objects.filter(user=user).delete()
    secret = totp.new_secret()
    SecondFactor.objects.create(user=user, secret_sealed=seal(secret, purpose=SEALED_FOR))
    return _offer(secret, user)


def offered(*, user: User) -> Offer | None:
    """The secret that waits for its first code; None if none does."""
    row = SecondFactor.objects.filter(user=user, confirmed_at__isnull=True).first()
    try:
        return None if row is None else _offer(unseal(row.secret_sealed, purpose=SEALED_FOR), user)
    except Unreadable:
        return None


def confirm(*, actor: Actor, user: User, code: str, now: dt.datetime) -> tuple[SecondFactor, list[str]]:
    """Switch it on by the authenticator's first code; with the recovery codes, to be shown once.

    Raises INVALID_CREDENTIALS, RATE_LIMITED, and INVALID_STATE where nothing was begun or a factor is on.
    """
    with attempt(user.email, actor.address) as this:
        with transaction.atomic():
            factor = SecondFactor.objects.select_for_update().filter(user=user).first()
            if factor is not None and factor.confirmed_at is not None:
                this.succeeded()
                raise _is_on()
            if factor is None:
                this.succeeded()
                raise DomainError("INVALID_STATE", _("Begin anew: there is no secret that waits for its first code."))
            refused, codes = checking.stepped(factor, code, now), []
            if refused is None:
                codes = _renewed(factor)
                factor.confirmed_at = now
                factor.save(update_fields=["confirmed_at", "updated_at"])
                record_of(actor, "user.factor_enabled", user, now)
        if refused is not None:
            raise refused
        this.succeeded()
    return factor, codes


def renew(*, actor: Actor, user: User, password: str, code: str, now: dt.datetime) -> list[str]:
    """New recovery codes, to be shown once; those before are void. On password and code, as `switch_off`."""
    _proved(actor, user, password, code, now)
    with transaction.atomic():
        factor = SecondFactor.objects.select_for_update().filter(user=user, confirmed_at__isnull=False).first()
        if factor is None:
            raise _is_off()
        codes = _renewed(factor)
        record_of(actor, "user.recovery_codes_renewed", user, now)
    return codes


def switch_off(*, actor: Actor, user: User, password: str, code: str, now: dt.datetime) -> None:
    """Raises INVALID_CREDENTIALS, SECOND_FACTOR_REQUIRED, RATE_LIMITED, and INVALID_STATE where none is on."""
    _proved(actor, user, password, code, now)
    with transaction.atomic():
        if not SecondFactor.objects.filter(user=user, confirmed_at__isnull=False).delete()[0]:
            raise _is_off()
        record_of(actor, "user.factor_disabled", user, now)


@transaction.atomic
def remove(*, actor: Actor, user_id: uuid.UUID, now: dt.datetime) -> bool:
    """Take a lost factor off somebody, as an operator: the password does alone again. False: none is on."""
    removed = SecondFactor.objects.filter(user_id=user_id, confirmed_at__isnull=False).delete()[0]
    if removed:
        record_of(actor, "user.factor_removed_by_staff", User(pk=user_id), now)
    return bool(removed)


def _proved(actor: Actor, user: User, password: str, code: str, now: dt.datetime) -> None:
    if checking.factor_of(user.pk) is None:
        raise _is_off()
    check_password(actor=actor, user=user, password=password, now=now)
    checking.check(actor=actor, user=user, code=code, now=now)


def _renewed(factor: SecondFactor) -> list[str]:
    codes = recovery.new_codes()
    factor.recovery_hashes = [recovery.hash_of(code) for code in codes]
    factor.save(update_fields=["recovery_hashes", "updated_at"])
    return codes


def _offer(secret: str, user: User) -> Offer:
    return Offer(secret, totp.uri(secret, name=user.email))


def _is_on() -> DomainError:
    return DomainError("INVALID_STATE", _("A second factor is on already; switch it off first."))


def _is_off() -> DomainError:
    return DomainError("INVALID_STATE", _("No second factor is on."))
