"""Logging in at a real OpenID provider, as a browser does it: there, through its form, back, and on with our code."""

import datetime as dt
import json
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.utils import timezone

from apps.accounts.models import User
from apps.accounts.oidc import flow
from apps.accounts.oidc import provider as ours
from apps.audit.models import AuditEvent
from apps.common import redis
from tests.apps.accounts.provider_kit import CALLBACK, PAGE, OpenIdProvider, query
from tests.apps.conftest import Api

LOGIN, BACK, TOKEN = "/api/auth/oidc/login", "/api/auth/oidc/callback", "/api/auth/oidc/token"
pytestmark = pytest.mark.django_db


def begin(api: Api, page: str = PAGE):
    answer = api.client.get(LOGIN, {"redirect_uri": page})
    assert answer.status_code == 302, answer.content
    return answer


def come_back(api: Api, url: str):
    assert url.startswith(CALLBACK + "?")
    return api.client.get(url.removeprefix("http://localhost:3721"))


def through(provider: OpenIdProvider, api: Api, email: str) -> str:
    """Our code for a person who logs in there."""
    back = come_back(api, provider.log_in(begin(api)["Location"], email))
    assert back.status_code == 302
    return query(back["Location"])["code"]


def enter(provider: OpenIdProvider, email: str):
    api = Api()
    return api("POST", TOKEN, {"code": through(provider, api, email)})


def test_the_whole_way(provider, anonymous):
    there = begin(anonymous)
    asked = query(there["Location"])
    assert there["Location"].startswith(provider.issuer + "/authorize/?")
    assert (asked["response_type"], asked["code_challenge_method"], asked["redirect_uri"]) == ("code", "S256", CALLBACK)
    assert asked["scope"] == "openid email profile"
    assert len(asked["state"]) == len(asked["nonce"]) == len(asked["code_challenge"]) == 43
    cookie = there.cookies["visiona_oidc"]
    assert (cookie["max-age"], cookie["path"], cookie["httponly"], cookie["samesite"]) == (
        600, "/api/auth/oidc", True, "Lax",
    )  # fmt: skip

    back = come_back(anonymous, provider.log_in(there["Location"], provider.pat))
    assert back.status_code == 302
    page, _, fragment = back["Location"].partition("#")
    assert (page, list(query("x#" + fragment))) == (PAGE, ["code"])
    assert not User.objects.exists()  # a GET makes nobody
    code = query(back["Location"])["code"]

    answer = anonymous("POST", TOKEN, {"code": code})
    assert answer.status == 200
    assert set(answer.data) == {"user", "access_token", "token_type", "expires_at", "idle_timeout"}
    assert answer.data["user"] | {"email": provider.pat, "email_verified": True, "name": "Pat"} == answer.data["user"]
    me = Api(answer.data["access_token"])("GET", "/api/auth/me").data
    assert me.pop("quotas")
    assert me == answer.data["user"]
    user = User.objects.get()
    assert (user.oidc_issuer, user.has_usable_password()) == (provider.issuer, False)
    acts = AuditEvent.objects.filter(object_id=str(user.pk)).order_by("id").values_list("action", "actor_label")
    assert list(acts) == [("user.register", provider.pat), ("user.login", provider.pat)]

    again = anonymous("POST", TOKEN, {"code": code})
    assert (again.status, again.code) == (401, "INVALID_CREDENTIALS")


def test_over_https_the_cookie_is_of_this_host_alone(provider, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "PUBLIC_URL", "https://cloud.example")
    browser, planted = Api(), Api()
    there = begin(browser)
    cookie = there.cookies["__Host-visiona_oidc"]
    assert (cookie["path"], cookie["secure"], cookie["httponly"], cookie["domain"]) == ("/", True, True, "")
    refused = {"state": query(there["Location"])["state"], "error": "access_denied", "iss": provider.issuer}
    planted.client.cookies["visiona_oidc"] = cookie.value  # what a neighbouring subdomain can set
    assert planted.client.get(BACK, refused, secure=True).status_code == 400
    refused["state"] = query(begin(browser)["Location"])["state"]
    assert browser.client.get(BACK, refused, secure=True)["Location"] == f"{PAGE}#error=FORBIDDEN"


def test_the_same_person_is_the_same_user_and_nothing_secret_is_kept(provider):
    first = enter(provider, provider.pat).data["user"]["id"]
    assert enter(provider, provider.pat).data["user"]["id"] == first
    assert User.objects.count() == 1
    assert redis.client().keys("visiona:oidc:*") == []  # states and codes are used up


