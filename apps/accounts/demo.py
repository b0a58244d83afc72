"""The demo user, and the static development user of `VISIONA_STATIC_USER_ID` (product.md, "Settings")."""

from typing import Final

from django.conf import settings
from django.db import IntegrityError, transaction

from apps.accounts.models import User
from apps.common.emails import email_key

DEMO_EMAIL: Final = "demo@visionA.local"
DEMO_KEY: Final = email_key(DEMO_EMAIL)
DEMO_NAME: Final = "Demo User"
DEMO_PASSWORD: Final = "visiona-demo"  # noqa: S105 - printed by `make dev`; seeded in development alone
STATIC_TOKEN: Final = "demo-access-token"  # noqa: S105 - the prototype's, public on purpose


def static_user_id() -> str:
    """The text that stands for the demo user's id; empty: there is no static user. Production refuses it at start."""
    text: str = settings.VISIONA["STATIC_USER_ID"]
    return text


def is_demo(user: User) -> bool:
    """Whether it is the demo user, whatever case its e-mail is in."""
    return user.email_key == DEMO_KEY


def public_user_id(user: User) -> str:
    """The user's id as answers show it."""
    return static_user_id() if static_user_id() and is_demo(user) else str(user.pk)


def find_demo_user() -> User | None:
    """The demo user; None if nobody made one."""
    return User.objects.filter(email_key=DEMO_KEY).first()


def ensure_demo_user(*, password: str | None = DEMO_PASSWORD, staff: bool = False) -> User:
    """The demo user, made if absent (of two that make it at once, one does). An existing one is left as it is."""
    user = find_demo_user()
    if user is not None:
        return user
    try:
        with transaction.atomic():
            return User.objects.create_user(DEMO_EMAIL, password, name=DEMO_NAME, is_staff=staff, is_superuser=staff)
    except IntegrityError:
        return User.objects.get_by_natural_key(DEMO_EMAIL)
