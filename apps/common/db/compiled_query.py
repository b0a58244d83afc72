"""Rows found by ids with the ORM's own SQL, built once: building it takes longer than PostgreSQL needs to answer it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Generic, TypeVar

from django.db import connection
from django.db.models import JSONField, Model, QuerySet

RowT = TypeVar("RowT", bound=Model)


@dataclass(frozen=True, slots=True)
class _Built:
    sql: str
    order: tuple[int, ...]
    """For each parameter of the SQL, in order: the index of the id that it stands for."""
    columns: list[str]
    encoded: tuple[int, ...]
    """Indexes of the columns that arrive as JSON text. Values of all other columns need no conversion."""


class CompiledQuery(Generic[RowT]):
    """A query whose SQL is built once.

    Args:
        make: builds the QuerySet from that many ids; they may enter the SQL as parameters only.
        ids: how many ids `make` and `get` take.
    """

    def __init__(self, make: Callable[..., QuerySet[RowT]], ids: int) -> None:
        self._make: Final = make
        self._ids: Final = ids

    def get(self, *ids: uuid.UUID) -> RowT | None:
        """The row with these ids, None if there is none. One query. Raises the errors of the database."""
        built = self._built
        with connection.cursor() as cursor:
            cursor.execute(built.sql, [ids[index] for index in built.order])
            found = cursor.fetchone()
        if found is None:
            return None
        row = list(found)
        for index in built.encoded:
            row[index] = None if row[index] is None else json.loads(row[index])
        return self._model.from_db(connection.alias, built.columns, row)

    @cached_property
    def _model(self) -> type[RowT]:
        return self._make(*self._stand_ins).model

    @property
    def _stand_ins(self) -> list[uuid.UUID]:
        return [uuid.UUID(int=number) for number in range(self._ids)]

    @cached_property
    def _built(self) -> _Built:
        sql, params = self._make(*self._stand_ins).order_by().query.sql_with_params()
        fields = self._model._meta.concrete_fields  # noqa: SLF001 - Django documents `_meta` as public
        return _Built(
            sql,
            tuple(self._stand_ins.index(param) for param in params),
            [field.attname for field in fields],
            tuple(index for index, field in enumerate(fields) if isinstance(field, JSONField)),
        )
