"""Reading users."""

import uuid
from typing import Final

from apps.accounts.models import User
from apps.common.kept import KeptQuery


def by_email(email: str) -> User | None:
    """The user of an e-mail in any case; None if there is none."""
    try:
        return User.objects.get_by_natural_key(email)
    except User.DoesNotExist:
        return None


def by_identity(issuer: str, subject: str) -> User | None:
    """The user that an OpenID provider's subject is linked to, disabled or not; None if there is none."""
    return User.objects.filter(oidc_issuer=issuer, oidc_subject=subject).exclude(oidc_subject="").first()


def active_user(user_id: uuid.UUID) -> User | None:
    """The user if there and not disabled: asked on every request, so that disabling cuts off at once."""
    return _ACTIVE.get(user_id)


_ACTIVE: Final = KeptQuery(lambda user_id: User.objects.filter(pk=user_id, is_active=True), ids=1)
