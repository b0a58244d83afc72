"""Where a login to the admin stands, in its session: nothing, the password was right, all was.

The session is a new one after each step, so that an id that somebody else put into the browser is worth nothing.
"""

import datetime as dt
import time
from dataclasses import dataclass
from typing import Final

from django.contrib import auth
from django.http import HttpRequest
from django.utils.crypto import constant_time_compare

from apps.accounts.factors import checking
from apps.accounts.models import SecondFactor, User
from apps.audit.services import record
from apps.common.actor import Actor

WITHIN_SECONDS: Final = 600
_PENDING: Final = "second_step"
_PASSED: Final = "second_factor"
_READ: Final = "_visiona_second_factor"
"""Where a request keeps what was read of it: the admin asks at each page and at each of its links."""
_BACKEND: Final = "apps.accounts.backends.AuditedBackend"


@dataclass(frozen=True, slots=True)
class Pending:
    """Somebody whose password was right, and the page that they wanted."""

    user: User
    target: str


def begin(request: HttpRequest, user: User, target: str) -> None:
    """The password was right. Whoever was logged in with this browser is not any more."""
    request.session.flush()
    request.session[_PENDING] = {
        "user": str(user.pk),
        "stamp": user.get_session_auth_hash(),
        "at": time.time(),
        "target": target,
    }


def pending(request: HttpRequest) -> Pending | None:
    """Who is at the second step; None for too late, a password that was changed meanwhile, or who is no staff now."""
    held = request.session.get(_PENDING)
    if held is None or not 0 <= time.time() - held["at"] <= WITHIN_SECONDS:
        return None
    user = User.objects.filter(pk=held["user"], is_active=True, is_staff=True).first()
    if user is None or not constant_time_compare(held["stamp"], user.get_session_auth_hash()):
        return None
    return Pending(user, held["target"])


def enter(request: HttpRequest, user: User, factor: SecondFactor, now: dt.datetime) -> None:
    """All was right: the browser is logged in, with a session of a new id."""
    del request.session[_PENDING]
    auth.login(request, user, backend=_BACKEND)
    mark(request, factor)
    record(
        actor=Actor.of(request),
        action="admin.login",
        object_type="user",
        object_id=str(user.pk),
        detail={"second_factor": True},
        now=now,
    )


def mark(request: HttpRequest, factor: SecondFactor | None) -> None:
    """This session has shown that factor."""
    request.session[_PASSED] = "" if factor is None else str(factor.pk)
    setattr(request, _READ, factor)


def passed(request: HttpRequest) -> bool:
    """Whether the session of who is logged in has shown the factor that they have now, or need have none."""
    user = request.user
    if not isinstance(user, User):
        return False
    if not hasattr(request, _READ):
        setattr(request, _READ, checking.factor_of(user.pk))
    factor: SecondFactor | None = getattr(request, _READ)
    if factor is None:
        return not checking.is_required(user)
    return bool(request.session.get(_PASSED) == str(factor.pk))
