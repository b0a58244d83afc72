"""When the provider is asked, and what of its answers is believed. No network: its answers stand here."""

import threading
from collections.abc import Callable, Iterator
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
    threads = [threading.Thread(target=lambda: found.append(ours.known(at_once=True))) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert began.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert len(found) == 8
    assert len(script.asked) == 2


class Slow:
    """A provider that answers when it is let go; the thread in it stands for the call that fetches."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.began, self.go_on = threading.Event(), threading.Event()
        self.ours = Provider(ISSUER, 30.0, fetch=self._fetch, clock=lambda: script.now, sleep=lambda _: None)
        self.held: list[threading.Thread] = []

    def _fetch(self, method: str, url: str, *, seconds: float) -> dict[str, Any]:
        self.began.set()
        assert self.go_on.wait(60)
        return self._script.fetch(method, url, seconds=seconds)

    def know(self) -> None:
        self.go_on.set()
        self.ours.known()
        self.go_on.clear()
        self.began.clear()
        self._script.now += module.COOLDOWN_SECONDS

    def let_go(self) -> None:
        self.go_on.set()
        for thread in self.held:
            thread.join(60)

    def call(self, act: Callable[[], object]) -> None:
        thread = threading.Thread(target=act)
        thread.start()
        self.held.append(thread)


@pytest.fixture
def slow(script: Script) -> Iterator[Slow]:
    found = Slow(script)
    yield found
    found.let_go()


@pytest.mark.parametrize("cold", [False, True], ids=["an unknown key", "nothing known"])
def test_a_slow_provider_holds_one_thread_of_strangers(script, slow, cold):
    """However many made-up key ids come meanwhile: each is refused at once, for nobody knows yet."""
    if not cold:
        slow.know()
    refused: list[str] = []

    def stranger(kid: str) -> None:
        try:
            slow.ours.known_with(kid)
        except DomainError as error:
            refused.append(error.code)

    slow.call(lambda: stranger("first"))
    assert slow.began.wait(60)
    script.now += module.BRIEF_SECONDS
    for number in range(40):
        slow.call(lambda number=number: stranger(f"made-up-{number}"))
    for thread in slow.held[1:]:
        thread.join(60)
    assert refused == ["OVERLOADED"] * 40
    assert slow.held[0].is_alive()


def test_a_young_fetch_is_waited_for(script, slow, monkeypatch):
    """A page's calls at the moment of a new key, or in a fresh process: a provider that is well answers them all."""
    monkeypatch.setattr(module, "BRIEF_SECONDS", 60.0)  # of a busy machine
    slow.know()
    script.keys = [RSAKey.generate_key(2048, {"kid": "newer"}).as_dict(private=False)]
    found: list[Any] = []
    for _ in range(8):
        slow.call(lambda: found.extend(slow.ours.known_with("newer").keys))
    assert slow.began.wait(60)
    slow.let_go()
    assert [key.kid for key in found] == ["newer"] * 8


def test_logins_wait_for_a_slow_provider(script, slow):
    """Their token came from the provider itself: strangers' fetches and waits take no place of theirs."""
    slow.know()
    slow.call(lambda: slow.ours.known_with("made-up"))
    assert slow.began.wait(60)
    script.now += module.BRIEF_SECONDS
    script.keys = [RSAKey.generate_key(2048, {"kid": "newer"}).as_dict(private=False)]
    found: list[Any] = []
    for _ in range(4):
        slow.call(lambda: found.extend(slow.ours.known_with("newer", at_once=True).keys))
    script.now += 4.0
    slow.let_go()
    assert [key.kid for key in found] == ["newer"] * 4


def test_what_is_only_old_goes_on_while_another_renews_it(script, slow):
    slow.know()
    script.now += module.FRESH_SECONDS
    slow.call(slow.ours.known)
    assert slow.began.wait(60)
    script.now += 4.0
    assert slow.ours.known_with("rsa").keys


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
