"""What the admin's pages share."""

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final

from django.contrib.admin import site
from django.contrib.admin.options import ModelAdmin as AnyAdmin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import reverse
from unfold.admin import ModelAdmin

NAMED_AT_MOST: Final = 50
Act = Callable[[Any, HttpRequest, QuerySet[Any]], Any]


def asks_first(question: str) -> Callable[[Act], Act]:
    """Decorates a list action that cannot be undone: a page shows `question` and the rows, and asks to confirm."""

    def decorate(act: Act) -> Act:
        @wraps(act)
        def asking(self: Any, request: HttpRequest, queryset: QuerySet[Any]) -> Any:
            if request.POST.get("confirmed") == "yes":
                return act(self, request, queryset)
            return are_you_sure(self, request, question, act.__name__, list(queryset))

        return asking

    return decorate


def are_you_sure(
    model_admin: "AnyAdmin[Any]", request: HttpRequest, question: str, action: str, rows: Sequence[Any]
) -> TemplateResponse:
    """The confirmation page. Its form runs the list action `action` again, for these rows only, named by public id."""
    meta = model_admin.model._meta  # noqa: SLF001 - Django's documented model API
    names = [str(row) for row in rows[:NAMED_AT_MOST]]
    context = {
        **site.each_context(request),
        "title": question,
        "question": question,
        "names": names,
        "more": len(rows) - len(names),
        "ids": [str(row.id) for row in rows],
        "action": action,
        "target": reverse(f"admin:{meta.app_label}_{meta.model_name}_changelist"),
        "opts": meta,
    }
    return TemplateResponse(request, "admin/ask_first.html", context)


class ReadOnlyAdmin(ModelAdmin):  # type: ignore[misc]  # unfold is untyped
    """Nothing is added, changed or deleted by forms: what an operator does goes through services."""

    show_full_result_count = False
    list_per_page = 50

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False
