"""The site's routes and some that fail in ways that no good view does."""

import psycopg
import redis.exceptions
from django.core.exceptions import PermissionDenied, SuspiciousOperation
from django.db import InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse
from django.urls import path
from rest_framework.request import Request
from rest_framework.response import Response

from apps.common.api.views import PublicApiView
from apps.common.errors import DomainError
from cloud.urls import handler400, handler403, handler404, handler500
from cloud.urls import urlpatterns as site

__all__ = ["handler400", "handler403", "handler404", "handler500", "urlpatterns"]


def _operational(sqlstate: str | None) -> OperationalError:
    cause = psycopg.OperationalError("secret-host refused secret-password")
    if sqlstate is not None:
        cause.sqlstate = sqlstate  # type: ignore[misc]  # read-only in the stubs
    error = OperationalError("secret-host refused secret-password")
    error.__cause__ = cause
    return error


FAILURES = {
    "crash": (RuntimeError("secret detail"), 500, "INTERNAL_ERROR"),
    "gone": (_operational(None), 503, "DATABASE_UNAVAILABLE"),
    "closed": (InterfaceError("connection already closed"), 503, "DATABASE_UNAVAILABLE"),
    "locked": (_operational("55P03"), 503, "OVERLOADED"),
    "slow": (_operational("57014"), 503, "OVERLOADED"),
    "cache": (redis.exceptions.ConnectionError("secret-host refused"), 503, "CACHE_UNAVAILABLE"),
    "cache-slow": (redis.exceptions.TimeoutError("secret"), 503, "CACHE_UNAVAILABLE"),
    "missing": (Http404("secret"), 404, "NOT_FOUND"),
    "denied": (PermissionDenied("secret"), 403, "FORBIDDEN"),
    "suspicious": (SuspiciousOperation("secret"), 400, "BAD_REQUEST"),
    "domain": (DomainError("RATE_LIMITED", retry_after=7), 429, "RATE_LIMITED"),
}


class FailingView(PublicApiView):
    def get(self, request: Request, kind: str) -> Response:
        raise FAILURES[kind][0]


def failing(request: HttpRequest, kind: str) -> HttpResponse:
    raise FAILURES[kind][0]


urlpatterns = [
    *site,
    path("api/test/<str:kind>", FailingView.as_view()),
    path("plain/<str:kind>", failing),
]
