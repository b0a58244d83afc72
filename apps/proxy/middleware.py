"""Lets go of an exchange whose answer never reaches the server, because a middleware failed or answered by itself."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apps.proxy.answer import BoxAnswer


class CarriedMiddleware:
    """Outermost: what it returns is what the server writes, so a box's answer that is not it will never be closed.

    Without it the stream, the client's socket and a place in the gate would be held until the garbage collector comes.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        carried: BoxAnswer | None = getattr(request, "carried", None)
        if carried is not None and carried is not response:
            carried.abandon()
        return response
