"""Which pages may use tickets and WebSockets, which a browser sends without asking by CORS (api.md, "Tickets").

A browser opens a WebSocket or loads an image without a preflight, and no CORS field keeps a page from the answer; only
the `Origin` header tells whose page it is. This module knows settings and text, no request.
"""

from __future__ import annotations

from functools import lru_cache

from django.conf import settings
from django.utils.translation import gettext as _

from apps.common.errors import DomainError
from tunnel.contract import Origins, origin_of


@lru_cache(maxsize=4)
def _origins(named: tuple[str, ...], development: bool) -> Origins:
    return Origins(named, development=development)


def listed() -> Origins:
    """The pages that may read what we answer (CORS), and use tickets and WebSockets."""
    values = settings.VISIONA
    named = (*values["CORS_ALLOWED_ORIGINS"], values["PUBLIC_URL"], values["TUNNEL_PUBLIC_URL"])
    return _origins(named, values["ENV"] == "development")


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
    """Whether `origin` is one of those that may read answers, or the request's own host.

    The scheme of the own host is not compared: behind a proxy that ends TLS nobody here knows it.
    """
    if listed().allow(origin):
        return True
    asked = origin_of(origin)
    return asked is not None and bool(host) and asked == origin_of(f"{asked[0]}://{host}")
