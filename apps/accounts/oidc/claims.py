"""From a signed token to an identity. It knows keys and rules, no network, no database, no HTTP.

Taken are asymmetric signatures of an allow-list alone, and the key only from the provider's own set: `jku`, `x5u`,
`jwk` in a token's head are not looked at (RFC 8725 §3.1, §3.10).
"""

import datetime as dt
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from joserfc import jwt
from joserfc.errors import ExpiredTokenError, JoseError
from joserfc.jwk import Key
from joserfc.jws import JWSRegistry, extract_compact
from joserfc.jwt import JWTClaimsRegistry

from apps.accounts.oidc.config import Config
from apps.common.emails import kept_form

LEEWAY_SECONDS: Final = 60
MAX_CHARACTERS: Final = 16_384
_TYPES: Final = ("", "jwt", "at+jwt", "application/at+jwt")
"""`typ` of ID tokens and access tokens; those with a purpose of their own (logout, events) are no credentials."""
_FORM: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\Z")
_OF_PEOPLE: Final = (
    "email", "name", "given_name", "family_name", "nickname", "preferred_username", "sid", "auth_time", "nonce", "amr",
    "acr",
)  # fmt: skip
"""Claims that a person's token has some of: what they are called, or how and when they logged in."""
_LAST: Final = 32_503_680_000.0
"""The year 3000: what ends later ends then."""


class TokenError(Exception):
    """The token proves nothing. `expired`: it did. `unsigned`: by the keys at hand, at least."""

    def __init__(self, why: str, *, expired: bool = False, unsigned: bool = False) -> None:
        super().__init__(why)
        self.expired = expired
        self.unsigned = unsigned


class _Registry(JWSRegistry):
    """Heads with fields of the provider's own (Clerk's `cat`), or with a certificate's chain."""

    max_header_length = 8192


@dataclass(frozen=True, slots=True)
class Identity:
    """Who somebody is, by the provider's word. `email` is empty where the token names none; times in Unix seconds.

    `authenticated_at` is 0 where the provider does not tell when they logged in there. `machine`: the token is a
    program's own and speaks of no person.
    """

    issuer: str
    subject: str
    email: str
    email_verified: bool
    name: str
    locale: str
    issued_at: float
    expires_at: float
    authenticated_at: float = 0.0
    machine: bool = False


def is_jwt(token: str) -> bool:
    """Whether it has a JWT's form and a credible length."""
    return len(token) <= MAX_CHARACTERS and _FORM.match(token) is not None


def key_id(token: str) -> str | None:
    """The id of the key by which the token says it is signed. Raises TokenError for what is no JWT."""
    kid = _header(token).get("kid")
    return kid if isinstance(kid, str) else None


def read(token: str, keys: Iterable[Key], config: Config, *, issuer: str, now: dt.datetime) -> dict[str, Any]:
    """The claims of a token that the issuer signed and that is in time. Raises TokenError.

    Who it is for is checked by `check_bearer` or `check_login`.
    """
    header = _header(token)
    algorithm, kid = header.get("alg"), header.get("kid")
    if algorithm not in config.algorithms:
        raise TokenError("an algorithm that is not taken")
    if str(header.get("typ", "")).lower() not in _TYPES:
        raise TokenError("a token for another purpose")
    if "crit" in header:
        raise TokenError("an extension that is not understood")  # RFC 7515 §4.1.11: none is here
    claims = _verified(token, [key for key in keys if kid is None or key.kid == kid], config)
    rules = JWTClaimsRegistry(
        now=int(now.timestamp()),
        leeway=LEEWAY_SECONDS,
        iss={"essential": True, "value": issuer},
        sub={"essential": True},
        exp={"essential": True},
        iat={"essential": True},
    )
    for name in ("exp", "iat", "nbf"):
        if name in claims and not _is_moment(claims[name]):
            raise TokenError(f"{name} is no moment")
    try:
        rules.validate(claims)
    except ExpiredTokenError as error:
        raise TokenError("expired", expired=True) from error
    except JoseError as error:
        raise TokenError(error.error) from error
    if len(claims["sub"]) > 255 or not _can_be_kept(claims["sub"]):
        raise TokenError("a subject that cannot be kept")
    return claims


