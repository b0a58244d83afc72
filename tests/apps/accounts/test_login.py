"""Logging in: what is answered, and what is told apart from what."""

from tests.apps.conftest import PASSWORD


def test_register_login_me(anonymous, db):
    answer = anonymous("POST", "/api/auth/register", {"email": "New@Example.com", "password": PASSWORD, "name": "N"})
    assert answer.status == 201, answer.json
    login = anonymous("POST", "/api/auth/login", {"email": "new@example.COM", "password": PASSWORD})
    assert login.status == 200, login.json
    assert set(login.data) == {"user", "access_token", "token_type", "expires_at", "idle_timeout"}
    anonymous.token = login.data["access_token"]
    assert anonymous("GET", "/api/auth/me").data == login.data["user"]
