"""The operator's look at the provider: each line says how it is, or what to do."""

import io

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command

from tests.apps.accounts.test_oidc_strange import PAT


def lines(**options: str) -> list[str]:
    out = io.StringIO()
    call_command("oidc_check", stdout=out, **options)
    return out.getvalue().splitlines()


def test_all_is_well(scripted):
    told = lines(token=scripted.token(**PAT))
    assert [line for line in told if not line.startswith("ok    ")] == []
    assert f"ok    discovery: issuer {scripted.issuer}" in told
    assert "ok    token: pat@example.com, verified" in told


@pytest.mark.parametrize(
    ("claims", "said"),
    [
        ({"aud": "another"}, "Name one of them in VISIONA_OIDC_AUDIENCE"),
        ({"email": None}, "no e-mail in 'email'"),
        ({"email_verified": False}, "email_verified is not true"),
        ({"exp": 1}, "expired"),
        ({"sub": "m", "client_id": "m"}, "speaks of no person"),
    ],
)
def test_what_is_wrong_with_a_token(scripted, claims, said):
    (bad,) = [line for line in lines(token=scripted.token(**{**PAT, **claims})) if line.startswith("LOOK")]
    assert said in bad


def test_what_is_wrong_with_the_provider(scripted, monkeypatch):
    scripted.published = [{"kty": "EC", "crv": "P-999"}]
    assert any(line.startswith("LOOK  keys: none") for line in lines())
    monkeypatch.setitem(settings.VISIONA, "OIDC_ISSUER", scripted.issuer + "/elsewhere")
    with pytest.raises(CommandError, match="discovery failed: status 404"):
        lines()
    monkeypatch.setitem(settings.VISIONA, "OIDC_ISSUER", "")
    with pytest.raises(CommandError, match="VISIONA_OIDC_ISSUER is empty"):
        lines()
