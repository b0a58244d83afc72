"""The static development user of VISIONA_STATIC_USER_ID, as the prototype's front ends know it."""

import pytest

from apps.accounts import demo
from apps.accounts.models import User
from tests.apps.conftest import PASSWORD


@pytest.fixture(autouse=True)
def _static(settings, db):
    settings.VISIONA = {**settings.VISIONA, "STATIC_USER_ID": "demo-user"}


@pytest.mark.parametrize("email", ["demo@visionA.local", "DEMO@VISIONA.LOCAL"])
def test_login_takes_any_password(anonymous, email):
    data = anonymous("POST", "/api/auth/login", {"email": email, "password": "any"}).data
    assert data["user"]["id"] == "demo-user"
    assert data["user"]["email"] == "demo@visionA.local"
    assert data["access_token"] == "demo-access-token"
    assert set(data) == {"user", "access_token", "token_type", "expires_at", "idle_timeout"}


@pytest.mark.parametrize("token", [None, "demo-access-token"])
def test_calls_act_as_the_demo_user(anonymous, token):
    anonymous.token = token
    assert anonymous("GET", "/api/auth/me").data["id"] == "demo-user"
    assert User.objects.get().email == demo.DEMO_EMAIL


def test_logging_out_changes_nothing(anonymous):
    assert anonymous("POST", "/api/auth/logout").json == {"success": True, "data": None}
    assert anonymous("GET", "/api/auth/me").status == 200
    assert anonymous("GET", "/api/auth/sessions").data == []


def test_others_log_in_with_their_password(anonymous, alice):
    wrong = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": "any"})
    assert wrong.code == "INVALID_CREDENTIALS"
    data = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).data
    assert data["user"]["id"] == str(alice.pk)
    anonymous.token = data["access_token"]
    assert anonymous("GET", "/api/auth/me").data["id"] == str(alice.pk)


def test_a_wrong_token_is_still_refused(anonymous):
    anonymous.token = "vAu_" + "0" * 32
    assert anonymous("GET", "/api/auth/me").code == "UNAUTHENTICATED"


def test_a_disabled_demo_user_is_refused(anonymous):
    demo.ensure_demo_user()
    User.objects.update(is_active=False)
    assert anonymous("GET", "/api/auth/me").code == "UNAUTHENTICATED"
    login = anonymous("POST", "/api/auth/login", {"email": demo.DEMO_EMAIL, "password": "any"})
    assert login.code == "ACCOUNT_DISABLED"


def test_without_the_setting_there_is_none(anonymous, settings):
    settings.VISIONA = {**settings.VISIONA, "STATIC_USER_ID": ""}
    assert anonymous("GET", "/api/auth/me").status == 401
    answer = anonymous("POST", "/api/auth/login", {"email": demo.DEMO_EMAIL, "password": "any"})
    assert answer.code == "INVALID_CREDENTIALS"
    assert not User.objects.exists()


PROXY = "/api/devices/0198c000-0000-7000-8000-00000000abcd/proxy/x"


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
@pytest.mark.parametrize("path", ["/api/cameras/0", "/api/inference/x", "/api/devices/scan", PROXY])
def test_no_foreign_page_reaches_a_box_where_nobody_has_to_log_in(anonymous, path, origin):
    """A browser sends what needs no preflight (a form, an image) whoever's page it is."""
    for method in ("GET", "POST"):
        assert anonymous(method, path, origin=origin).code == "FORBIDDEN"


@pytest.mark.parametrize("given", [{}, {"origin": "http://localhost:5173"}])
def test_other_pages_reach_boxes(anonymous, given):
    assert anonymous("POST", PROXY, **given).code == "NOT_FOUND"  # no such device
