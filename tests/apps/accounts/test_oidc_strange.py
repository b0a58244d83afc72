"""A provider that does strange things: keys that nobody can read or that change, claims of no calendar, slow heads."""

import json
import threading
import time
from urllib.parse import urlencode

import pytest
from django.conf import settings

from apps.accounts.models import User
from apps.accounts.oidc import flow
from apps.accounts.oidc import provider as module
from apps.accounts.oidc.config import config
from tests.apps.accounts.code_flow import LOGIN, TOKEN, begin, come_back
from tests.apps.accounts.provider_kit import query
from tests.apps.accounts.scripted_provider import PAGE, ScriptedProvider, new_key
from tests.apps.conftest import Api

ME, BACK = "/api/auth/me", "/api/auth/oidc/callback"
PAT = {"email": "pat@example.com", "email_verified": True, "name": "Pat"}
pytestmark = pytest.mark.django_db


def log_in(scripted: ScriptedProvider, **claims):
    """The whole way, as one browser goes it; the answer to the front end's code, or where it ended without one."""
    api = Api()
    ended = come_back(api, scripted.back(begin(api), **{**PAT, **claims}))
    told = query(ended)
    return api("POST", TOKEN, {"code": told["code"]}) if "code" in told else ended


# --- keys -------------------------------------------------------------------------------------------------------------
STRANGE = [
    {"kty": "EC", "kid": "a", "crv": "P-999", "x": "AA", "y": "AA"},
    {"kty": "OKP", "kid": "b", "crv": "X25519", "x": "AA"},
    {"kty": "EC", "kid": "c", "crv": "P-256", "x": "AA", "y": "AA"},
    {"kty": "EC", "kid": "d", "crv": ["P-256"], "x": {}, "y": 5},
    {"kty": "RSA", "kid": "e", "n": "A" * 400, "e": ""},
    {"kty": "RSA", "kid": ["f"], "n": "A" * 400, "e": 5, "key_ops": "verify"},
    {"kty": "EC", "kid": "g", "crv": "secp256k1", "x": "\ud800", "y": "AA"},
]


def test_keys_that_cannot_be_read_are_passed_over(scripted):
    scripted.published = [*STRANGE, scripted.key.as_dict(private=False)]
    assert Api(scripted.token(**PAT))("GET", ME).status == 200
    assert log_in(scripted).status == 200
    for strange in STRANGE:
        token = scripted.token(head={"kid": strange["kid"]})
        assert Api(token)("GET", ME).status == 401, strange


def test_a_key_that_changes_under_its_id_refuses_nobody(scripted):
    """The keys were fetched a moment ago; the login's own are fetched again, since its token came from the provider."""
    assert log_in(scripted).status == 200
    scripted.key = new_key("one")
    assert log_in(scripted).status == 200
    scripted.key = new_key("two")
    assert log_in(scripted).status == 200


def test_bearer_tokens_of_a_changed_key_are_taken_after_a_moment(scripted):
    assert Api(scripted.token(**PAT))("GET", ME).status == 200
    scripted.key = new_key("one")
    deadline = time.monotonic() + 4 * module.COOLDOWN_SECONDS
    while Api(scripted.token(**PAT))("GET", ME).status != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_strangers_tokens_cause_one_fetch_in_a_while(scripted):
    assert Api(scripted.token(**PAT))("GET", ME).status == 200
    forged = new_key("one")
    before = len(scripted.asked)
    began = time.monotonic()
    for _ in range(20):
        assert Api(scripted.token(key=forged, **PAT))("GET", ME).status == 401
    fetched = (len(scripted.asked) - before) / 2
    assert fetched <= 1 + (time.monotonic() - began) / module.COOLDOWN_SECONDS


# --- claims -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": float("nan")},
        {"iat": -(10**400)},
        {"nbf": 10**400},
        {"sub": "\ud800"},
        {"sub": "pat\udfff"},
        {"head": {"crit": ["b64"], "b64": True}},
        {"head": {"crit": []}},
        {"head": {"crit": "exp"}},
        {"head": {"crit": ["https://extension.example"], "https://extension.example": 1}},
    ],
    ids=ascii,
)
def test_tokens_that_prove_nothing(scripted, claims):
    answer = Api(scripted.token(**{**PAT, **claims}))("GET", ME)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
    assert not User.objects.exists()


@pytest.mark.parametrize("name", ["email", "name", "locale"])
def test_half_a_character_in_a_claim_is_none_of_ours(scripted, name):
    answer = log_in(scripted, **{name: "\ud800@example.com"})
    assert answer.status == 200
    assert "\\ud800" not in json.dumps(answer.data)


# --- errors -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("error", "told"),
    [
        ("access_denied", "error=FORBIDDEN"),
        ("temporarily_unavailable", "error=OVERLOADED"),
        ("server_error", "error=PROVIDER_ERROR&reason=server_error"),
        ("invalid_scope", "error=PROVIDER_ERROR&reason=invalid_scope"),
        ("<script>", "error=PROVIDER_ERROR"),
    ],
)
def test_the_providers_own_errors_are_told_as_such(scripted, anonymous, capfd, error, told):
    state = query(begin(anonymous))["state"]
    said = {
        "state": state,
        "error": error,
        "error_description": "the reason in words",
        "error_uri": "https://x.example",
    }
    assert come_back(anonymous, f"{BACK}?{urlencode(said)}") == f"{PAGE}#{told}"