def test_a_state_is_good_once_and_in_its_browser_alone(provider, anonymous):
    url = provider.log_in(begin(anonymous)["Location"], provider.pat)
    stolen = come_back(Api(), url)
    assert (stolen.status_code, json.loads(stolen.content)["error"]["code"]) == (400, "BAD_REQUEST")
    late = come_back(anonymous, url)  # the attempt used it up
    assert late.status_code == 400
    url = provider.log_in(begin(anonymous)["Location"], provider.pat)
    assert come_back(anonymous, url).status_code == 302
    assert come_back(anonymous, url).status_code == 400


def test_two_tabs_of_one_browser(provider, anonymous):
    one, two = begin(anonymous)["Location"], begin(anonymous)["Location"]
    assert come_back(anonymous, provider.log_in(one, provider.pat)).status_code == 302
    assert come_back(anonymous, provider.log_in(two, provider.pat)).status_code == 302


def test_what_is_kept_lasts_ten_minutes_and_one(provider, anonymous):
    there = begin(anonymous)
    (state,) = redis.client().keys("visiona:oidc:state:*")
    assert 60 < redis.client().ttl(state) <= 600
    assert query(there["Location"])["state"] not in str(state)
    come_back(anonymous, provider.log_in(there["Location"], provider.pat))
    (code,) = redis.client().keys("visiona:oidc:code:*")
    assert 0 < redis.client().ttl(code) <= 60


@pytest.mark.parametrize(
    "page", [PAGE + "/", PAGE + "?x=1", "http://spa.example", "javascript:alert(1)", "//spa.example/done"]
)
def test_pages_that_are_not_on_the_list(provider, anonymous, page):
    answer = anonymous("GET", f"{LOGIN}?{urlencode({'redirect_uri': page})}")
    assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", ["redirect_uri"])


def test_a_page_of_an_app(provider, anonymous):
    back = come_back(anonymous, provider.log_in(begin(anonymous, "app.example:/done")["Location"], provider.pat))
    assert back["Location"].startswith("app.example:/done#code=")


@pytest.mark.parametrize(
    "query_text", ["", "?redirect_uri=", "?redirect_uri=a&redirect_uri=b", f"?redirect_uri={PAGE}&x=1"]
)
def test_bad_queries_of_login(provider, anonymous, query_text):
    answer = anonymous("GET", LOGIN + query_text)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")


def test_bad_queries_of_callback(provider, anonymous):
    assert anonymous("GET", BACK).code == "VALIDATION_ERROR"
    assert anonymous("GET", BACK + "?state=x&state=y").code == "VALIDATION_ERROR"
    assert anonymous("GET", BACK + "?state=x&code=y").code == "BAD_REQUEST"


@pytest.mark.parametrize("body", [{}, {"code": 5}, {"code": ""}, {"code": "c" * 129}, []])
def test_bad_bodies_of_token(provider, anonymous, body):
    assert anonymous("POST", TOKEN, body).code == "VALIDATION_ERROR"


def test_who_refuses_there_ends_with_an_error_at_the_page(provider, anonymous):
    state = query(begin(anonymous)["Location"])["state"]
    said = {"state": state, "error": "access_denied", "error_description": "no", "iss": provider.issuer}
    back = anonymous.client.get(BACK, said)
    assert back["Location"] == f"{PAGE}#error=FORBIDDEN"


@pytest.mark.parametrize("said", [{}, {"iss": "http://other.example"}])
def test_an_answer_of_another_provider_is_refused(provider, anonymous, said):
    """RFC 9207: this one tells who it is, so an answer that does not is none of it."""
    state = query(begin(anonymous)["Location"])["state"]
    back = anonymous.client.get(BACK, {"state": state, "code": "x", **said})
    assert back["Location"] == f"{PAGE}#error=UNAUTHENTICATED"


def test_a_code_of_another_login_is_refused_by_pkce(provider, anonymous):
    """A code that was stolen from one login and put into another: the provider holds it against the verifier."""
    stolen = query(provider.log_in(begin(Api())["Location"], provider.pat))["code"]
    state = query(begin(anonymous)["Location"])["state"]
    back = anonymous.client.get(BACK, {"state": state, "code": stolen, "iss": provider.issuer})
    assert back["Location"] == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_grant"


