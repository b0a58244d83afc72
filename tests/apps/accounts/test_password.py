"""Changing a password, and resetting one that is forgotten."""

import datetime as dt
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import credentials, mail_tokens, services, sessions
from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.conftest import PASSWORD, Api, login_as

CHANGE, RESET, CONFIRM = "/api/auth/password", "/api/auth/password/reset", "/api/auth/password/reset/confirm"
NEW = "another long pass phrase"


def can_log_in(email: str, password: str) -> bool:
    return Api()("POST", "/api/auth/login", {"email": email, "password": password}).status == 200


class TestChange:
    def test_ends_the_others_and_not_this_one(self, alice, alice_api):
        other = login_as(alice)
        assert alice_api("POST", CHANGE, {"current": PASSWORD, "new": NEW}).data is None
        assert alice_api("GET", "/api/auth/me").status == 200
        assert other("GET", "/api/auth/me").status == 401
        assert (can_log_in(alice.email, NEW), can_log_in(alice.email, PASSWORD)) == (True, False)
        assert AuditEvent.objects.get(action="user.password_changed").actor == str(alice.pk)
        (letter,) = deliver()
        assert letter.subject == "Your VisionA Cloud password was changed"

    def test_the_daemons_drop_the_ended_ones_alone(self, alice, alice_api):
        login_as(alice)
        before = {each.token_hash for each in sessions.list_of(alice.pk, now=timezone.now())}
        alice_api("POST", CHANGE, {"current": PASSWORD, "new": NEW})
        (kept,) = sessions.list_of(alice.pk, now=timezone.now())
        job = ProcrastinateJob.objects.get(task_name="tunnels.invalidate")
        assert (set(job.args["logins"]), job.args["users"]) == (before - {kept.token_hash}, [])

    def test_a_wrong_one(self, alice, alice_api):
        answer = alice_api("POST", CHANGE, {"current": "wrong", "new": NEW})
        assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")
        assert AuditEvent.objects.filter(action="user.password_refused").count() == 1
        assert can_log_in(alice.email, PASSWORD)

    def test_a_stolen_login_does_not_guess_at_leisure(self, alice_api):
        codes = [alice_api("POST", CHANGE, {"current": f"guess {n}", "new": NEW}).code for n in range(11)]
        assert codes == ["INVALID_CREDENTIALS"] * 10 + ["RATE_LIMITED"]

    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({"new": NEW}, "current"),
            ({"current": PASSWORD}, "new"),
            ({"current": PASSWORD, "new": "short"}, "new"),
            ({"current": PASSWORD, "new": "password1"}, "new"),
            ({"current": PASSWORD, "new": "x" * 129}, "new"),
            ({"current": PASSWORD, "new": 12345678}, "new"),
            ({"current": ["x"], "new": NEW}, "current"),
        ],
    )
    def test_names_each_bad_field(self, alice_api, body, field):
        answer = alice_api("POST", CHANGE, body)
        assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", [field])

    def test_strangers_and_disabled(self, anonymous, alice, alice_api):
        assert anonymous("POST", CHANGE, {}).status == 401
        User.objects.update(is_active=False)
        assert alice_api("POST", CHANGE, {}).status == 401

    def test_who_has_none(self, alice, alice_api):
        alice.set_unusable_password()
        alice.save()
        assert alice_api("POST", CHANGE, {"current": "x", "new": NEW}).code == "INVALID_STATE"

    def test_a_login_with_the_old_one_at_this_moment_opens_nothing(self, alice, monkeypatch):
        """The password is changed between the check and the new session."""
        create = sessions.create

        def meanwhile(**values):
            alice.set_password(NEW)
            alice.save()
            return create(**values)

        monkeypatch.setattr(sessions, "create", meanwhile)
        with pytest.raises(DomainError, match="INVALID_CREDENTIALS"):
            services.login(actor=Actor.system(), email=alice.email, password=PASSWORD, agent="", now=timezone.now())
        assert sessions.list_of(alice.pk, now=timezone.now()) == []


