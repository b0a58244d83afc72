"""`manage.py oidc_check`: what stands between us and the identity provider, a line each, with what to do about it."""

from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils import timezone

from apps.accounts.oidc import claims
from apps.accounts.oidc.claims import TokenError
from apps.accounts.oidc.config import Config, config
from apps.accounts.oidc.fetch import ProviderError
from apps.accounts.oidc.provider import Known, Provider


class Command(BaseCommand):
    help = "Look at the OpenID provider that is configured: discovery, keys, and with --token what a JWT of it says."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--token", help="a JWT to look at; - reads it from standard input")

    def handle(self, *args: Any, **options: Any) -> None:
        known = config()
        if known is None:
            raise CommandError("VISIONA_OIDC_ISSUER is empty: there is no provider. Set it to its issuer URL.")
        try:
            told = Provider(known.issuer, known.timeout).load()
        except ProviderError as error:
            raise CommandError(
                f"discovery failed: {error}. Try {known.issuer}/.well-known/openid-configuration from this machine; "
                "VISIONA_OIDC_ISSUER must be the `issuer` that it names."
            ) from error
        self._provider(known, told)
        given: str | None = options["token"]
        if given is not None:
            self._token(known, told, (sys.stdin.read() if given == "-" else given).strip())

    def _provider(self, known: Config, told: Known) -> None:
        self._good(f"discovery: issuer {told.issuer}")
        if told.keys:
            names = [f"{key.kid or 'without id'} ({key.key_type})" for key in told.keys]
            self._good(f"keys: {', '.join(names)}")
        else:
            self._bad("keys: none that can be read. RSA and EC keys are; oidc_key_passed_over in the log names others.")
        if not known.client_id:
            self._bad("login: VISIONA_OIDC_CLIENT_ID is empty, so JWTs are taken and nobody logs in through us.")
            return
        missing = [name for name in ("authorization_endpoint", "token_endpoint") if name not in told.endpoints]
        if missing:
            self._bad(f"login: the discovery document names no {' and no '.join(missing)}.")
        self._good(f"login: register the redirect URI {known.callback} there for client {known.client_id}")
        self._good(f"login: may end at {', '.join(known.redirect_uris)} (VISIONA_OIDC_REDIRECT_URIS)")

    def _token(self, known: Config, told: Known, token: str) -> None:
        try:
            found = claims.read(token, told.keys, known, issuer=told.issuer, now=timezone.now())
        except TokenError as error:
            self._bad(f"token: {error}. Its iss must be {told.issuer}, its alg one of {', '.join(known.algorithms)}.")
            return
        self._good("token: signed by the provider, and in time")
        try:
            claims.check_bearer(found, known)
            self._good("token: is for us")
        except TokenError as error:
            self._bad(
                f"token: {error}: aud {found.get('aud')!r}, azp {found.get('azp')!r}. "
                "Name one of them in VISIONA_OIDC_AUDIENCE or VISIONA_OIDC_AUTHORIZED_PARTIES."
            )
        who = claims.identity(found, known)
        if who.machine:
            self._bad("token: speaks of no person, so it makes no account (client credentials?).")
        elif not who.email:
            self._bad(
                f"token: no e-mail in {known.email_claim!r}, so a new account gets a placeholder. Have the provider "
                "add it, or name its claim in VISIONA_OIDC_EMAIL_CLAIM."
            )
        elif not who.email_verified:
            self._bad(f"token: {known.email_claim}_verified is not true, so no account that is here is linked by it.")
        else:
            self._good(f"token: {who.email}, verified")

    def _good(self, text: str) -> None:
        self.stdout.write(f"ok    {text}")

    def _bad(self, text: str) -> None:
        self.stdout.write(f"LOOK  {text}")
