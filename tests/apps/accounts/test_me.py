"""The own profile."""

import pytest

from apps.audit.models import AuditEvent
from tests.apps.conftest import login_as


def test_shows_the_user_and_no_secret(alice_api, alice):
    data = alice_api("GET", "/api/auth/me").data
    assert set(data) == {"id", "email", "email_verified", "name", "locale", "created_at", "updated_at", "quotas"}
    assert (data["id"], data["email"], data["email_verified"]) == (str(alice.pk), alice.email, False)


def test_name_and_locale_can_be_changed(alice_api, alice):
    answer = alice_api("PATCH", "/api/auth/me", {"name": "  Alice B. ", "locale": "zh-Hant"})
    assert (answer.data["name"], answer.data["locale"]) == ("Alice B.", "zh-Hant")
    alice.refresh_from_db()
    assert alice.name == "Alice B."
    assert AuditEvent.objects.get(action="user.profile_changed").detail == {"fields": ["locale", "name"]}


def test_a_change_that_changes_nothing_is_not_audited(alice_api):
    assert alice_api("PATCH", "/api/auth/me", {"name": "Alice"}).status == 200
    assert alice_api("PATCH", "/api/auth/me", {}).status == 200
    assert not AuditEvent.objects.filter(action="user.profile_changed").exists()


@pytest.mark.parametrize("field", ["id", "email", "is_staff", "is_superuser", "is_active", "password"])
def test_nothing_else_can_be_changed(alice_api, alice, field):
    before = {name: getattr(alice, name) for name in ("email", "is_staff", "is_superuser", "is_active", "password")}
    alice_api("PATCH", "/api/auth/me", {field: True})
    alice.refresh_from_db()
    assert {name: getattr(alice, name) for name in before} == before


@pytest.mark.parametrize(
    ("body", "field"), [({"name": 5}, "name"), ({"name": "n" * 201}, "name"), ({"locale": []}, "locale")]
)
def test_names_each_bad_field(alice, body, field):
    answer = login_as(alice)("PATCH", "/api/auth/me", body)
    assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", [field])
