"""Middleware for proxied routes: any `Host` that a box takes is let in; a box's dropped answer is closed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from django.conf import settings
from django.http import HttpRequest, HttpResponsePermanentRedirect
from django.http.response import HttpResponseBase
from django.middleware.common import CommonMiddleware

from apps.proxy.exchanges.carried import Carried

_OF_BOXES: Final = re.compile(
    r"/(?:api/(?:devices/(?:scan|[^/]+/proxy)|clusters/[^/]+/proxy|cameras|inference)|ws)(?:/|\Z)"
)


def is_of_box(path: str) -> bool:
    """Whether a path is one of a box's routes."""
    return _OF_BOXES.match(path) is not None


class HostMiddleware(CommonMiddleware):
    """Django's, which checks `Host`; not on routes of boxes.

    There the name is the box's business, and any is taken that an HTTP server takes (one with `_`, an empty one), as on
    the fast lane: who asks shows a token or a ticket, which no page has by being reached under another name. Where
    callers need none (`VISIONA_STATIC_USER_ID`), the check stays.
    """

    def process_request(self, request: HttpRequest) -> HttpResponsePermanentRedirect | None:
        """Raises DisallowedHost."""
        if is_of_box(request.path_info) and not settings.VISIONA["STATIC_USER_ID"]:
            return None
        return super().process_request(request)


class CarriedMiddleware:
    """Outermost middleware. It closes a box's answer that another middleware replaced, which the server never would.

    Without it the stream, the client's socket and a place in the gate would be held until the garbage collector comes.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        carried: Carried | None = getattr(request, "carried", None)
        if carried is not None and carried is not response:
            carried.abandon()
        return response
