"""Reading users."""

import uuid

from apps.accounts.models import User


def by_email(email: str) -> User | None:
    """The user of an e-mail in any case; None if there is none."""
    try:
        return User.objects.get_by_natural_key(email)
    except User.DoesNotExist:
        return None


def active_user(user_id: uuid.UUID) -> User | None:
    """The user if there and not disabled: asked on every request, so that disabling cuts off at once."""
    return User.objects.filter(pk=user_id, is_active=True).first()
