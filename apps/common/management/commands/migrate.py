"""Django's `migrate`, safe under two processes at once, and never on the prototype's database."""

import time
from contextlib import closing
from typing import Any, Final

from django.core.management.base import CommandError
from django.core.management.commands import migrate
from django.db import connections

LOCK_KEY: Final = 0x76697369  # "visi": one key of advisory locks for all migrations of a database
_LOOK_SECONDS: Final = 0.2

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
            # a transaction's lock: behind a pooler a session is another's with the next one
            holder.set_autocommit(False)
            with holder.cursor() as cursor:
                take_turn(cursor)
            super().handle(*args, **options)  # the lock ends with the holder's connection


def take_turn(cursor: Any) -> None:
    """Take the lock for as long as the cursor's transaction lasts, when whoever has it is done.

    Asked for again and again: a statement that waits has a snapshot while it does, and `CREATE INDEX CONCURRENTLY`, of
    the one that migrates, waits for all of those to go. Each would wait for the other.
    """
    cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    while True:
        cursor.execute("SELECT pg_try_advisory_xact_lock(%s)", [LOCK_KEY])
        if cursor.fetchone() == (True,):
            return
        time.sleep(_LOOK_SECONDS)


def refuse_prototype(wrapper: Any) -> None:
    """Raises CommandError for a database of the Go prototype."""
    with wrapper.cursor() as cursor:
        cursor.execute("SELECT to_regclass('schema_migrations'), to_regclass('django_migrations')")
        theirs, ours = cursor.fetchone()
    if theirs is not None and ours is None:
        raise CommandError(PROTOTYPE)
