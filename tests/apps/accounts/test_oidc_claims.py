"""Which tokens prove something: forms, keys, algorithms and claims that no well-behaved provider would send."""

import datetime as dt
from dataclasses import replace
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, RSAKey

from apps.accounts.oidc import claims, flow
from apps.accounts.oidc.claims import TokenError
from apps.accounts.oidc.config import Config
from apps.accounts.oidc.provider import Known

ISSUER = "https://id.example/"
NOW = dt.datetime(2026, 11, 22, 12, tzinfo=dt.UTC)
T = int(NOW.timestamp())
RSA, EC = RSAKey.generate_key(2048, {"kid": "rsa"}), ECKey.generate_key("P-256", {"kid": "ec"})
KEYS: tuple[Key, ...] = tuple(type(key).import_key(key.as_dict(private=False)) for key in (RSA, EC))
CONFIG = Config(
    issuer="https://id.example",
    client_id="visiona",
    client_secret="s:/",
    scopes="openid",
    audiences=frozenset({"api"}),
    parties=frozenset(),
    redirect_uris=(),
    callback="https://cloud.example/api/auth/oidc/callback",
    algorithms=("RS256", "ES256"),
    email_claim="email",
    timeout=5.0,
)
GOOD: dict[str, Any] = {"iss": ISSUER, "sub": "user_1", "aud": "api", "iat": T - 10, "exp": T + 60}


def make(key: Any = RSA, alg: str = "RS256", head: dict[str, Any] | None = None, **changes: Any) -> str:
    told = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return jwt.encode({"alg": alg, "kid": key.kid, **(head or {})}, told, key, algorithms=[alg], registry=_LAX)


class _Lax(claims._Registry):
    def __init__(self) -> None:
        super().__init__(algorithms=["RS256", "ES256", "RS512", "HS256"], strict_check_header=False)

    def check_header(self, header: dict[str, Any]) -> None:
        """Makes what it is told."""


_LAX = _Lax()


def read(token: str, config: Config = CONFIG) -> dict[str, Any]:
    return claims.read(token, KEYS, config, issuer=ISSUER, now=NOW)


@pytest.mark.parametrize(
    "token",
    [
        make(),
        make(EC, "ES256"),
        make(head={"cat": "cl_B7d4PD111AAA"}),  # Clerk's own field
        make(head={"typ": "at+jwt"}),
        make(aud=["other", "api"]),
        make(exp=T - 59),
        make(iat=T + 59),
        make(nbf=T + 59),
        make(iat=T - 10.5),
        make(claim="x" * 4000),
        jwt.encode({"alg": "RS256"}, dict(GOOD), RSA),  # of several keys one fits
    ],
)
def test_good(token):
    assert read(token)["sub"] == "user_1"


@pytest.mark.parametrize(
    "token",
    [
        make(exp=T - 61),
        make(exp=None),
        make(exp="tomorrow"),
        make(exp=True),
        make(iat=T + 61),
        make(iat=None),
        make(nbf=T + 61),
        make(sub=None),
        make(sub=""),
        make(sub=7),
        make(sub="s" * 256),
        make(sub="a\0b"),
        make(iss="https://id.example"),  # the slash counts
        make(iss="https://evil.example/"),
        make(iss=None),
        make(iss=[ISSUER]),
        make(head={"typ": "logout+jwt"}),
        make(head={"kid": "unknown"}),
        make(head={"kid": "ec"}),  # another key's
        make(head={"kid": 5}),
        make(head={"crit": ["exp"], "exp": 1}),
        make(alg="RS512"),
        make(OctKey.generate_key(256, {"kid": "rsa"}), "HS256"),
        make(RSAKey.generate_key(2048, {"kid": "rsa"})),
        make()[:-10],
        make() + ".x",
        "e30.e30.e30",
        "W1tb" * 2000 + ".e30.e30",  # [[[[…, deeper than Python follows
        "",
    ],
)
def test_bad(token):
    with pytest.raises(TokenError):
        read(token)


