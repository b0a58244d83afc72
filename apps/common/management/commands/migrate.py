"""Django's `migrate`, safe under two processes at once, and never on the prototype's database."""

from contextlib import closing
from typing import Any, Final

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections

LOCK_KEY: Final = 0x76697369  # "visi": one key of advisory locks for all migrations of a database

PROTOTYPE: Final = (
    "this database holds the prototype's own tables (schema_migrations of golang-migrate, no django_migrations): "
    "name an empty one in VISIONA_DB_NAME"
)


class Command(migrate.Command):
    """Takes an advisory lock on a connection of its own first; who waits for it finds nothing left to do."""

    def handle(self, *args: Any, **options: Any) -> None:
        wrapper: Any = connections[options["database"]]
        refuse_prototype(wrapper)
        if options["check_unapplied"] or options["plan"]:
            super().handle(*args, **options)
            return
        holder = wrapper.copy()
        with closing(holder):
            holder.make_patient()
            holder.set_autocommit(
                False
            )  # a transaction's lock: behind a pooler a session is another's with the next one
            with holder.cursor() as cursor:
                cursor.execute("SET LOCAL lock_timeout = 0")
                cursor.execute("SELECT pg_advisory_xact_lock(%s)", [LOCK_KEY])
            super().handle(*args, **options)  # the lock ends with the holder's connection


def refuse_prototype(wrapper: Any) -> None:
    """Raises CommandError for a database of the Go prototype."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migrations'), to_regclass('django_migrations')")
        theirs, ours = cursor.fetchone()
    if theirs is not None and ours is None:
        raise CommandError(PROTOTYPE)
