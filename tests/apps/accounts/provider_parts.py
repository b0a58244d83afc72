"""The part of the provider (`provider_site.py`) that can be imported once its settings stand."""

import json
from pathlib import Path
from typing import Any

from django.contrib.auth.models import User
from django.contrib.auth.views import LoginView
from django.core.management import call_command
from django.core.servers.basehttp import run
from django.core.wsgi import get_wsgi_application
from django.urls import include, path
from oauth2_provider.models import Application
from oauth2_provider.oauth2_validators import OAuth2Validator


class Validator(OAuth2Validator):  # type: ignore[misc]  # untyped there
    """Tells e-mail and name in the ID token, as most providers do, and the party, as OpenID Connect allows."""

    oidc_claim_scope = OAuth2Validator.oidc_claim_scope | {"azp": "openid"}

    def get_additional_claims(self, request: Any) -> dict[str, Any]:
        return {
            "email": request.user.email,
            "email_verified": request.user.last_name == "verified",
            "name": request.user.first_name,
            "azp": request.client.client_id,
        }


urlpatterns = [
    path("accounts/login/", LoginView.as_view()),
    path("o/", include("oauth2_provider.urls", namespace="oauth2_provider")),
]


def fill(folder: Path, redirect_uris: list[str], client_id: str, client_secret: str) -> None:
    """The tables, the people and our client, as far as they are not there."""
    call_command("migrate", run_syncdb=True, verbosity=0)
    for told in json.loads((folder / "users.json").read_text()):
        if not User.objects.filter(username=told["email"]).exists():
            user = User(username=told["email"], email=told["email"], first_name=told["name"])
            user.last_name = "verified" if told["verified"] else ""
            user.set_password(told["password"])
            user.save()
    Application.objects.get_or_create(
        client_id=client_id,
        defaults={
            "client_secret": client_secret,
            "client_type": Application.CLIENT_CONFIDENTIAL,
            "authorization_grant_type": Application.GRANT_AUTHORIZATION_CODE,
            "algorithm": Application.RS256_ALGORITHM,
            "redirect_uris": " ".join(redirect_uris),
            "skip_authorization": True,
        },
    )


def serve(port: int) -> None:
    run("127.0.0.1", port, get_wsgi_application(), threading=True)
