"""Registering: the e-mail is the name in any case, and one of two that race wins."""

import threading

import pytest
from django.db import connection

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from tests.apps.conftest import PASSWORD, Api

GOOD = {"email": "New@Example.com", "password": PASSWORD, "name": "New"}


def test_answers_201_with_the_user(anonymous, db):
    answer = anonymous("POST", "/api/auth/register", GOOD)
    assert answer.status == 201
    assert set(answer.data) == {"user"}
    user = answer.data["user"]
    assert (user["email"], user["name"]) == ("New@Example.com", "New")
    assert user["id"] == str(User.objects.get().pk)


def test_stores_an_argon2_hash_alone(anonymous, db):
    anonymous("POST", "/api/auth/register", GOOD)
    assert User.objects.get().password.startswith("argon2$argon2id$")


def test_is_audited(anonymous, db):
    anonymous("POST", "/api/auth/register", GOOD, x_request_id="the-id")
    row = AuditEvent.objects.get(action="user.register")
    assert (row.actor, row.object_id, row.request_id) == (str(User.objects.get().pk),) * 2 + ("the-id",)


def test_the_same_email_in_another_case_is_taken(anonymous, db):
    anonymous("POST", "/api/auth/register", GOOD)
    again = anonymous("POST", "/api/auth/register", {**GOOD, "email": "nEW@eXAMPLE.COM"})
    assert (again.status, again.code) == (409, "EMAIL_TAKEN")
    assert User.objects.count() == 1


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"email": None}, "email"),
        ({"email": ""}, "email"),
        ({"email": "no-at-sign"}, "email"),
        ({"email": 5}, "email"),
        ({"email": ["a@example.com"]}, "email"),
        ({"email": "a" * 250 + "@example.com"}, "email"),
        ({"email": "nul\x00@example.com"}, "email"),
        ({"password": ""}, "password"),
        ({"password": "short"}, "password"),
        ({"password": "x" * 129}, "password"),
        ({"password": 12345678}, "password"),
        ({"password": "password"}, "password"),
        ({"name": "n" * 201}, "name"),
        ({"name": 1}, "name"),
        ({"name": None}, "name"),
        ({"locale": "l" * 17}, "locale"),
    ],
)
def test_names_each_bad_field(anonymous, db, change, field):
    answer = anonymous("POST", "/api/auth/register", {**GOOD, **change})
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [field]
    assert all(isinstance(text, str) for text in answer.error["details"][field])


def test_names_missing_fields(anonymous, db):
    assert set(anonymous("POST", "/api/auth/register", {}).error["details"]) == {"email", "password"}


@pytest.mark.parametrize("body", [[], "text", 5, None, [GOOD]])
def test_a_body_that_is_no_object_is_refused(anonymous, db, body):
    answer = anonymous("POST", "/api/auth/register", body)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")


def test_can_be_closed(anonymous, db, settings):
    settings.VISIONA = {**settings.VISIONA, "REGISTRATION": "closed"}
    answer = anonymous("POST", "/api/auth/register", GOOD)
    assert (answer.status, answer.code) == (403, "FORBIDDEN")
    assert not User.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_of_two_that_race_one_wins():
    answers = []
    start = threading.Barrier(4)

    def register(email: str) -> None:
        try:
            api = Api()
            start.wait(10)
            answers.append(api("POST", "/api/auth/register", {**GOOD, "email": email}))
        finally:
            connection.close()

    emails = ["race@example.com", "RACE@example.com", "Race@Example.com", "raCE@example.com"]
    threads = [threading.Thread(target=register, args=(email,)) for email in emails]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answer.status for answer in answers) == [201, 409, 409, 409]
    assert {answer.code for answer in answers if answer.status == 409} == {"EMAIL_TAKEN"}
    assert User.objects.count() == 1
    assert AuditEvent.objects.filter(action="user.register").count() == 1
