"""Logging in: what is answered, and what is told apart from what."""

import datetime as dt
import re

import pytest
from django.contrib.auth import hashers
from django.test import Client
from django.utils import timezone

from apps.accounts import services, sessions
from apps.audit.models import AuditEvent
from apps.common import redis
from apps.common.actor import Actor
from tests.apps.conftest import PASSWORD


def test_answers_user_and_token(anonymous, alice):
    before = timezone.now()
    answer = anonymous("POST", "/api/auth/login", {"email": "ALICE@example.com", "password": PASSWORD})
    assert answer.status == 200
    assert set(answer.data) == {"user", "access_token", "token_type", "expires_at", "idle_timeout"}
    assert re.fullmatch(r"vAu_[0-9a-f]{32}", answer.data["access_token"])
    assert (answer.data["token_type"], answer.data["idle_timeout"]) == ("Bearer", 43200)
    lasts = dt.datetime.fromisoformat(answer.data["expires_at"]) - before
    assert dt.timedelta(days=30) <= lasts < dt.timedelta(days=30, minutes=1)
    assert answer.data["user"]["id"] == str(alice.pk)


def test_the_token_opens_me_which_shows_the_same_user(anonymous, alice):
    data = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).data
    anonymous.token = data["access_token"]
    me = anonymous("GET", "/api/auth/me").data
    assert me.pop("quotas")
    assert me == data["user"]


def test_the_token_is_stored_as_its_hash_alone(anonymous, alice):
    token = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).data["access_token"]
    client = redis.client()
    stored = "".join(f"{key}{client.hgetall(key) if client.type(key) == 'hash' else ''}" for key in client.keys("*"))
    assert token not in stored
    assert token[4:] not in stored


@pytest.mark.parametrize(
    "body", [{"email": "alice@example.com", "password": "wrong"}, {"email": "nobody@example.com", "password": PASSWORD}]
)
def test_wrong_password_and_unknown_email_look_alike(anonymous, alice, body):
    answer = anonymous("POST", "/api/auth/login", body)
    assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    row = AuditEvent.objects.get(action="user.login_failed")
    assert row.detail == {"email": body["email"], "code": "INVALID_CREDENTIALS"}


def test_what_is_no_e_mail_is_not_kept(anonymous, alice):
    """A password or a token that was typed into the wrong field would stand in the trail for a year."""
    for typed in (PASSWORD, "vAu_" + "0" * 32, "alice@"):
        assert anonymous("POST", "/api/auth/login", {"email": typed, "password": "x"}).code == "INVALID_CREDENTIALS"
        Client().post("/admin/login/", {"username": typed, "password": "x"})
    rows = AuditEvent.objects.filter(action__endswith=".login_failed")
    assert [row.detail["email"] for row in rows] == [""] * 6


@pytest.mark.parametrize("email", ["alice@example.com", "nobody@example.com"])
def test_each_refusal_costs_one_hash(anonymous, alice, email, monkeypatch):
    """Time does not tell whether an account exists: the costly part runs once in either case."""
    hashed = []
    encode = hashers.get_hasher().__class__.encode
    verify = hashers.get_hasher().__class__.verify
    monkeypatch.setattr("apps.accounts.hashers.Argon2Hasher.encode", lambda *a: hashed.append(1) or encode(*a))
    monkeypatch.setattr("apps.accounts.hashers.Argon2Hasher.verify", lambda *a: hashed.append(1) or verify(*a))
    anonymous("POST", "/api/auth/login", {"email": email, "password": "wrong"})
    assert len(hashed) == 1


def test_a_disabled_account_is_told_after_the_right_password_alone(anonymous, alice):
    alice.is_active = False
    alice.save()
    wrong = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": "wrong"})
    right = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD})
    assert (wrong.status, wrong.code) == (401, "INVALID_CREDENTIALS")
    assert (right.status, right.code) == (403, "ACCOUNT_DISABLED")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"password": "x"}, "email"),
        ({"email": "a@example.com"}, "password"),
        ({"email": "", "password": "x"}, "email"),
        ({"email": 5, "password": "x"}, "email"),
        ({"email": "a@example.com", "password": None}, "password"),
        ({"email": "a@example.com", "password": "x" * 1025}, "password"),
        ({"email": "a" * 255, "password": "x"}, "email"),
    ],
)
def test_names_each_bad_field(anonymous, db, body, field):
    answer = anonymous("POST", "/api/auth/login", body)
    assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", [field])


def test_a_bad_credential_beside_it_does_not_matter(anonymous, alice):
    anonymous.token = "vAu_" + "0" * 32
    assert anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).status == 200


def test_an_unusable_password_is_no_password(anonymous, make_user):
    user = make_user("oidc@example.com")
    user.set_unusable_password()
    user.save()
    answer = anonymous("POST", "/api/auth/login", {"email": user.email, "password": user.password})
    assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")


def test_a_login_that_cannot_be_audited_leaves_no_session(alice, monkeypatch):
    def fail(**_values: object) -> None:
        raise RuntimeError("no audit")

    monkeypatch.setattr(services, "record", fail)
    with pytest.raises(RuntimeError):
        services.login(actor=Actor.system(), email=alice.email, password=PASSWORD, agent="", now=timezone.now())
    assert sessions.list_of(alice.pk, now=timezone.now()) == []