def _is_moment(value: object) -> bool:
    """Whether it is a NumericDate (RFC 7519 §2); JSON also has numbers that no clock and no float knows."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _can_be_kept(text: str) -> bool:
    """Whether PostgreSQL takes it: no NUL, and no half of a character (JSON can name both)."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _header(token: str) -> Mapping[str, Any]:
    if not is_jwt(token):
        raise TokenError("no JWT")
    try:
        return dict(extract_compact(token.encode(), registry=_Registry()).headers())
    except Exception as error:
        raise TokenError("no JWT") from error


def _verified(token: str, keys: list[Key], config: Config) -> dict[str, Any]:
    registry = _Registry(algorithms=config.algorithms, strict_check_header=False)
    for key in keys:
        try:
            return jwt.decode(token, key, algorithms=config.algorithms, registry=registry).claims
        except Exception:  # noqa: BLE001, S112 - whatever the library makes of a stranger's bytes and a strange key
            continue  # of several keys without an id one may fit
    raise TokenError("no key of the provider's fits", unsigned=True)


def check_bearer(claims: Mapping[str, Any], config: Config) -> None:
    """Whether the token is meant for this API. Raises TokenError.

    `aud` and `azp` must each be one of ours where we name some and the token has it, and one of the two must be there.
    """
    named, party = _audiences(claims), claims.get("azp")
    matched = False
    if config.audiences and named:
        if config.audiences.isdisjoint(named):
            raise TokenError("for another audience")
        matched = True
    if config.parties and party is not None:
        if not isinstance(party, str) or party not in config.parties:
            raise TokenError("of another party")
        matched = True
    if not matched:
        raise TokenError("for nobody named")


def check_login(claims: Mapping[str, Any], config: Config, *, nonce: str) -> None:
    """Whether the ID token answers our request (OpenID Connect Core §3.1.3.7). Raises TokenError."""
    named = _audiences(claims)
    if config.client_id not in named:
        raise TokenError("for another audience")
    party = claims.get("azp")
    if (party is not None or len(named) > 1) and party != config.client_id:
        raise TokenError("of another party")
    if claims.get("nonce") != nonce:
        raise TokenError("an answer to another request")


def _audiences(claims: Mapping[str, Any]) -> list[str]:
    """`aud`, which is a text or several (RFC 7519 §4.1.3)."""
    told = claims.get("aud")
    return [each for each in (told if isinstance(told, list) else [told]) if isinstance(each, str) and each]


def identity(claims: Mapping[str, Any], config: Config) -> Identity:
    """What the claims say of the person. An e-mail that could not be kept counts as none."""
    email = _text(claims, config.email_claim, 254)
    verified = claims.get(config.email_claim + "_verified")
    return Identity(
        issuer=str(claims["iss"]),
        subject=str(claims["sub"]),
        email=kept_form(email),
        email_verified=verified is True or verified == "true",  # some send the word
        name=_text(claims, "name", 200),
        locale=_text(claims, "locale", 16),
        issued_at=max(0.0, float(claims["iat"])),
        expires_at=min(float(claims["exp"]), _LAST),
        authenticated_at=_moment(claims, "auth_time"),
        machine=_is_machines(claims, config),
    )


def _moment(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    return min(max(0.0, float(value)), _LAST) if _is_moment(value) else 0.0  # type: ignore[arg-type]  # just looked at


def _is_machines(claims: Mapping[str, Any], config: Config) -> bool:
    """Whether the token was got by client credentials (RFC 6749 §4.4): its subject is the client, or it says so, or
    nothing in it speaks of a person or their login.
    """
    if claims.get("gty") == "client-credentials" or claims.get("idtyp") == "app":  # Auth0, Microsoft
        return True
    if str(claims.get("preferred_username", "")).startswith("service-account-"):  # Keycloak
        return True
    if claims["sub"] in [claims.get(name) for name in ("client_id", "azp", "cid", "appid")]:  # RFC 9068 §2.2
        return True
    scope = claims.get("scope", claims.get("scp", ""))
    asked = scope.split() if isinstance(scope, str) else scope if isinstance(scope, list) else []
    return "openid" not in asked and not any(claims.get(name) for name in (config.email_claim, *_OF_PEOPLE))


def _text(claims: Mapping[str, Any], name: str, limit: int) -> str:
    found = claims.get(name)
    return found.strip() if isinstance(found, str) and len(found) <= limit and _can_be_kept(found) else ""
