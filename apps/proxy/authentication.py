"""`?ticket=` in the place of a login, on the routes that browsers reach without headers: `WebSocket` and `<img>`."""

from __future__ import annotations

from django.utils import timezone
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from apps.accounts.models import User
from apps.proxy import access, raw
from apps.proxy.tickets import Ticket
from apps.tunnels.client_request import own_params


class TicketAuthentication(BaseAuthentication):
    """Authenticates by `?ticket=`, on GET alone, without `Authorization`; `request.auth` is the unspent Ticket."""

    def authenticate(self, request: Request) -> tuple[User, Ticket] | None:
        method = request.method
        if method not in ("GET", "HEAD") or request.META.get("HTTP_AUTHORIZATION", "").strip():
            return None
        text = own_params(raw.target_or_nothing(request)).ticket
        return None if text is None else access.ticket_holder(text, method=method, now=timezone.now())

    def authenticate_header(self, request: Request) -> str:
        return 'Bearer realm="visiona"'
