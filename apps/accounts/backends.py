"""How staff log in to the admin: Django's own way, with a line in the audit trail."""

from typing import Any

from django.contrib.auth.backends import ModelBackend
from django.http import HttpRequest
from django.utils import timezone

from apps.accounts.attempts import attempt, audited
from apps.accounts.factors.checking import is_asked
from apps.accounts.models import User
from apps.audit.services import record
from apps.common.actor import Actor


class AuditedBackend(ModelBackend):
    """Checks e-mail and password; an unknown e-mail costs a hash too. Who is disabled is refused.

    What fails counts with the failed logins of the API, and over their limits DomainError RATE_LIMITED is the answer.
    Where a second factor is on, or must be, the login is none yet (`apps.accounts.factors.site`).
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> Any:
        if request is None or password is None:
            return super().authenticate(request, username=username, password=password, **kwargs)
        stranger = Actor.of(request)
        with attempt(username or "", stranger.address) as this:
            found = super().authenticate(request, username=username, password=password, **kwargs)
            user = found if isinstance(found, User) else None
            if user is not None:
                this.succeeded()
        record(
            actor=Actor(str(user.pk) if user else "", str(user or ""), stranger.address, stranger.request_id),
            action="admin.login_failed" if user is None else "admin.factor_asked" if is_asked(user) else "admin.login",
            object_type="user",
            object_id=str(user.pk) if user else "",
            detail={} if user else {"email": audited(username or "")},
            now=timezone.now(),
        )
        return found
