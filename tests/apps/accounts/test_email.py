"""Confirming an e-mail, and changing it: by the link that was sent to it, and by nothing else."""

import datetime as dt
from typing import get_args

import pytest
from django.conf import settings
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts import mail_tokens, mails, tasks
from apps.accounts.models import User
from apps.audit.models import AuditEvent
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.conftest import PASSWORD, login_as

VERIFY, RESEND, ME = "/api/auth/email/verify", "/api/auth/email/verify/resend", "/api/auth/me"
NEW = {"email": "new@example.com", "password": PASSWORD, "name": "Nia"}


def refused(answer) -> bool:
    return (answer.status, answer.code, list(answer.error["details"])) == (401, "INVALID_CREDENTIALS", ["token"])


def test_who_registers_confirms_by_the_link(db, anonymous):
    made = anonymous("POST", "/api/auth/register", NEW).data["user"]
    assert made["email_verified"] is False
    (letter,) = deliver()
    assert (letter.to, letter.subject) == (["new@example.com"], "Confirm your e-mail for VisionA Cloud")
    assert "Hello,\n" in letter.body
    assert "for 72 hours" in letter.body
    token = token_in(letter)
    assert f"{settings.VISIONA['PUBLIC_URL']}/#verify={token}" in letter.body

    answer = anonymous("POST", VERIFY, {"token": token})
    assert (answer.status, answer.data) == (
        200,
        {**made, "email_verified": True, "updated_at": answer.data["updated_at"]},
    )
    assert AuditEvent.objects.filter(action="user.email_verified", object_id=made["id"]).count() == 1
    assert refused(anonymous("POST", VERIFY, {"token": token}))  # once


def test_no_job_holds_a_token(db, anonymous):
    anonymous("POST", "/api/auth/register", NEW)
    (job,) = ProcrastinateJob.objects.filter(task_name="accounts.send_mail")
    assert set(job.args) == {"kind", "user_id", "email", "language", "request_id"}
    assert (job.args["kind"], job.args["email"]) == ("verify", "")


@pytest.mark.parametrize(
    ("locale", "accepted", "chinese"),
    [("zh-TW", "en", True), ("zh-Hant", "", True), ("en", "zh-TW", False), ("", "zh-TW", True), ("", "", False)],
)
def test_in_the_users_language_else_the_requests(db, anonymous, locale, accepted, chinese):
    anonymous("POST", "/api/auth/register", {**NEW, "locale": locale}, accept_language=accepted)
    (letter,) = deliver()
    assert ("請確認" in letter.subject) is chinese
    assert ("72 小時" in letter.body) is chinese


@pytest.mark.parametrize("language", ["en", "zh-hant"])
@pytest.mark.parametrize(
    "kind",
    ["verify", "reset", "password_changed", "email_changed", "taken_over", *get_args(mails.FactorKind)],
)
def test_every_mail_in_both_languages(alice, mailoutbox, kind, language):
    alice.name, alice.locale, alice.email_verified_at = "<Ann & Bob>", language, timezone.now()
    if kind == "verify":
        alice.email_verified_at = None
    assert mails.send(kind, alice, email="", language="en", now=timezone.now())
    (letter,) = mailoutbox
    assert ("<Ann & Bob>" in letter.body) is (kind not in ("verify", "taken_over"))  # plain text: nothing is escaped
    assert "{" not in letter.body
    assert "\n\n\n" not in letter.body  # no kind without its sentence
    assert "\n" not in letter.subject
    assert "VisionA Cloud" in letter.subject
    assert letter.extra_headers["Auto-Submitted"] == "auto-generated"


@pytest.mark.parametrize("kind", ["verify", "reset", "password_changed"])
def test_what_a_stranger_calls_himself_is_not_sent_to_an_address_that_he_has_not_shown_to_be_his(
    alice, mailoutbox, kind
):
    alice.name = "you won! https://evil.example"
    mails.send(kind, alice, email="", language="en", now=timezone.now())
    assert "evil" not in mailoutbox[0].body


def test_a_name_has_one_line(alice, mailoutbox):
    alice.name, alice.email_verified_at = "Ann,\n\nyour account\nis closed", timezone.now()
    mails.send("reset", alice, email="", language="en", now=timezone.now())
    assert "Hello Ann, your account is closed,\n" in mailoutbox[0].body


