"""What the settings of mail and of the OpenID provider may not be: each stops the start with one line that names it."""

import pytest

from apps.accounts.oidc.config import config
from cloud import environment
from tunnel.contract import SettingError, read_settings


def check(**given: str) -> None:
    environment.check(read_settings({f"VISIONA_{name}": value for name, value in given.items()}, "api")[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OIDC_ISSUER", "id.example"),
        ("OIDC_ISSUER", "ftp://id.example"),
        ("OIDC_ISSUER", "https://"),
        ("OIDC_ISSUER", "https://id.example/?tenant=1"),
        ("OIDC_ALGORITHMS", "none"),
        ("OIDC_ALGORITHMS", "RS256,HS256"),
        ("OIDC_ALGORITHMS", ","),
        ("OIDC_CLIENT_ID", ""),
        ("OIDC_REDIRECT_URIS", "javascript:alert(1)"),
        ("OIDC_REDIRECT_URIS", "https://spa.example/#x"),
        ("OIDC_REDIRECT_URIS", "/done"),
        ("EMAIL_VERIFY_URL", "https://spa.example/verify"),
        ("EMAIL_RESET_URL", "https://spa.example/reset?t=token"),
        ("EMAIL_SECURITY", "ssl"),
        ("EMAIL_TIMEOUT_SECONDS", "0"),
    ],
)
def test_a_bad_value_is_named(name, value):
    values = {"OIDC_ISSUER": "https://id.example", "OIDC_CLIENT_ID": "visiona", name: value}
    with pytest.raises(SettingError, match=f"VISIONA_{name}"):
        check(**values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"OIDC_ISSUER": "https://id.example/", "OIDC_CLIENT_ID": "visiona"},
        {"OIDC_ISSUER": "http://127.0.0.1:5556/dex", "OIDC_AUDIENCE": "api"},
        {"OIDC_ISSUER": "https://clerk.example", "OIDC_AUTHORIZED_PARTIES": "https://app.example"},
        {"OIDC_ISSUER": "https://id.example", "OIDC_CLIENT_ID": "x", "OIDC_REDIRECT_URIS": "app.example:/x,http://a/b"},
        {"EMAIL_RESET_URL": "https://spa.example/reset?t={token}"},
    ],
)
def test_good_ones(values):
    check(**values)


def test_production_asks_for_tls():
    values = read_settings({"VISIONA_OIDC_ISSUER": "http://id.example", "VISIONA_OIDC_CLIENT_ID": "x"}, "api")[0]
    environment.check(values)
    with pytest.raises(SettingError, match="OIDC_ISSUER"):
        environment.check(values | {"ENV": "production"})


def test_without_an_issuer_there_is_no_provider():
    assert config() is None


def test_who_names_neither_audience_nor_party_takes_tokens_for_the_client(settings):
    settings.VISIONA = {**settings.VISIONA, "OIDC_ISSUER": "https://id.example/", "OIDC_CLIENT_ID": "visiona"}
    found = config()
    assert found is not None
    assert (found.issuer, found.audiences, found.parties) == ("https://id.example", {"visiona"}, set())
    assert found.redirect_uris == ("http://localhost:3721/",)
