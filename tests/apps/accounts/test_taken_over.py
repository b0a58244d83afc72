"""An account that nobody had confirmed, taken over by the mailbox's owner: what a stranger prepared in it is gone."""

import pytest
from django.conf import settings
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import tasks
from apps.accounts.models import User, UserIdentity
from apps.audit.models import AuditEvent
from apps.devices.models import Device
from apps.pairing.models import PairingStatus, PairingToken
from apps.webhooks.models import Webhook
from tests.apps import objects
from tests.apps.accounts import factor_kit
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.accounts.scripted_provider import PAGE
from tests.apps.conftest import Api, login_as

RESET, CONFIRM = "/api/auth/password/reset", "/api/auth/password/reset/confirm"
NEW = "another good pass phrase"


def take_over(user: User) -> list:
    """By the mailbox: the letters that come of it."""
    deliver()
    assert Api()("POST", RESET, {"email": user.email}).status == 200
    (letter,) = deliver()
    assert Api()("POST", CONFIRM, {"token": token_in(letter), "password": NEW}).status == 200
    return deliver()


def shed_jobs() -> list:
    return list(ProcrastinateJob.objects.filter(task_name="accounts.shed"))


@pytest.fixture
def prepared(alice) -> User:
    objects.make_all(alice)  # a box, a pairing token, a webhook, an identity, a passkey
    return alice


def test_everything_that_was_prepared_is_gone(prepared):
    stranger = login_as(prepared)
    (letter,) = take_over(prepared)
    assert stranger("GET", "/api/auth/me").status == 401
    assert not UserIdentity.objects.filter(user=prepared).exists()
    (job,) = shed_jobs()
    own = Webhook.objects.create(
        owner=prepared, url="https://mine.example/", events=["device.online"], secret_sealed="x"
    )
    tasks.shed(**job.args)
    tasks.shed(**job.args)  # a job may run twice
    assert not Device.objects.filter(owner=prepared, deleted_at=None).exists()
    assert set(PairingToken.objects.filter(owner=prepared).values_list("status", flat=True)) == {PairingStatus.REVOKED}
    assert list(Webhook.objects.filter(owner=prepared)) == [own]  # made since, by who has the mailbox
    prepared.refresh_from_db()
    assert (prepared.name, prepared.email_verified_at is None) == ("", False)
    assert AuditEvent.objects.filter(action="user.taken_over", object_id=str(prepared.pk)).count() == 1
    assert "have been removed" in letter.body
    assert prepared.email in letter.body


@pytest.mark.parametrize("confirmed", [False, True])
def test_the_letter_says_beforehand_what_a_new_password_removes(prepared, confirmed):
    User.objects.update(email_verified_at=timezone.now() if confirmed else None)
    deliver()
    assert Api()("POST", RESET, {"email": prepared.email}).status == 200
    (letter,) = deliver()
    assert ("removes it for good" in letter.body) is not confirmed


def test_the_strangers_second_factor_keeps_nobody_out(prepared):
    factor_kit.on(prepared)
    take_over(prepared)
    assert Api()("POST", "/api/auth/login", {"email": prepared.email, "password": NEW}).status == 200


def test_who_had_confirmed_keeps_all(prepared):
    User.objects.update(email_verified_at=timezone.now())
    (letter,) = take_over(User.objects.get(pk=prepared.pk))
    assert shed_jobs() == []
    assert UserIdentity.objects.filter(user=prepared).exists()
    assert "was just changed" in letter.body


def test_whom_staff_added_had_nothing_prepared(db):
    user = User.objects.create_user("new@example.com", None, name="New")
    take_over(user)
    assert shed_jobs() == []


@pytest.mark.django_db
def test_the_console_has_a_button_for_the_provider(scripted, client, monkeypatch):
    assert b'id="provider"' not in client.get("/").content  # its page is not on the list
    monkeypatch.setitem(settings.VISIONA, "OIDC_REDIRECT_URIS", (PAGE, "http://localhost:3721/"))
    page = client.get("/").content.decode()
    assert 'href="/api/auth/oidc/login?redirect_uri=http%3A%2F%2Flocalhost%3A3721%2F"' in page
    answer = client.get("/api/auth/oidc/login?redirect_uri=http%3A%2F%2Flocalhost%3A3721%2F")
    assert answer.status_code == 302
