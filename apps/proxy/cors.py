"""CORS on port 3721: preflights, and the fields by which pages of other origins may read an answer.

What is said is `tunnel.contract`'s, for the daemon too; of a box's answer `tunnel.http` adds what may be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import patch_vary_headers

from apps.proxy import origins
from apps.proxy.middleware import is_of_box
from tunnel.contract import EXPOSED, preflight_fields

_PATHS: Final = re.compile(r"/(api|storage|d|ws)(/|\Z)")
_EXPOSED: Final = ", ".join(EXPOSED)


class CorsMiddleware:
    """Answers preflights, which need no credential and reach no view, and adds CORS fields to other answers."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if _PATHS.match(request.path_info) is None:
            return self.get_response(request)
        meta = request.META
        origin: str = meta.get("HTTP_ORIGIN", "")
        may = bool(origin) and origins.listed().allow(origin)
        if request.method == "OPTIONS" and meta.get("HTTP_ACCESS_CONTROL_REQUEST_METHOD"):
            return self._preflight(request, origin if may else "")
        response = self.get_response(request)
        patch_vary_headers(response, ("Origin",))
        if may:
            response["Access-Control-Allow-Origin"] = origin
            response["Access-Control-Expose-Headers"] = _EXPOSED
        return response

    @staticmethod
    def _preflight(request: HttpRequest, origin: str) -> HttpResponse:
        response = HttpResponse(headers={"Content-Length": "0"})
        del response["Content-Type"]  # of a page, which it is not: it would have a page's policy
        patch_vary_headers(response, ("Origin",))
        if origin:
            method = request.META["HTTP_ACCESS_CONTROL_REQUEST_METHOD"]
            names = request.META.get("HTTP_ACCESS_CONTROL_REQUEST_HEADERS", "")
            for name, value in preflight_fields(origin, method, names, of_box=is_of_box(request.path_info)):
                response[name] = value
        return response
