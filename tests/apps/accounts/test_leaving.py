"""The end of an account: cut off at once, then erased, and the e-mail is free again."""

import datetime as dt
import uuid

import pytest
from django.conf import settings
from django.db import connection, transaction
from django.db.utils import DatabaseError
from django.utils import timezone
from procrastinate.contrib.django import app
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import leaving, sessions, tasks
from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.audit.pseudonyms import email_hash
from apps.common.actor import Actor
from apps.devices.models import Device
from apps.pairing.models import PairingToken
from tests.apps.conftest import PASSWORD, Api, login_as

ME = "/api/auth/me"


def leave(api: Api, **body: object):
    return api("DELETE", ME, {"password": PASSWORD, **body})


def erase() -> None:
    """The job, as the worker runs it."""
    job = ProcrastinateJob.objects.get(task_name="accounts.erase")
    tasks.erase(**job.args)


def test_cut_off_at_once(alice, alice_api, anonymous):
    other = login_as(alice)
    device = Device.objects.create(owner=alice, name="box")
    ticket = alice_api("POST", "/api/ws/ticket", {"device_id": str(device.pk)}).data["ticket"]
    answer = leave(alice_api)
    assert (answer.status, answer.data) == (200, None)
    assert (alice_api("GET", ME).status, other("GET", ME).status) == (401, 401)
    assert sessions.list_of(alice.pk, now=timezone.now()) == []
    assert anonymous("GET", f"/api/devices/{device.pk}/proxy/x?ticket={ticket}").code == "UNAUTHENTICATED"
    assert anonymous("POST", "/api/auth/login", {"email": alice.email, "password": PASSWORD}).status == 401
    jobs = set(ProcrastinateJob.objects.values_list("task_name", flat=True))
    assert jobs >= {"tunnels.close_user", "devices.unpair_all", "accounts.erase"}
    assert alice.email not in str([job.args for job in ProcrastinateJob.objects.all()])


def test_the_e_mail_is_free_before_the_job_has_run(alice, alice_api, anonymous):
    leave(alice_api)
    made = anonymous("POST", "/api/auth/register", {"email": "ALICE@example.com", "password": PASSWORD})
    assert made.status == 201
    erase()  # takes nothing from the new one
    new = User.objects.get()
    assert (new.email, str(new.pk)) == ("ALICE@example.com", made.data["user"]["id"])
    assert AuditEvent.objects.filter(actor=str(new.pk), action="user.register").count() == 1


def test_nothing_is_left(alice, alice_api, bob):
    Device.objects.create(owner=alice, name="box", serial="S1")
    Device.objects.create(owner=bob, name="box", serial="S1")
    alice_api("POST", "/api/pairing/token", {"name": "t"})
    leave(alice_api)
    erase()
    assert list(User.objects.all()) == [bob]
    assert [device.owner for device in Device.objects.all()] == [bob]
    assert not PairingToken.objects.exists()


def test_the_trail_stays_without_the_person(alice, alice_api, bob_api, anonymous):
    anonymous("POST", "/api/auth/login", {"email": "ALICE@example.com", "password": "wrong"})
    alice_api("PATCH", ME, {"name": "A"})
    bob_api("PATCH", ME, {"name": "B"})
    before = AuditEvent.objects.count()
    leave(alice_api)
    erase()
    rows = list(AuditEvent.objects.order_by("id"))
    assert len(rows) >= before + 1  # nothing is deleted
    text = str([row.__dict__ for row in rows]).lower()
    assert "alice" not in text
    assert str(alice.pk) not in text
    (changed,) = [row for row in rows if row.action == "user.profile_changed" and row.actor_label == "deleted user"]
    assert changed.actor.startswith("deleted-")
    assert (changed.object_id, changed.address, changed.detail) == (changed.actor, "", {})
    (gone,) = [row for row in rows if row.action == "user.deleted"]
    assert gone.actor == changed.actor  # one story
    (bobs,) = [row for row in rows if row.action == "user.profile_changed" and row.actor_label == "bob@example.com"]
    assert bobs.detail == {"fields": ["name"]}


