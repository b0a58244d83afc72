"""The code flow (OpenID Connect Core §3.1, RFC 7636): to the provider, back, and to the front end with a code of ours.

What a login remembers lies in Redis for ten minutes under the hash of its state, and is bound to the browser by a
cookie; what comes of it for a minute under the hash of our code. Both are taken with GETDEL: of many one gets them.
"""

import datetime as dt
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import structlog
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from django.utils.translation import gettext_lazy as _

from apps.accounts.oidc import claims
from apps.accounts.oidc.claims import Identity, TokenError
from apps.accounts.oidc.config import Config
from apps.accounts.oidc.fetch import ProviderError, fetch_json
from apps.accounts.oidc.provider import Known, provider, unavailable
from apps.common import redis
from apps.common.errors import DomainError, invalid
from tunnel.contract import hash_token

STATE_SECONDS: Final = 600
CODE_SECONDS: Final = 60
_STATE: Final = "visiona:oidc:state:"
_CODE: Final = "visiona:oidc:code:"

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that waits for its browser to come back."""

    redirect_uri: str
    nonce: str
    verifier: str
    browser: str  # the hash of the cookie


def begin(config: Config, *, redirect_uri: str, browser: str) -> str:
    """Where to send the browser. `browser` is the secret in its cookie.

    Raises VALIDATION_ERROR for a page that is not on the list, OVERLOADED while the provider is away.
    """
    if redirect_uri not in config.redirect_uris:
        raise invalid(redirect_uri=str(_("This page is not on the server's list (VISIONA_OIDC_REDIRECT_URIS).")))
    known = provider(config).known()
    endpoint = known.endpoints.get("authorization_endpoint")
    if endpoint is None:
        raise unavailable()
    state, nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    begun = Begun(redirect_uri, nonce, verifier, hash_token(browser))
    redis.client().set(_STATE + hash_token(state), json.dumps(asdict(begun)), ex=STATE_SECONDS)
    url: str = prepare_grant_uri(
        endpoint,
        client_id=config.client_id,
        response_type="code",
        redirect_uri=config.callback,
        scope=config.scopes,
        state=state,
        nonce=nonce,
        code_challenge=create_s256_code_challenge(verifier),
        code_challenge_method="S256",
    )
    return url


def finish(config: Config, answer: Mapping[str, str], *, browser: str, now: dt.datetime) -> str:
    """Where to send the browser that came back: the front end's page with `#code=`, or `#error=` and what went wrong.

    Raises BAD_REQUEST for an answer to no login of this browser: it is not known, then, where it would want to go.
    """
    kept = _take(_STATE + hash_token(answer.get("state", "")))
    if kept is None or not secrets.compare_digest(kept["browser"], hash_token(browser)):
        raise DomainError("BAD_REQUEST", _("This login was not begun here, or over ten minutes ago; begin again."))
    begun = Begun(**kept)
    try:
        identity = _identity(config, answer, begun, now)
    except (TokenError, ProviderError) as error:
        logger.warning("oidc_login_failed", error=str(error))
        code = "OVERLOADED" if isinstance(error, ProviderError) else "UNAUTHENTICATED"
        return _at(begun.redirect_uri, error=code)
    except DomainError as error:  # the provider is away
        return _at(begun.redirect_uri, error=error.code)
    if identity is None:
        return _at(begun.redirect_uri, error="FORBIDDEN")
    code = secrets.token_urlsafe(32)
    redis.client().set(_CODE + hash_token(code), json.dumps(asdict(identity)), ex=CODE_SECONDS)
    return _at(begun.redirect_uri, code=code)


def redeem(code: str) -> Identity:
    """Who came back with this code. Raises INVALID_CREDENTIALS for one that is unknown, spent or over."""
    kept = _take(_CODE + hash_token(code))
    if kept is None:
        raise DomainError("INVALID_CREDENTIALS", _("The code is unknown, spent or too old; log in again."))
    return Identity(**kept)


def _identity(config: Config, answer: Mapping[str, str], begun: Begun, now: dt.datetime) -> Identity | None:
    """Who logged in there; None if they did not (the provider says `error`, as `access_denied`)."""
    known = provider(config).known()
    if (known.sends_iss or "iss" in answer) and answer.get("iss") != known.issuer:
        raise TokenError("an answer of another provider")  # RFC 9207
    if "error" in answer or "code" not in answer:
        logger.info("oidc_login_refused", error=answer.get("error", "")[:64])
        return None
    tokens = _exchange(config, known, answer["code"], begun.verifier)
    token = tokens.get("id_token")
    if not isinstance(token, str):
        raise TokenError("no ID token")
    known = provider(config).known_with(claims.key_id(token))
    found = claims.read(token, known.keys, config, issuer=known.issuer, now=now)
    claims.check_login(found, config, nonce=begun.nonce)
    if config.email_claim not in found:
        found = {**_userinfo(config, known, tokens, found["sub"]), **found}
    return claims.identity(found, config)


def _exchange(config: Config, known: Known, code: str, verifier: str) -> dict[str, Any]:
    """The provider's code for tokens (RFC 6749 §4.1.3), as the client that we are there (§2.3.1)."""
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": config.callback,
        "code_verifier": verifier,
    }
    auth: tuple[str, str] | None = None
    if not config.client_secret:
        form["client_id"] = config.client_id
    elif "client_secret_basic" in known.auth_methods:
        auth = (quote(config.client_id, safe=""), quote(config.client_secret, safe=""))
    else:
        form |= {"client_id": config.client_id, "client_secret": config.client_secret}
    endpoint = known.endpoints.get("token_endpoint")
    if endpoint is None:
        raise ProviderError("the discovery document names no token_endpoint")
    return fetch_json("POST", endpoint, seconds=config.timeout, form=form, auth=auth)


def _userinfo(config: Config, known: Known, tokens: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """What the ID token left out (§5.3), if the provider tells it of the same subject."""
    endpoint, token = known.endpoints.get("userinfo_endpoint"), tokens.get("access_token")
    if endpoint is None or not isinstance(token, str):
        return {}
    told = fetch_json("GET", endpoint, seconds=config.timeout, headers={"Authorization": f"Bearer {token}"})
    if told.get("sub") != subject:
        raise TokenError("userinfo of another subject")
    return told


def _take(key: str) -> dict[str, Any] | None:
    found = cast("str | None", redis.client().getdel(key))
    return None if found is None else json.loads(found)


def _at(page: str, **said: str) -> str:
    return f"{page}#{urlencode(said)}"
