"""The code flow (OpenID Connect Core §3.1, RFC 7636): to the provider, back, and to the front end with a code of ours.

What a login remembers lies in Redis for ten minutes under the hash of its state, and is bound to the browser by a
cookie; what comes of it for a minute under the hash of our code. Both are taken with GETDEL: of many one gets them.
"""

import base64
import datetime as dt
import hashlib
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, cast
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import structlog
from django.conf import settings
from django.utils.translation import gettext_lazy as _

from apps.accounts.oidc import claims
from apps.accounts.oidc.claims import Identity, TokenError
from apps.accounts.oidc.config import Config
from apps.accounts.oidc.fetch import ProviderError, ProviderRefusal, fetch_json
from apps.accounts.oidc.provider import Known, provider, unavailable
from apps.accounts.oidc.verify import verified
from apps.common import redis
from apps.common.errors import DomainError, invalid
from apps.common.limits.places import Places
from tunnel.contract import client_network, hash_token

STATE_SECONDS: Final = 600
CODE_SECONDS: Final = 60
PROVIDER_ERROR: Final = "PROVIDER_ERROR"
"""In `#error=` alone: the provider says that something is wrong; `reason` is its own word for it."""
_STATE: Final = redis.PREFIX + "oidc:state:"
_CODE: Final = redis.PREFIX + "oidc:code:"
_LINK: Final = redis.PREFIX + "oidc:link:"
_places: Final = Places("logins", lambda: max(4, settings.VISIONA["API_THREADS"] // 4))
"""Whoever comes back is asked about at the provider, with a code that may be made up; each waits in a thread of ours.

Each address is an owner here. Nobody is known yet, and as strangers they would all be one.
"""

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Begun:
    """A login that waits for its browser to come back."""

    redirect_uri: str
    nonce: str
    verifier: str
    browser: str  # the hash of the cookie
    link_for: str = ""  # the id of the user who asked for an identity to be linked


def state_name(state: str) -> str:
    """What a cookie of this login alone is called, in a browser that had none yet; it tells nothing of the state."""
    return hash_token(state)[:12]


def check_page(config: Config, redirect_uri: str) -> None:
    """Raises VALIDATION_ERROR for a page that is not on the list."""
    if redirect_uri not in config.redirect_uris:
        raise invalid(redirect_uri=str(_("This page is not on the server's list (VISIONA_OIDC_REDIRECT_URIS).")))


def link_ticket(user_id: uuid.UUID) -> str:
    """Lets one login that is begun within a minute end in a code that links an identity to this user."""
    ticket = secrets.token_urlsafe(32)
    redis.client().set(_LINK + hash_token(ticket), json.dumps({"user_id": str(user_id)}), ex=CODE_SECONDS)
    return ticket


def begin(config: Config, *, redirect_uri: str, browser: str, link: str = "") -> tuple[str, str]:
    """Where to send the browser, and the login's state. `browser` is the secret in its cookie, `link` a `link_ticket`.

    Raises VALIDATION_ERROR for a page that is not on the list, BAD_REQUEST for a ticket that is spent or too old,
    OVERLOADED while the provider is away.
    """
    check_page(config, redirect_uri)
    known = provider(config).known()
    endpoint = known.endpoints.get("authorization_endpoint")
    if endpoint is None:
        raise unavailable()
    state, nonce, verifier = secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48)
    begun = asdict(Begun(redirect_uri, nonce, verifier, hash_token(browser)))
    if link:
        asked = _take(_LINK + hash_token(link))
        if asked is None:
            raise DomainError("BAD_REQUEST", _("This link is spent, or over a minute old; begin again."))
        begun["link_for"] = asked["user_id"]
    else:
        del begun["link_for"]  # the release before, which may finish this login, knows no such thing
    redis.client().set(_STATE + hash_token(state), json.dumps(begun), ex=STATE_SECONDS)
    url = _with_query(
        endpoint,
        client_id=config.client_id,
        response_type="code",
        redirect_uri=config.callback,
        scope=config.scopes,
        state=state,
        nonce=nonce,
        code_challenge=_challenge(verifier),
        code_challenge_method="S256",
    )
    return url, state


def _challenge(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def _with_query(endpoint: str, **asked: str) -> str:
    """The endpoint with our parameters; a query of its own stays (RFC 6749 §3.1)."""
    parts = urlsplit(endpoint)
    own = parse_qsl(parts.query, keep_blank_values=True)
    return parts._replace(query=urlencode([*own, *asked.items()], quote_via=quote)).geturl()


def finish(
    config: Config, answer: Mapping[str, str], *, browsers: Sequence[str], address: str, now: dt.datetime
) -> str:
    """Where to send the browser that came back: the front end's page with `#code=`, or `#error=` and what went wrong.

    `browsers` are the secrets in its cookies, `address` the client's.

    Raises BAD_REQUEST for an answer to no login of this browser: it is not known, then, where it would want to go.
    """
    kept = _take(_STATE + hash_token(answer.get("state", "")))
    if kept is None or not any(secrets.compare_digest(kept["browser"], hash_token(each)) for each in browsers):
        raise DomainError("BAD_REQUEST", _("This login was not begun here, or over ten minutes ago; begin again."))
    begun = Begun(**kept)
    try:
        with _places.place(client_network(address)) as free:
            if not free:
                raise unavailable()
            identity = _identity(config, answer, begun, now)
    except (TokenError, ProviderError, DomainError) as error:
        logger.warning("oidc_login_failed", error=str(error))
        return _at(begun.redirect_uri, **_told(error))
    code = secrets.token_urlsafe(32)
    redis.client().set(_CODE + hash_token(code), json.dumps(_kept(identity, begun.link_for)), ex=CODE_SECONDS)
    return _at(begun.redirect_uri, code=code)


def _kept(identity: Identity, link_for: str) -> dict[str, Any]:
    """What a code stands for. A login's is read by the release before too, which knows none of the newer fields."""
    kept = asdict(identity)
    fields = {name: value for name, value in kept.items() if name not in ("authenticated_at", "machine")}
    return {**fields, "link_for": link_for} if link_for else fields


def _told(error: Exception) -> dict[str, str]:
    """What the front end is told went wrong: in our words, and the provider's where it says so itself."""
    if isinstance(error, DomainError):  # the provider is away
        return {"error": error.code}
    if isinstance(error, ProviderRefusal):
        if error.reason == "access_denied":
            return {"error": "FORBIDDEN"}
        if error.reason == "temporarily_unavailable":
            return {"error": "OVERLOADED"}
        return {"error": PROVIDER_ERROR, **({"reason": error.reason} if error.reason else {})}
    return {"error": "OVERLOADED" if isinstance(error, ProviderError) else "UNAUTHENTICATED"}


def redeem(code: str) -> tuple[Identity, str]:
    """Who came back with this code, and the id of the user whom it may link them to, empty if it is for a login.

    Raises INVALID_CREDENTIALS for one that is unknown, spent or over.
    """
    kept = _take(_CODE + hash_token(code))
    if kept is None:
        raise bad_code()
    link_for = kept.pop("link_for", "")
    return Identity(**kept), link_for


def bad_code() -> DomainError:
    """The refusal for a code that stands for nothing, or for something else."""
    return DomainError("INVALID_CREDENTIALS", _("The code is unknown, spent or too old; log in again."))


def _identity(config: Config, answer: Mapping[str, str], begun: Begun, now: dt.datetime) -> Identity:
    """Who logged in there. Raises ProviderRefusal where the answer is an `error`, as `access_denied`."""
    known = provider(config).known(at_once=True)
    if (known.sends_iss or "iss" in answer) and answer.get("iss") != known.issuer:
        raise TokenError("an answer of another provider")  # RFC 9207
    if "error" in answer:
        raise ProviderRefusal("the authorization endpoint", answer)
    if not answer.get("code"):
        raise TokenError("neither a code nor an error")
    tokens = _exchange(config, known, answer["code"], begun.verifier)
    token = tokens.get("id_token")
    if not isinstance(token, str):
        raise TokenError("no ID token")
    found = verified(token, config, now=now, at_once=True)
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