def test_failed_logins_before_there_was_an_account(alice, alice_api):
    now = timezone.now()
    for email in ("Alice@Example.com", "bob@example.com"):
        AuditEvent.objects.create(at=now, action="user.login_failed", address="192.0.2.7", detail={"email": email})
    leave(alice_api)
    erase()
    rows = AuditEvent.objects.filter(action="user.login_failed").order_by("id")
    assert [(row.address, row.detail) for row in rows] == [
        ("192.0.2.7", {}), ("192.0.2.7", {"email": "bob@example.com"}),
    ]  # fmt: skip


def test_the_trail_is_append_only_again_afterwards(alice, alice_api):
    leave(alice_api)
    erase()
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditEvent.objects.update(action="x")


def test_the_job_may_run_twice_and_late(alice, alice_api):
    leave(alice_api)
    erase()
    rows = AuditEvent.objects.count()
    erase()
    assert AuditEvent.objects.count() == rows
    assert not leaving.end_account(actor=Actor.system(), user_id=alice.pk, now=timezone.now())


def test_a_step_that_fails_keeps_the_rest_for_the_next_try(alice, alice_api):
    leave(alice_api)

    def fail(_name: str) -> None:
        raise RuntimeError("storage is away")

    with pytest.raises(RuntimeError):
        leaving.erase(user_id=alice.pk, email=email_hash(alice.email), run=fail)
    assert User.objects.filter(pk=alice.pk, is_active=False).exists()
    erase()
    assert not User.objects.filter(pk=alice.pk).exists()


def test_someone_who_did_not_leave_is_not_erased(alice):
    leaving.erase(user_id=alice.pk, email="", run=lambda _name: None)
    assert User.objects.get() == alice


def test_each_step_is_a_job_that_there_is(transactional_db):
    """Each takes a `user_id`, may run for somebody who has nothing, and needs no queue."""
    with connection.cursor() as cursor:
        cursor.execute("TRUNCATE procrastinate_jobs CASCADE")
    for name in settings.ACCOUNT_END_TASKS:
        app.tasks[name](user_id=str(uuid.uuid4()))
    assert settings.ACCOUNT_END_TASKS[0] == "devices.unpair_all"


def test_not_without_the_password(alice_api):
    answer = leave(alice_api, password="wrong")
    assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")
    assert leave(alice_api, password="").code == "VALIDATION_ERROR"
    assert alice_api("GET", ME).status == 200


@pytest.mark.parametrize("body", [{}, {"email": "alice@example.com"}])
def test_the_e_mail_alone_is_no_password(alice_api, body):
    assert alice_api("DELETE", ME, body).code == "INVALID_CREDENTIALS"


def test_strangers_and_bad_bodies(anonymous, alice_api):
    assert leave(anonymous).status == 401
    assert leave(alice_api, password=5).code == "VALIDATION_ERROR"
    assert alice_api("DELETE", ME, b"{").code == "BAD_REQUEST"


class TestWithoutAPassword:
    """Who logs in by a provider alone repeats the e-mail, with a login that is fresh."""

    @pytest.fixture
    def sso(self, alice) -> User:
        alice.oidc_issuer, alice.oidc_subject = "https://id.example", "1"
        alice.set_unusable_password()
        alice.save()
        return alice

    def test_the_e_mail_and_a_fresh_login(self, sso, alice_api):
        answer = alice_api("DELETE", ME, {"email": "Someone@example.com"})
        assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")
        assert alice_api("DELETE", ME, {"email": "ALICE@example.com"}).status == 200

    def test_a_login_that_is_not_fresh(self, sso):
        old = timezone.now() - leaving.FRESH - dt.timedelta(seconds=1)
        token, _ = sessions.create(user_id=sso.pk, address="", agent="", now=old)
        answer = Api(token)("DELETE", ME, {"email": sso.email})
        assert (answer.status, answer.code) == (403, "FORBIDDEN")
