"""The answers to what reaches no view: unknown routes, refused requests, crashes (Django's handlerNNN)."""

import sys
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _
from django.views import csrf, defaults

from apps.common.errors import DomainError
from apps.common.http.error_mapping import domain_error
from apps.common.http.responses import error_response


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """400: a request that Django refused (a bad Host, too many fields)."""
    return error_response(request, domain_error(exception))


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    """403: a page for a person in the admin, the envelope elsewhere."""
    if request.path.startswith("/admin/"):
        return defaults.permission_denied(request, exception)
    return error_response(request, domain_error(exception))


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """403: a page for a person in the admin (whose form grew old), the envelope elsewhere."""
    if request.path.startswith("/admin/"):
        return csrf.csrf_failure(request, reason)
    return error_response(request, DomainError("FORBIDDEN"))


def unknown_route(request: HttpRequest, exception: Exception) -> HttpResponse:
    """404: a page for a person in the admin, the envelope elsewhere."""
    if request.path.startswith("/admin/"):
        return defaults.page_not_found(request, exception)
    return error_response(request, DomainError("NOT_FOUND", _("There is no such route.")))


def crash(request: HttpRequest, *args: Any) -> HttpResponse:
    """500, or the 503 of a part that is down, for what was raised outside DRF."""
    exc = sys.exc_info()[1]
    return error_response(request, domain_error(exc) if exc is not None else DomainError("INTERNAL_ERROR"))
