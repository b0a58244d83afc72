"""What a login is asked for besides the password, and how often one may be wrong."""

import datetime as dt
import re
import uuid
from contextlib import suppress
from typing import Final

import structlog
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext_lazy as _

from apps.accounts import mails
from apps.accounts.attempts import attempt
from apps.accounts.factors import recovery, totp, webauthn
from apps.accounts.factors.webauthn import Answer
from apps.accounts.models import SecondFactor, User
from apps.audit.services import record
from apps.common.actor import Actor
from apps.common.errors import DomainError
from apps.common.sealing import Unreadable, reseal, unseal

logger = structlog.get_logger(__name__)

Proof = str | Answer
"""What is shown besides the password: a typed code (empty: nothing), or what a passkey has signed."""
SEALED_FOR: Final = "second factor"
PATIENCE: Final = 5
"""Wrong codes in a row before one has to wait; then 2 s, 4 s, … between them."""
LONGEST_WAIT: Final = 3600
"""So whoever has the password guesses a code in six digits with a chance of 1 : 14 000 a day, from however many
addresses. The owner's recovery codes are taken all the while."""


def factor_of(user_id: uuid.UUID) -> SecondFactor | None:
    """The user's factor, if it is on."""
    return SecondFactor.objects.filter(user_id=user_id, confirmed_at__isnull=False).first()


def locked_factor(user_id: uuid.UUID) -> SecondFactor | None:
    """As `factor_of`, its row locked until the caller's transaction ends."""
    return SecondFactor.objects.select_for_update().filter(user_id=user_id, confirmed_at__isnull=False).first()


def is_required(user: User) -> bool:
    """Whether the user must have one to use the admin."""
    return bool(user.is_staff and settings.VISIONA["REQUIRE_STAFF_MFA"])


def is_asked(user: User) -> bool:
    """Whether the password alone does not open the admin."""
    return is_required(user) or factor_of(user.pk) is not None


def refusal(*, actor: Actor, user: User, proof: Proof, now: dt.datetime) -> DomainError | None:
    """Why this proof does not do; None if it does (it is spent then), or if the user has no factor.

    SECOND_FACTOR_REQUIRED without one, INVALID_CREDENTIALS for a wrong or spent one, RATE_LIMITED after too many.
    The row is locked: of two logins with one code, one succeeds. Call it within an `attempt`.
    """
    if factor_of(user.pk) is None:
        return None
    with transaction.atomic():
        factor = locked_factor(user.pk)
        if factor is None:
            return None
        if isinstance(proof, Answer):
            return _signed(factor, actor, user, proof, now)
        if not proof.strip():
            return DomainError("SECOND_FACTOR_REQUIRED", details={"methods": methods(factor)})
        return None if _recovered(factor, actor, user, proof, now) else stepped(factor, proof, now)


def methods(factor: SecondFactor) -> list[str]:
    """What would do, the usual way first."""
    found = ["passkey"] if factor.passkeys.exists() else []
    if factor.secret_sealed:
        found.append("authenticator")
    return [*found, "recovery_code"] if factor.recovery_hashes else found


def check(*, actor: Actor, user: User, proof: Proof, now: dt.datetime) -> None:
    """As `refusal`, counted with the failed logins. Raises what it tells, and RATE_LIMITED by those."""
    with attempt(user.email, actor.address) as this:
        refused = refusal(actor=actor, user=user, proof=proof, now=now)
        if refused is None or refused.code == "SECOND_FACTOR_REQUIRED":
            this.succeeded()
    if refused is not None:
        if refused.code != "SECOND_FACTOR_REQUIRED":
            record_of(actor, "user.factor_refused", user, now)
        raise refused


def stepped(factor: SecondFactor, code: str, now: dt.datetime, *, offered: bool = False) -> DomainError | None:
    """As `refusal`, of the authenticator's code and a locked row, which is saved.

    Args:
        offered: whether it is the first code, of the secret that waits for one.
    """
    sealed = factor.offered_sealed if offered else factor.secret_sealed
    if not sealed:
        return wrong()
    if factor.locked_until is not None and now < factor.locked_until:
        wait = factor.locked_until - now
        return DomainError("RATE_LIMITED", retry_after=max(1, round(wait.total_seconds())))
    step = None
    try:
        secret = unseal(sealed, purpose=SEALED_FOR)
    except Unreadable:
        logger.warning("second_factor_unreadable", user=str(factor.user_id))
    else:
        typed = re.sub(r"[\s-]", "", code)
        step = totp.step_of(secret, typed, seconds=now.timestamp(), after=factor.last_step)
    if step is None:
        factor.failures += 1
        over = factor.failures - PATIENCE
        if over >= 0:
            wait = dt.timedelta(seconds=min(LONGEST_WAIT, 2 ** min(over + 1, 16)))
            factor.locked_until = now + wait
    else:
        factor.last_step, factor.failures, factor.locked_until = step, 0, None
    factor.save(update_fields=["last_step", "failures", "locked_until", "updated_at"])
    return wrong() if step is None else None


def wrong() -> DomainError:
    """The refusal of a code."""
    text = _("The code is wrong or was used already; take the next one of your authenticator, or a recovery code.")
    return DomainError("INVALID_CREDENTIALS", text, details={"code": [str(text)]})


def wrong_passkey(field: str = "passkey") -> DomainError:
    """The refusal of what a browser brought back in that field."""
    text = _("The passkey's answer does not hold; begin anew.")
    return DomainError("INVALID_CREDENTIALS", text, details={field: [str(text)]})


def record_of(actor: Actor, action: str, user: User, now: dt.datetime, **detail: object) -> None:
    """An audit row about a user's factor; where nobody is logged in the user is who acts."""
    who = actor
    if not actor.user_id:
        who = Actor(str(user.pk), user.email, actor.address, actor.request_id)
    record(actor=who, action=action, object_type="user", object_id=str(user.pk), detail=detail, now=now)


def reseal_secrets() -> int:
    """Seal each secret with the newest key, so that an older one may leave `SECRET_KEY`. Returns how many changed."""
    changed = 0
    for column in ("secret_sealed", "offered_sealed"):
        for pk, sealed in SecondFactor.objects.exclude(**{column: ""}).values_list("pk", column).iterator():
            with suppress(Unreadable):  # a login with it tells so
                anew = reseal(sealed, purpose=SEALED_FOR)
                if anew != sealed:
                    changed += SecondFactor.objects.filter(pk=pk, **{column: sealed}).update(**{column: anew})
    return changed


def _recovered(factor: SecondFactor, actor: Actor, user: User, code: str, now: dt.datetime) -> bool:
    """Whether it is a recovery code: it is spent then, and may be used while the authenticator's must wait."""
    rest = recovery.spend(factor.recovery_hashes, code)
    if rest is None:
        return False
    factor.recovery_hashes = rest
    factor.save(update_fields=["recovery_hashes", "updated_at"])
    record_of(actor, "user.recovery_code_used", user, now, left=len(rest))
    mails.defer("recovery_code_used", user, actor=actor)
    return True


def _signed(factor: SecondFactor, actor: Actor, user: User, answer: Answer, now: dt.datetime) -> DomainError | None:
    """Of a passkey. One whose counter went back was copied, or somebody replays: the owner has to know."""
    why = webauthn.used(answer, factor=factor, now=now)
    if why == "counter":
        record_of(actor, "user.passkey_counter_refused", user, now)
    return wrong_passkey() if why else None