def test_what_is_over_is_told_apart():
    with pytest.raises(TokenError) as caught:
        read(make(exp=T - 61))
    assert caught.value.expired
    with pytest.raises(TokenError) as caught:
        read(make(exp=T - 61, iss="https://evil.example/"))
    assert not caught.value.expired


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({}, True),
        ({"nonce": "other"}, False),
        ({"nonce": None}, False),
        ({"aud": "other"}, False),
        ({"aud": ["visiona", "other"]}, False),  # then azp must say that we asked
        ({"aud": ["visiona", "other"], "azp": "visiona"}, True),
        ({"azp": "other"}, False),
    ],
)
def test_an_id_token_is_for_us_and_for_this_login(more, good):
    told = {"aud": "visiona", "nonce": "n", **more}
    if good:
        claims.check_login(told, CONFIG, nonce="n")
    else:
        with pytest.raises(TokenError):
            claims.check_login(told, CONFIG, nonce="n")


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"aud": None},
        {"aud": []},
        {"aud": 5},
        {"azp": "x"},
        {"aud": {"api": 1}},
        {"azp": {"party": 1}},
        {"azp": ["party"]},
    ],
)
def test_a_bearer_token_for_nobody(told):
    config = replace(CONFIG, audiences=frozenset({"another"}), parties=frozenset({"party"}))
    with pytest.raises(TokenError):
        claims.check_bearer(told, config)


@pytest.mark.parametrize(
    ("told", "email", "verified"),
    [
        ({"email": "a@b.example", "email_verified": True}, "a@b.example", True),
        ({"email": "a@b.example", "email_verified": "true"}, "a@b.example", True),
        ({"email": "a@b.example", "email_verified": "false"}, "a@b.example", False),
        ({"email": "a@b.example", "email_verified": 1}, "a@b.example", False),
        ({"email": "a@b.example"}, "a@b.example", False),
        ({"email": "not one"}, "", False),
        ({"email": "a@b.example" * 30}, "", False),
        ({"email": ["a@b.example"]}, "", False),
        ({"email": "a\n@b.example"}, "", False),
        ({}, "", False),
    ],
)
def test_the_e_mail(told, email, verified):
    found = claims.identity({**GOOD, **told}, CONFIG)
    assert (found.email, found.email_verified) == (email, verified)


def test_times_that_no_calendar_knows():
    found = claims.identity({**GOOD, "exp": 1e300, "iat": -1e300}, CONFIG)
    assert dt.datetime.fromtimestamp(found.expires_at, dt.UTC).year == 3000
    assert found.issued_at == 0


# --- how the code is exchanged ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("secret", "methods", "auth", "sent"),
    [
        ("s:/", ("client_secret_post", "client_secret_basic"), ("visiona", "s%3A%2F"), set()),
        ("s:/", ("client_secret_post",), None, {"client_id", "client_secret"}),
        ("", ("client_secret_basic",), None, {"client_id"}),
    ],
)
def test_how_we_say_who_we_are(monkeypatch, secret, methods, auth, sent):
    asked: dict[str, Any] = {}

    def fetch(method: str, url: str, **more: Any) -> dict[str, Any]:
        asked.update(more, url=url, method=method)
        return {}

    monkeypatch.setattr(flow, "fetch_json", fetch)
    known = Known(ISSUER, {"token_endpoint": ISSUER + "token"}, methods, False, (), 0.0)
    flow._exchange(replace(CONFIG, client_secret=secret), known, "code", "verifier")
    assert (asked["method"], asked["url"], asked["auth"]) == ("POST", ISSUER + "token", auth)
    assert set(asked["form"]) == {"grant_type", "code", "redirect_uri", "code_verifier"} | sent


def test_what_the_id_token_left_out_is_asked_for(monkeypatch):
    told = {"sub": "user_1", "email": "a@b.example", "email_verified": True}
    monkeypatch.setattr(flow, "fetch_json", lambda *_args, **_more: told)
    known = Known(ISSUER, {"userinfo_endpoint": ISSUER + "me"}, (), False, (), 0.0)
    assert flow._userinfo(CONFIG, known, {"access_token": "t"}, "user_1") == told
    assert flow._userinfo(CONFIG, known, {}, "user_1") == {}
    with pytest.raises(TokenError):
        flow._userinfo(CONFIG, known, {"access_token": "t"}, "user_2")
