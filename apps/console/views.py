"""The console: one static page that uses the public API only."""

from urllib.parse import urlencode

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_safe

from apps.accounts.oidc.config import config

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@csrf_exempt  # it reads no cookie; so a POST is told that its method is wrong, and not that a token lacks
@require_safe
def console(request: HttpRequest) -> HttpResponse:
    """The page at `/`. It holds no data of anybody: all it shows, its script fetches with the visitor's token."""
    response = render(request, "console/index.html", {"provider_login": _provider_login()})
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    response["Cache-Control"] = "no-cache"
    return response


def _provider_login() -> str:
    """Where a login at the identity provider begins that ends at this page; empty: there is none."""
    known, page = config(), settings.VISIONA["PUBLIC_URL"] + "/"
    if known is None or not known.client_id or page not in known.redirect_uris:
        return ""
    return f"/api/auth/oidc/login?{urlencode({'redirect_uri': page})}"