def test_the_page_is_a_setting(alice, mailoutbox, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "EMAIL_VERIFY_URL", "https://spa.example/verify?t={token}&x=1")
    mails.send("verify", alice, email="", language="en", now=timezone.now())
    assert "https://spa.example/verify?t=" in mailoutbox[0].body


class TestTokens:
    @pytest.fixture
    def token(self, alice) -> str:
        return mail_tokens.issue("verify", alice, email=alice.email, now=timezone.now())

    def test_good(self, anonymous, token, alice):
        assert anonymous("POST", VERIFY, {"token": token}).data["email_verified"] is True

    def test_altered(self, anonymous, token):
        body, signature = token.split(".")
        for text in (token[:-1], token + "A", "A" + token, f"{body[:-2]}AA.{signature}", "x", "a.b", "." * 10):
            assert refused(anonymous("POST", VERIFY, {"token": text}))

    @pytest.mark.parametrize("body", [{}, {"token": ""}, {"token": 5}, {"token": None}, {"token": "x" * 1025}])
    def test_bad_bodies(self, anonymous, body):
        answer = anonymous("POST", VERIFY, body)
        assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", ["token"])

    def test_too_old(self, anonymous, alice):
        for seconds, good in ((259_100, True), (259_300, False)):
            sent = timezone.now() - dt.timedelta(seconds=seconds)
            token = mail_tokens.issue("verify", alice, email=alice.email, now=sent)
            assert (anonymous("POST", VERIFY, {"token": token}).status == 200) is good
            User.objects.update(email_verified_at=None)

    def test_of_another_purpose(self, anonymous, alice):
        token = mail_tokens.issue("reset", alice, email=alice.email, now=timezone.now())
        assert refused(anonymous("POST", VERIFY, {"token": token}))

    @pytest.mark.parametrize("change", [{"email": "other@example.com"}, {"password": "!"}, {"is_active": False}])
    def test_of_an_account_that_has_changed(self, anonymous, token, alice, change):
        User.objects.filter(pk=alice.pk).update(**change)
        assert refused(anonymous("POST", VERIFY, {"token": token}))

    def test_of_an_account_that_is_gone(self, anonymous, token, alice):
        alice.delete()
        assert refused(anonymous("POST", VERIFY, {"token": token}))

    def test_the_signing_key_may_be_rotated_meanwhile(self, anonymous, token, settings):
        old = settings.SECRET_KEY
        settings.SECRET_KEY = "n" * 50
        assert refused(anonymous("POST", VERIFY, {"token": token}))
        settings.SECRET_KEY_FALLBACKS = [old]
        assert anonymous("POST", VERIFY, {"token": token}).status == 200


class TestResending:
    def test_sends_a_new_one(self, alice_api, alice):
        assert alice_api("POST", RESEND).data is None
        (letter,) = deliver()
        assert letter.to == [alice.email]
        assert AuditEvent.objects.filter(action="user.verification_asked").count() == 1

    def test_who_has_confirmed(self, alice, alice_api):
        User.objects.update(email_verified_at=timezone.now())
        answer = alice_api("POST", RESEND)
        assert (answer.status, answer.code) == (409, "INVALID_STATE")

    def test_strangers(self, anonymous):
        assert anonymous("POST", RESEND).status == 401

    def test_five_a_minute(self, alice_api):
        for _ in range(8):
            assert alice_api("POST", RESEND).status == 200
        assert len(deliver()) == 5

    def test_who_asks_for_passwords_keeps_no_other_word_from_their_owner(self, alice, alice_api, anonymous):
        for _ in range(8):
            anonymous("POST", "/api/auth/password/reset", {"email": alice.email})
        alice_api("POST", "/api/auth/password", {"current": PASSWORD, "new": "another one entirely"})
        subjects = [letter.subject for letter in deliver()]
        assert "Your VisionA Cloud password was changed" in subjects

    def test_what_has_become_pointless_is_not_sent(self, alice, alice_api):
        alice_api("POST", RESEND)
        User.objects.update(email_verified_at=timezone.now())
        assert deliver() == []

    def test_a_server_without_mail_says_so(self, alice_api, monkeypatch):
        monkeypatch.setitem(settings.VISIONA, "ENV", "production")
        answer = alice_api("POST", RESEND)
        assert (answer.status, answer.code) == (501, "NOT_IMPLEMENTED")


