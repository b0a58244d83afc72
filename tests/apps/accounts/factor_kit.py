"""Switches second factors on, and reads codes as an authenticator would."""

from django.utils import timezone

from apps.accounts.factors import owner, totp
from apps.accounts.models import SecondFactor, User
from apps.common.actor import Actor


def on(user: User) -> tuple[str, list[str]]:
    """The user's factor is on: the secret in their authenticator, and the recovery codes."""
    offer, now = owner.offer(user=user), timezone.now()
    code = totp.code_of(offer.secret, seconds=now.timestamp())
    _factor, codes = owner.confirm(actor=Actor.system(), user=user, code=code, now=now)
    return offer.secret, codes


def next_code(secret: str) -> str:
    """A code that nobody has spent: of the first step that is still good and comes after the last one that was."""
    last = SecondFactor.objects.get().last_step
    return totp.code_of(secret, seconds=(last + 1) * totp.STEP_SECONDS)


def code_for(secret: str) -> str:
    """What an authenticator that was given this secret shows now."""
    return totp.code_of(secret, seconds=timezone.now().timestamp())
