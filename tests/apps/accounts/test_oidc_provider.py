"""When the provider is asked, and what of its answers is believed. No network: its answers stand here."""

import threading
from typing import Any

import pytest
from joserfc.jwk import ECKey, OctKey, RSAKey

from apps.accounts.oidc import provider as module
from apps.accounts.oidc.fetch import ProviderError
from apps.accounts.oidc.provider import Provider, read_keys
from apps.common.errors import DomainError

ISSUER = "https://id.example/tenant"
RSA = RSAKey.generate_key(2048, {"kid": "rsa"})


class Script:
    """The provider's answers and its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked: list[str] = []
        self.away = False
        self.keys: list[Any] = [RSA.as_dict(private=False)]
        self.document: dict[str, Any] = {
            "issuer": ISSUER + "/",  # its own spelling
            "authorization_endpoint": ISSUER + "/authorize",
            "token_endpoint": ISSUER + "/token",
            "jwks_uri": "https://keys.example/jwks",
        }

    def fetch(self, method: str, url: str, *, seconds: float) -> dict[str, Any]:
        self.asked.append(url)
        if self.away:
            raise ProviderError("away")
        return {"keys": self.keys} if url.endswith("jwks") else self.document

    def provider(self) -> Provider:
        return Provider(ISSUER, 5.0, fetch=self.fetch, clock=lambda: self.now)


@pytest.fixture
def script() -> Script:
    return Script()


def test_asked_once_an_hour(script):
    ours = script.provider()
    assert ours.known().issuer == ISSUER + "/"
    ours.known_with("rsa")
    ours.known_with(None)
    script.now += module.FRESH_SECONDS - 1
    ours.known()
    assert script.asked == [ISSUER + "/.well-known/openid-configuration", "https://keys.example/jwks"]
    script.now += 2
    ours.known()
    assert len(script.asked) == 4


def test_made_up_key_ids_cause_one_fetch_in_half_a_minute(script):
    ours = script.provider()
    for number in range(50):
        ours.known_with(f"made-up-{number}")
    assert len(script.asked) == 2
    script.now += module.COOLDOWN_SECONDS
    for number in range(50):
        ours.known_with(f"made-up-{number}")
    assert len(script.asked) == 4


def test_a_new_key_is_found(script):
    ours = script.provider()
    ours.known()
    newer = RSAKey.generate_key(2048, {"kid": "newer"})
    script.keys = [newer.as_dict(private=False)]
    script.now += module.COOLDOWN_SECONDS
    assert [key.kid for key in ours.known_with("newer").keys] == ["newer"]


def test_while_it_is_away_what_is_known_goes_on_for_a_day(script):
    ours = script.provider()
    ours.known()
    script.away = True
    script.now += module.FRESH_SECONDS
    assert ours.known_with("other").keys
    asked = len(script.asked)
    ours.known()  # not asked again at once
    assert len(script.asked) == asked
    script.now += module.STALE_SECONDS
    with pytest.raises(DomainError, match="OVERLOADED"):
        ours.known()


def test_while_nothing_is_known_the_next_calls_fail_at_once(script):
    ours = script.provider()
    script.away = True
    for _ in range(5):
        with pytest.raises(DomainError, match="OVERLOADED"):
            ours.known()
    assert len(script.asked) == 1
    script.away = False
    script.now += module.DOWN_SECONDS
    assert ours.known().keys


def test_many_at_once_share_one_fetch(script):
    began, go_on = threading.Event(), threading.Event()
    plain = script.fetch

    def slow(method: str, url: str, *, seconds: float) -> dict[str, Any]:
        began.set()
        assert go_on.wait(30)
        return plain(method, url, seconds=seconds)

    ours = Provider(ISSUER, 30.0, fetch=slow, clock=lambda: script.now)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(ours.known())) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert began.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(script.asked) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"issuer": "https://other.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "http://keys.example/jwks"},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": "https://[half"},
        {"token_endpoint": "http://169.254.169.254/latest"},
        {"authorization_endpoint": "javascript:alert(1)"},
    ],
)
def test_documents_that_are_not_believed(script, change):
    script.document |= change
    with pytest.raises(DomainError, match="OVERLOADED"):
        script.provider().known()


def test_without_tls_the_issuers_own_host_alone(script):
    """Development: a provider on this machine; its document must not lead to another service here."""
    document = {"issuer": "http://127.0.0.1:5000", "jwks_uri": "http://127.0.0.1:3801/jwks"}
    ours = Provider("http://127.0.0.1:5000", 5.0, fetch=lambda *_args, **_more: document, clock=lambda: 0.0)
    with pytest.raises(DomainError, match="OVERLOADED"):
        ours.known()


def test_which_keys_are_taken():
    curve = ECKey.generate_key("P-256", {"kid": "ec"}).as_dict(private=False)
    rsa = RSA.as_dict(private=False)
    found = read_keys(
        {
            "keys": [
                rsa,
                curve,
                {**rsa, "kid": "encryption", "use": "enc"},
                OctKey.generate_key(256, {"kid": "secret"}).as_dict(),
                {**rsa, "kid": "short", "n": rsa["n"][:170]},
                {"kty": "RSA", "kid": "broken", "n": "!" * 400},
                {"kty": "EC", "kid": "none"},
                {"kty": "NEW", "kid": "strange"},
                "text",
                None,
            ]
        }
    )
    assert [key.kid for key in found] == ["rsa", "ec"]
    with pytest.raises(ProviderError):
        read_keys({"keys": "none"})