class TestChange:
    def ask(self, api, email="alice@new.example", **more):
        return api("PATCH", ME, {"email": email, "password": PASSWORD, **more})

    def test_by_the_link_to_the_new_address(self, alice, alice_api, anonymous):
        answer = self.ask(alice_api, name="Alicia")
        assert (answer.data["email"], answer.data["name"]) == ("alice@example.com", "Alicia")
        (letter,) = deliver()
        assert letter.to == ["alice@new.example"]
        done = anonymous("POST", VERIFY, {"token": token_in(letter)}).data
        assert (done["email"], done["email_verified"]) == ("alice@new.example", True)
        (notice,) = deliver()  # to the old one
        assert (notice.to, notice.subject) == (
            ["alice@example.com"],
            "The e-mail of your VisionA Cloud account was changed",
        )
        assert alice_api("GET", ME).data["email"] == "alice@new.example"  # the login goes on
        assert AuditEvent.objects.filter(action="user.email_changed").count() == 1

    def test_the_job_does_not_tell_the_new_address(self, alice_api):
        self.ask(alice_api)
        (job,) = ProcrastinateJob.objects.filter(task_name="accounts.send_mail")
        assert job.args["email"]
        assert "new.example" not in str(job.args)

    def test_a_job_of_the_release_before(self, alice, mailoutbox):
        tasks.send_mail(kind="verify", user_id=str(alice.pk), email="alice@new.example")
        assert mailoutbox[0].to == ["alice@new.example"]

    def test_not_without_the_password(self, alice, alice_api):
        for body in ({"email": "x@new.example"}, {"email": "x@new.example", "password": "wrong"}):
            answer = alice_api("PATCH", ME, {**body, "name": "Eve"})
            assert (answer.status, answer.code) == (401, "INVALID_CREDENTIALS")
        assert deliver() == []
        alice.refresh_from_db()
        assert (alice.name, alice.email) == ("Alice", "alice@example.com")

    def test_to_one_that_is_taken_by_then(self, alice_api, bob, anonymous):
        assert self.ask(alice_api, "BOB@example.com").status == 200  # not told here
        (letter,) = deliver()
        answer = anonymous("POST", VERIFY, {"token": token_in(letter)})
        assert (answer.status, answer.code) == (409, "EMAIL_TAKEN")

    def test_of_an_account_of_a_provider(self, alice, alice_api):
        User.objects.update(oidc_issuer="https://id.example", oidc_subject="1")
        assert self.ask(alice_api).code == "INVALID_STATE"

    def test_to_the_same_is_no_change(self, alice_api):
        assert alice_api("PATCH", ME, {"email": "alice@example.com"}).status == 200
        assert deliver() == []

    @pytest.mark.parametrize("email", ["no", "", 5, "a@b", "x" * 250 + "@example.com"])
    def test_bad_addresses(self, alice_api, email):
        answer = self.ask(alice_api, email)
        assert (answer.code, list(answer.error["details"])) == ("VALIDATION_ERROR", ["email"])

    def test_two_links_the_first_that_is_opened_counts(self, alice, alice_api, anonymous):
        self.ask(alice_api, "one@new.example")
        self.ask(alice_api, "two@new.example")
        one, two = deliver()
        assert anonymous("POST", VERIFY, {"token": token_in(two)}).status == 200
        assert refused(anonymous("POST", VERIFY, {"token": token_in(one)}))


def test_a_placeholder_gets_no_mail(alice, mailoutbox):
    alice.email = f"x@{mails.NOWHERE}"
    assert not mails.send("verify", alice, email="", language="en", now=timezone.now())
    assert mailoutbox == []


def test_a_disabled_user_gets_no_mail(alice, alice_api):
    alice_api("POST", RESEND)
    User.objects.update(is_active=False)
    assert deliver() == []
    assert login_as(alice)("POST", RESEND).status == 401