def test_an_answer_to_another_question_is_refused_by_its_nonce(provider, anonymous):
    url = provider.log_in(begin(anonymous)["Location"], provider.pat)
    (key,) = redis.client().keys("visiona:oidc:state:*")
    kept = json.loads(redis.client().get(key))
    redis.client().set(key, json.dumps(kept | {"nonce": "another"}))
    assert come_back(anonymous, url)["Location"] == f"{PAGE}#error=UNAUTHENTICATED"


def test_a_secret_that_is_wrong_is_our_fault(provider, anonymous, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "OIDC_CLIENT_SECRET", "wrong")
    url = provider.log_in(begin(anonymous)["Location"], provider.pat)
    assert come_back(anonymous, url)["Location"] == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_client"


def test_while_the_provider_is_away(provider, anonymous):
    url = provider.log_in(begin(anonymous)["Location"], provider.pat)
    provider.stop()
    assert come_back(anonymous, url)["Location"] == f"{PAGE}#error=OVERLOADED"
    ours._provider.cache_clear()  # as a process that never reached it
    answer = anonymous("GET", f"{LOGIN}?{urlencode({'redirect_uri': PAGE})}")
    assert (answer.status, answer.code) == (503, "OVERLOADED")
    assert int(answer.headers["Retry-After"]) >= 1


class TestLinking:
    def test_both_sides_have_verified_the_e_mail(self, provider, make_user):
        user = make_user("PAT@example.com", email_verified_at=timezone.now())
        answer = enter(provider, provider.pat)
        assert answer.data["user"]["id"] == str(user.pk)
        user.refresh_from_db()
        assert (user.oidc_issuer, user.has_usable_password(), user.email) == (provider.issuer, True, "PAT@example.com")
        assert AuditEvent.objects.filter(action="user.oidc_linked", object_id=str(user.pk)).count() == 1

    def test_the_local_side_has_not(self, provider, make_user):
        user = make_user(provider.pat)
        answer = enter(provider, provider.pat)
        assert (answer.status, answer.code) == (409, "EMAIL_TAKEN")
        user.refresh_from_db()
        assert user.oidc_subject == ""

    def test_the_provider_has_not(self, provider, make_user):
        make_user(provider.una, email_verified_at=timezone.now())
        assert enter(provider, provider.una).code == "EMAIL_TAKEN"

    def test_it_is_linked_to_another_subject(self, provider, make_user):
        make_user(provider.pat, email_verified_at=timezone.now(), oidc_issuer=provider.issuer, oidc_subject="another")
        assert enter(provider, provider.pat).code == "EMAIL_TAKEN"

    def test_who_is_new_with_an_e_mail_that_nobody_verified(self, provider):
        answer = enter(provider, provider.una)
        assert (answer.status, answer.data["user"]["email_verified"]) == (200, False)


def test_registration_is_closed(provider, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "REGISTRATION", "closed")
    answer = enter(provider, provider.pat)
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    assert not User.objects.exists()


def test_who_is_known_may_log_in_though_registration_is_closed(provider, monkeypatch):
    enter(provider, provider.pat)
    monkeypatch.setitem(settings.VISIONA, "REGISTRATION", "closed")
    assert enter(provider, provider.pat).status == 200


def test_who_is_disabled(provider):
    enter(provider, provider.pat)
    User.objects.update(is_active=False)
    answer = enter(provider, provider.pat)
    assert (answer.status, answer.code) == (403, "ACCOUNT_DISABLED")


@pytest.mark.parametrize(("method", "path"), [("GET", LOGIN), ("GET", BACK), ("POST", TOKEN), ("GET", LOGIN + "?x=1")])
def test_without_a_provider_there_is_no_such_thing(anonymous, method, path):
    answer = anonymous(method, path, b"{" if method == "POST" else None)
    assert (answer.status, answer.code) == (404, "NOT_FOUND")


@pytest.mark.parametrize(("method", "path"), [("POST", LOGIN), ("DELETE", BACK), ("GET", TOKEN)])
def test_another_method_comes_before_that(anonymous, method, path):
    assert anonymous(method, path).status == 405


def test_a_code_that_is_over(provider, anonymous):
    code = through(provider, anonymous, provider.pat)
    (key,) = redis.client().keys("visiona:oidc:code:*")
    redis.client().pexpireat(key, dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1))
    assert anonymous("POST", TOKEN, {"code": code}).code == "INVALID_CREDENTIALS"
    assert flow.CODE_SECONDS == 60
