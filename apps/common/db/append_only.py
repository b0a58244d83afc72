"""Tables that are only ever appended to, held by triggers: no update, and no delete or truncate but by retention.

Retention lifts the triggers for the length of its own transaction (`lifted`), by a setting that PostgreSQL drops at the
transaction's end.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pgtrigger
from django.db import connection, transaction
from django.db.models import QuerySet

BATCH: Final = 1000
"""Rows a transaction of retention: short enough for every deadline, and for those who wait for its locks."""
LIFT: Final = "SET LOCAL visiona.retention = 'on'"
_FALL: Final = "SET LOCAL visiona.retention = 'off'"

TRIGGERS: Final = (
    pgtrigger.Protect(name="append_only", operation=pgtrigger.Update),
    pgtrigger.Trigger(
        name="kept",
        level=pgtrigger.Statement,
        when=pgtrigger.Before,
        operation=pgtrigger.Delete | pgtrigger.Truncate,
        func="""
            IF current_setting('visiona.retention', true) IS DISTINCT FROM 'on' THEN
                RAISE EXCEPTION 'the table % is append-only', TG_TABLE_NAME;
            END IF;
            RETURN NULL;
        """,
    ),
)
"""For the `triggers` of a model's Meta."""


@contextmanager
def lifted() -> Iterator[None]:
    """A transaction of its own in which rows of append-only tables may be deleted."""
    with transaction.atomic(durable=True), connection.cursor() as cursor:
        cursor.execute(LIFT)
        yield
        cursor.execute(_FALL)


def purge(rows: "QuerySet[Any]", *, batch: int = BATCH) -> int:
    """Deletes `rows` for good, with the rows that cascade from them, a transaction a batch. Returns how many rows.

    Safe to run on several hosts at once: rows that another host has locked are skipped.
    """
    total = 0
    while True:
        with lifted():
            locked = rows.order_by("pk").select_for_update(skip_locked=True, of=("self",))
            doomed = list(locked.values_list("pk", flat=True)[:batch])
            if doomed:
                rows.model._default_manager.filter(pk__in=doomed).delete()  # noqa: SLF001 - documented by Django
        total += len(doomed)
        if len(doomed) < batch:
            return total
