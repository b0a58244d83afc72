"""Metrics for Prometheus, the OpenAPI schema and its page: what is no JSON of the API's own."""

import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.generators import SchemaGenerator

from apps.common.errors import DomainError
from apps.common.http.responses import error_response
from apps.common.observability import metrics
from tunnel.contract import verify_secret

View = Callable[[HttpRequest], HttpResponse]


def _get_only(view: View) -> View:
    """GET and HEAD; any other method is refused in the envelope."""

    @csrf_exempt
    def guarded(request: HttpRequest) -> HttpResponse:
        if request.method not in ("GET", "HEAD"):
            return error_response(request, DomainError("METHOD_NOT_ALLOWED"), {"Allow": "GET, HEAD"})
        return view(request)

    return guarded


@csrf_exempt
def metrics_page(request: HttpRequest) -> HttpResponse:
    """All worker processes together; asks for the internal secret as a bearer token."""
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not verify_secret(secret.strip(), settings.VISIONA["INTERNAL_SECRET"]):
        return error_response(request, DomainError("UNAUTHENTICATED", "The internal secret is missing or wrong."))
    if request.method not in ("GET", "HEAD"):  # after the credential, as everywhere
        return error_response(request, DomainError("METHOD_NOT_ALLOWED"), {"Allow": "GET, HEAD"})
    return HttpResponse(metrics.exposition(), content_type="text/plain; version=0.0.4; charset=utf-8")


_generating: Final = threading.Lock()
"""Two at once would meet in what the library keeps of its extensions."""


def _schema() -> bytes:
    with _generating:
        return _generated()


@cache
def _generated() -> bytes:
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]  # untyped there
    return json.dumps(document, ensure_ascii=False, indent=1).encode()


@_get_only
def schema(request: HttpRequest) -> HttpResponse:
    """The OpenAPI document, made once a process."""
    return HttpResponse(_schema(), content_type="application/json", headers={"Cache-Control": "no-cache"})


@_get_only
def docs(request: HttpRequest) -> HttpResponse:
    """Swagger UI on the schema; all assets are ours."""
    return render(request, "system/docs.html")