def test_the_token_endpoints_error_too(scripted, anonymous):
    scripted.token_answer = (400, {"error": "invalid_client", "error_description": "no such client"})
    ended = come_back(anonymous, scripted.back(begin(anonymous)))
    assert ended == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_client"
    scripted.token_answer = (500, {"error": "server_error"})
    assert come_back(anonymous, scripted.back(begin(anonymous))) == f"{PAGE}#error=OVERLOADED"


def test_their_reason_is_logged(scripted, anonymous, monkeypatch):
    lines = []
    monkeypatch.setattr(flow.logger, "warning", lambda event, **more: lines.append((event, more)), raising=False)
    state = query(begin(anonymous))["state"]
    said = {"state": state, "error": "invalid_scope", "error_description": "no scope\n\u202e of that name"}
    come_back(anonymous, f"{BACK}?{urlencode(said)}")
    ((event, more),) = lines
    assert event == "oidc_login_failed"
    assert "invalid_scope" in more["error"]
    assert r"no scope\n\u202e of that name" in more["error"]


def test_parameters_that_nobody_knows_are_ignored(scripted, anonymous):
    """RFC 6749 §4.1.2: Google, Microsoft and others send their own."""
    path = scripted.back(begin(anonymous), **PAT) + "&x_vendor=1&session_state=abc&client_info=e30&x_vendor=2"
    assert "code" in query(come_back(anonymous, path))


def test_two_tabs_at_once_in_a_fresh_browser(scripted):
    """Both begin before either has its cookie: the second answer takes the first one's place."""
    browser, other = Api(), Api()
    one = begin(browser)
    two = begin(other)
    browser.client.cookies.update(other.client.cookies)  # one jar, as the browser has it
    for url in (one, two):
        assert "code" in query(come_back(browser, scripted.back(url, **PAT)))
    assert [name for name, morsel in browser.client.cookies.items() if morsel.value] == ["visiona_oidc"]


# --- time -------------------------------------------------------------------------------------------------------------
def test_a_head_that_drips_ends_in_time_and_holds_nobody_else(scripted, monkeypatch):
    assert log_in(scripted).status == 200
    monkeypatch.setitem(settings.VISIONA, "OIDC_TIMEOUT_SECONDS", 1.0)
    assert log_in(scripted).status == 200  # a provider of another deadline is another one of ours
    held = begin(Api())
    scripted.drip = "/token"
    began = time.monotonic()
    api = Api()
    slow: list[str] = []
    path = scripted.back(begin(api), **PAT)
    thread = threading.Thread(target=lambda: slow.append(api.client.get(path)["Location"]))
    thread.start()
    assert begin(Api())  # meanwhile
    assert held
    thread.join(60)
    assert time.monotonic() - began < 20
    assert slow == [f"{PAGE}#error=OVERLOADED"]


def test_discovery_that_drips(scripted, monkeypatch, anonymous):
    monkeypatch.setitem(settings.VISIONA, "OIDC_TIMEOUT_SECONDS", 1.0)
    scripted.drip = "/.well-known/openid-configuration"
    began = time.monotonic()
    answer = anonymous("GET", f"{LOGIN}?{urlencode({'redirect_uri': PAGE})}")
    assert (answer.status, answer.code) == (503, "OVERLOADED")
    assert time.monotonic() - began < 20


def test_made_up_keys_hold_one_call_while_the_provider_is_slow(scripted, monkeypatch):
    """The one that fetches. All others are refused though that goes on, and who has a known key is served."""
    good = scripted.token(**PAT)
    assert Api(good)("GET", ME).status == 200
    module.provider(config())._tried_at -= module.COOLDOWN_SECONDS
    scripted.drip = "/.well-known/openid-configuration"
    made_up = scripted.token(head={"kid": "made-up"})
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(Api(made_up)("GET", ME).status))
    before = len(scripted.asked)
    thread.start()
    deadline = time.monotonic() + 10
    while len(scripted.asked) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [Api(made_up)("GET", ME).code for _ in range(20)] == ["OVERLOADED"] * 20
    assert Api(good)("GET", ME).status == 200
    assert not answers
    scripted.over.set()
    thread.join(60)
    assert answers == [401]


def test_made_up_codes_of_one_address_leave_logins_to_others(scripted, monkeypatch):
    """Each is asked about at a provider that is slow. They take some of the places, and none of the last."""
    monkeypatch.setitem(settings.VISIONA, "API_THREADS", 16)  # four places: three for one address at most
    scripted.drip = "/token"
    ended: list[str] = []

    def come(address: str) -> threading.Thread:
        api = Api()
        path = scripted.back(begin(api), **PAT)
        thread = threading.Thread(target=lambda: ended.append(api.client.get(path, REMOTE_ADDR=address)["Location"]))
        thread.start()
        return thread

    def asked(count: int) -> None:
        deadline = time.monotonic() + 10
        while scripted.asked.count("/token") < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    held = [come("192.0.2.1") for _ in range(3)]
    asked(3)
    come("192.0.2.1").join(60)
    assert ended == [f"{PAGE}#error=OVERLOADED"]
    held.append(come("192.0.2.2"))
    asked(4)
    assert len(ended) == 1  # and all others are still held
    scripted.over.set()
    for thread in held:
        thread.join(60)
    scripted.drip = ""
    assert log_in(scripted).status == 200  # every place came back