class TestReset:
    def test_the_whole_way(self, alice, alice_api, anonymous):
        answer = anonymous("POST", RESET, {"email": "ALICE@example.com"})
        assert (answer.status, answer.data) == (200, None)
        (letter,) = deliver()
        assert (letter.to, letter.subject) == ([alice.email], "Set a new password for VisionA Cloud")
        assert "for 60 minutes" in letter.body
        token = token_in(letter)
        assert anonymous("POST", CONFIRM, {"token": token, "password": NEW}).data is None
        assert alice_api("GET", "/api/auth/me").status == 401  # every login has ended
        assert (can_log_in(alice.email, NEW), can_log_in(alice.email, PASSWORD)) == (True, False)
        alice.refresh_from_db()
        assert alice.email_verified_at is not None
        assert AuditEvent.objects.filter(action="user.password_reset", actor=str(alice.pk)).count() == 1
        again = anonymous("POST", CONFIRM, {"token": token, "password": NEW + "!"})
        assert (again.status, again.code, list(again.error["details"])) == (401, "INVALID_CREDENTIALS", ["token"])

    def test_nobody_learns_whether_there_is_an_account(self, alice, make_user, anonymous, django_assert_num_queries):
        make_user("off@example.com", is_active=False)
        gone = make_user("sso@example.com", oidc_issuer="https://id.example", oidc_subject="1")
        gone.set_unusable_password()
        gone.save()
        answers = []
        anonymous("POST", RESET, {"email": "warm@example.com"})
        for email in (alice.email, "nobody@example.com", "off@example.com", "sso@example.com", "no e-mail at all"):
            with django_assert_num_queries(4):  # savepoint, look-up, job, release: the same for all
                answers.append(anonymous("POST", RESET, {"email": email}))
        assert {(answer.status, str(answer.json)) for answer in answers} == {(200, "{'success': True, 'data': None}")}
        jobs = ProcrastinateJob.objects.filter(task_name="accounts.send_mail")
        assert jobs.count() == 6
        assert [letter.to for letter in deliver()] == [[alice.email]]

    def test_no_job_names_the_e_mail(self, alice, anonymous):
        anonymous("POST", RESET, {"email": alice.email})
        anonymous("POST", RESET, {"email": "nobody@example.com"})
        jobs = ProcrastinateJob.objects.filter(task_name="accounts.send_mail").order_by("id")
        assert [(job.args["user_id"], job.args["email"]) for job in jobs] == [(str(alice.pk), ""), ("", "")]

    def test_not_at_leisure(self, db, anonymous):
        codes = [anonymous("POST", RESET, {"email": "nobody@example.com"}).status for _ in range(6)]
        assert codes == [200] * 5 + [429]
        assert anonymous("POST", RESET, {"email": "other@example.com"}).status == 200

    @pytest.mark.parametrize("body", [{}, {"email": 5}, {"email": ""}, {"email": "x" * 255}, []])
    def test_bad_bodies(self, db, anonymous, body):
        assert anonymous("POST", RESET, body).code == "VALIDATION_ERROR"


class TestConfirm:
    @pytest.fixture
    def token(self, alice) -> str:
        return mail_tokens.issue("reset", alice, email=alice.email, now=timezone.now())

    def confirm(self, token: str, password: str = NEW):
        return Api()("POST", CONFIRM, {"token": token, "password": password})

    def test_a_bad_password_does_not_use_it_up(self, alice, token):
        answer = self.confirm(token, "short")
        assert list(answer.error["details"]) == ["password"]
        assert self.confirm(token).status == 200

    def test_it_dies_with_the_password(self, alice, alice_api, token):
        alice_api("POST", CHANGE, {"current": PASSWORD, "new": NEW})
        assert self.confirm(token).code == "INVALID_CREDENTIALS"

    def test_it_dies_after_an_hour(self, alice):
        for seconds, good in ((3_700, False), (3_500, True)):
            sent = timezone.now() - dt.timedelta(seconds=seconds)
            token = mail_tokens.issue("reset", alice, email=alice.email, now=sent)
            assert (self.confirm(token).status == 200) is good

    def test_a_disabled_account_stays_shut(self, alice, token):
        services.set_active(actor=Actor.system(), user_id=alice.pk, active=False, now=timezone.now())
        assert self.confirm(token).code == "INVALID_CREDENTIALS"
        fresh = mail_tokens.issue("reset", User.objects.get(pk=alice.pk), email=alice.email, now=timezone.now())
        assert self.confirm(fresh).code == "INVALID_CREDENTIALS"

    def test_one_of_another_purpose(self, alice):
        token = mail_tokens.issue("verify", alice, email=alice.email, now=timezone.now())
        assert self.confirm(token).code == "INVALID_CREDENTIALS"

    def test_the_admins_login_ends_too(self, make_user, client):
        root = make_user("root@example.com", is_staff=True, is_superuser=True)
        client.force_login(root)
        assert client.get("/admin/").status_code == 200
        assert self.confirm(mail_tokens.issue("reset", root, email=root.email, now=timezone.now())).status == 200
        assert client.get("/admin/").status_code == 302


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_uses_the_token(make_user):
    user = make_user("alice@example.com")
    token = mail_tokens.issue("reset", user, email=user.email, now=timezone.now())

    def use(number: int) -> str:
        try:
            credentials.confirm_reset(
                actor=Actor.system(), token=token, new=f"{NEW} {number}", now=timezone.now(), seconds=3600
            )
        except DomainError as error:
            return error.code
        finally:
            connections.close_all()
        return "won"

    with ThreadPoolExecutor(6) as pool:
        told = list(pool.map(use, range(6)))
    assert sorted(told) == ["INVALID_CREDENTIALS"] * 5 + ["won"]
    assert User.objects.get().check_password(f"{NEW} {told.index('won')}")
