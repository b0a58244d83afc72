"""Reading users."""

import uuid
from functools import cache

from django.db import connection

from apps.accounts.models import User


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
    sql, columns = _active_user_query()
    with connection.cursor() as cursor:
        cursor.execute(sql, [user_id])
        row = cursor.fetchone()
    return User.from_db(connection.alias, columns, row) if row is not None else None


@cache
def _active_user_query() -> tuple[str, list[str]]:
    """The ORM's own SQL, built once: building it takes longer than PostgreSQL needs to answer it.

    Its one parameter is the id. None of a user's columns is converted on the way (a JSON column would be).
    """
    sql, _ = User.objects.filter(pk=uuid.UUID(int=0), is_active=True).order_by().query.sql_with_params()
    fields = User._meta.concrete_fields  # noqa: SLF001 - Django documents `_meta` as public
    return sql, [field.attname for field in fields]
