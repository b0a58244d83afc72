"""Unique by the key, and no longer by PostgreSQL's own idea of "lower". Concurrently, so that nobody waits."""

from django.db import migrations, models

UNIQUE = "CREATE UNIQUE INDEX CONCURRENTLY users_email_key_unique ON users (email_key) WHERE email_key IS NOT NULL"
OLDER = "CREATE UNIQUE INDEX CONCURRENTLY users_email_lower_unique ON users (lower(email))"
# An index whose making was cut short is there, and counts for nothing: it goes first.
DROP_UNIQUE = "DROP INDEX CONCURRENTLY IF EXISTS users_email_key_unique"
DROP_OLDER = "DROP INDEX CONCURRENTLY IF EXISTS users_email_lower_unique"


class Migration(migrations.Migration):
    atomic = False
    dependencies = [("accounts", "0003_email_key_filled")]
    operations = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL([DROP_UNIQUE, UNIQUE], [DROP_UNIQUE])],
            state_operations=[
                migrations.AddConstraint(
                    model_name="user",
                    constraint=models.UniqueConstraint(
                        fields=("email_key",),
                        condition=models.Q(email_key__isnull=False),
                        name="users_email_key_unique",
                    ),
                )
            ],
        ),
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunSQL([DROP_OLDER], [DROP_OLDER, OLDER])],
            state_operations=[migrations.RemoveConstraint(model_name="user", name="users_email_lower_unique")],
        ),
    ]
