"""The envelope of every answer (api.md, "Conventions")."""

import json
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from rest_framework.response import Response

from apps.common.errors import DomainError
from tunnel.contract import error_envelope, request_id_from

JSON_TYPE: Final = "application/json"


def ok(data: Any = None, *, status: int = 200, meta: dict[str, Any] | None = None) -> Response:
    """The success envelope as a DRF Response; `meta` is a list's `{total, next, previous}`."""
    body: dict[str, Any] = {"success": True, "data": data}
    if meta is not None:
        body["meta"] = meta
    return Response(body, status=status)


def request_id_of(request: HttpRequest) -> str:
    """The request's id; a new one for a request that failed before the middleware gave it one."""
    return getattr(request, "request_id", "") or request_id_from(request.META.get("HTTP_X_REQUEST_ID"))


def error_headers(error: DomainError) -> dict[str, str]:
    """The headers that belong to a refusal: its own, `Retry-After`, and the scheme to log in with on 401."""
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="visiona"'
    return headers


def error_response(request: HttpRequest, error: DomainError, headers: dict[str, str] | None = None) -> HttpResponse:
    """The error envelope as a plain Django response, for views and middleware outside DRF."""
    body = error_envelope(error.code, error.message, request_id_of(request), error.details)
    return HttpResponse(
        json.dumps(body, ensure_ascii=False).encode(),
        status=error.status,
        content_type=JSON_TYPE,
        headers={**error_headers(error), **(headers or {})},
    )
