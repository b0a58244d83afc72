"""Reading users."""

import uuid
from typing import Final

from django.db.models import QuerySet

from apps.accounts.models import User, UserIdentity
from apps.common.db.compiled_query import CompiledQuery


def by_email(email: str) -> User | None:
    """The user of an e-mail in any case; None if there is none."""
    try:
        return User.objects.get_by_natural_key(email)
    except User.DoesNotExist:
        return None


def by_identity(issuer: str, subject: str) -> UserIdentity | None:
    """The identity of an OpenID provider's subject with its user, disabled or not; None if there is none. One query."""
    return UserIdentity.objects.select_related("user").filter(issuer=issuer, subject=subject).first()


def identities_of(user: User) -> QuerySet[UserIdentity]:
    """Who the user is at providers."""
    return UserIdentity.objects.filter(user=user)


def active_user(user_id: uuid.UUID) -> User | None:
    """The user if there and not disabled: asked on every request, so that disabling cuts off at once."""
    return _ACTIVE.get(user_id)


_ACTIVE: Final = CompiledQuery(lambda user_id: User.objects.filter(pk=user_id, is_active=True), ids=1)
