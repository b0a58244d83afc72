"""Cursor pages: keyset pagination with the total and absolute links (api.md, "Conventions").

A cursor names the row at the edge of a page, by the ordering's value and the id, so rows that come or go shift no page.
"""

import datetime as dt
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from django.core.exceptions import ValidationError
from django.db.models import DateTimeField, Q, QuerySet
from django.utils.translation import gettext as _
from rest_framework.request import Request

from apps.common.errors import DomainError, invalid
from apps.common.moments import read_moment

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200
CURSOR_PATTERN: Final = r"^[np](?:[0-9a-f]{2}){16,1024}$"
"""`n` or `p` (next, previous), then hex. What breaks it is a bad value; what keeps it but means nothing, no page. Room
for the longest that a list goes by: a name of 200 characters, of 4 bytes each."""
Meta = dict[str, Any]
First = Callable[[tuple[str, ...], int], list[Any]]
Rows = QuerySet[Any] | Callable[[], QuerySet[Any]]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The row at an edge: `value` of the ordering field and `id`; `back`: the page that ends before it is meant."""

    ordering: str
    value: str
    id: str
    back: bool

    def encode(self) -> str:
        # PostgreSQL's texts hold no NUL. Of JSON a character may take 12 bytes, more than CURSOR_PATTERN has room for.
        raw = "\0".join((self.ordering, self.value, self.id)).encode()
        return ("p" if self.back else "n") + raw.hex()

    @classmethod
    def decode(cls, text: str, ordering: str) -> "Cursor":
        """The cursor in `text`, which has CURSOR_PATTERN. Raises DomainError NOT_FOUND for one that we did not make."""
        try:
            made_for, value, row_id = bytes.fromhex(text[1:]).decode().split("\0")
            cursor = cls(made_for, value, str(uuid.UUID(row_id)), text[0] == "p")
        except ValueError:
            raise _no_such_page() from None
        if cursor.ordering != ordering:
            raise invalid(cursor=_("This cursor was made for another ordering."))
        return cursor

    @classmethod
    def at(cls, row: Any, ordering: str, *, back: bool) -> "Cursor":
        value = getattr(row, ordering.lstrip("-"))
        text = value.isoformat() if isinstance(value, dt.datetime) else str(value)
        return cls(ordering, text, str(row.id), back)


def paginate(
    request: Request,
    rows: Rows,
    *,
    limit: int,
    ordering: str,
    cursor: str | None,
    first: First | None = None,
) -> tuple[list[Any], Meta]:
    """One page of a query set, in order, and the envelope's `meta`. Two queries; one if the first page holds all.

    Args:
        rows: all of them, or what brings them: with `first` they may not be needed, and building a query takes time.
        limit: rows a page, already checked (1 to MAX_LIMIT).
        ordering: a field that is never null, `-` before it for descending; ties are broken by `id`.
        cursor: as it came in the query; None or empty: the first page.
        first: brings the first so many of `rows` at less cost, given the arguments of `order_by` and how many.
    """
    field, descending = ordering.lstrip("-"), ordering.startswith("-")

    def whole() -> QuerySet[Any]:
        return rows() if callable(rows) else rows

    def fetch(place: Cursor | None, count: int) -> list[Any]:
        falling = descending is not (place is not None and place.back)
        sign, side = ("-", "lt") if falling else ("", "gt")
        order = (sign + field, sign + "id")
        if place is None and first is not None:
            return first(order, count)
        window = whole().order_by(*order)
        if place is not None:
            try:
                value = _value(window, field, place.value)
                tie = Q(**{field: value, f"id__{side}": place.id})
                window = window.filter(Q(**{f"{field}__{side}": value}) | tie)
            except (ValidationError, ValueError, OverflowError):
                raise _no_such_page() from None
        return list(window[:count])

    return _page(request, fetch, count=lambda: whole().count(), limit=limit, ordering=ordering, cursor=cursor)


def paginate_list(
    request: Request, rows: Sequence[Any], *, limit: int, ordering: str, cursor: str | None
) -> tuple[list[Any], Meta]:
    """As `paginate`, for rows in memory that have `id` and the ordering's field, a datetime."""
    field, descending = ordering.lstrip("-"), ordering.startswith("-")

    def key(row: Any) -> tuple[Any, str]:
        return getattr(row, field), str(row.id)

    def fetch(place: Cursor | None, count: int) -> list[Any]:
        falling = descending is not (place is not None and place.back)
        ordered = sorted(rows, key=key, reverse=falling)
        if place is None:
            return ordered[:count]
        try:
            edge = (read_moment(place.value), place.id)
            return [row for row in ordered if (key(row) < edge if falling else key(row) > edge)][:count]
        except (ValueError, TypeError):
            raise _no_such_page() from None

    return _page(request, fetch, count=lambda: len(rows), limit=limit, ordering=ordering, cursor=cursor)


def _value(rows: QuerySet[Any], field: str, text: str) -> Any:
    """What a cursor's text stands for in a field. Raises ValueError for a moment that no row of ours can have."""
    is_moment = isinstance(rows.model._meta.get_field(field), DateTimeField)  # noqa: SLF001 - Django's own way
    return read_moment(text) if is_moment else text


def _page(
    request: Request,
    fetch: Callable[[Cursor | None, int], list[Any]],
    *,
    count: Callable[[], int],
    limit: int,
    ordering: str,
    cursor: str | None,
) -> tuple[list[Any], Meta]:
    """The page that `fetch` brings, put in order, and its links. One row more than `limit` tells if there is more."""
    place = Cursor.decode(cursor, ordering) if cursor else None
    back = place is not None and place.back
    found = fetch(place, limit + 1)
    more, found = len(found) > limit, found[:limit]
    if back:
        found.reverse()
    has_next, has_previous = (True, more) if back else (more, place is not None)
    return found, {
        "total": len(found) if place is None and not more else count(),
        "next": _link(request, Cursor.at(found[-1], ordering, back=False)) if found and has_next else None,
        "previous": _link(request, Cursor.at(found[0], ordering, back=True)) if found and has_previous else None,
    }


def _link(request: Request, cursor: Cursor) -> str:
    query = {**request.query_params.dict(), "cursor": cursor.encode()}
    return request.build_absolute_uri(f"{request.path}?{urlencode(query)}")


def _no_such_page() -> DomainError:
    return DomainError("NOT_FOUND", _("There is no such page: take the cursor from meta.next or meta.previous."))
