"""Which pages may use tickets and WebSockets, which a browser sends without asking by CORS (api.md, "Tickets").

A browser opens a WebSocket or loads an image without a preflight, and no CORS field keeps a page from the answer; only
the `Origin` header tells whose page it is. This module knows settings and text, no request.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from django.conf import settings
from django.utils.translation import gettext as _

from apps.common.errors import DomainError

_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}


def require_allowed(origin: str, host: str) -> None:
    """Raise DomainError FORBIDDEN unless the page may.

    Args:
        origin: the `Origin` header; empty if absent: no browser's page, or one of the same origin.
        host: the `Host` header of the same request.
    """
    if origin and not is_allowed(origin, host):
        raise DomainError(
            "FORBIDDEN", _("Pages of this origin may not; VISIONA_CORS_ALLOWED_ORIGINS names those that may.")
        )


def is_allowed(origin: str, host: str) -> bool:
    """Whether `origin` is in the CORS list, that of PUBLIC_URL or TUNNEL_PUBLIC_URL, or the request's own host.

    The scheme of the own host is not compared: behind a proxy that ends TLS nobody here knows it.
    """
    asked = _normal(origin)
    if asked is None:
        return False
    values = settings.VISIONA
    named = (*values["CORS_ALLOWED_ORIGINS"], values["PUBLIC_URL"], values["TUNNEL_PUBLIC_URL"])
    if asked in {_normal(each) for each in named}:
        return True
    scheme, _, _ = asked
    return bool(host) and asked == _normal(f"{scheme}://{host}")


def _normal(url: str) -> tuple[str, str, int] | None:
    """Scheme, host and port; None for what is no origin (`null`, a malformed one)."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
        return None
    return scheme, parts.hostname, port if port is not None else _PORTS[scheme]
