"""Who a user is at a provider: seen, refreshed, linked and unlinked, moved, and never made again by an old token."""

import datetime as dt
import time

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from apps.accounts import leaving, services, sessions
from apps.accounts.models import EndedIdentity, User, UserIdentity
from apps.accounts.oidc.linking import holder_of
from apps.audit.models import AuditEvent
from apps.common import redis
from apps.common.actor import Actor
from tests.apps.accounts.code_flow import begin, come_back
from tests.apps.accounts.provider_kit import query
from tests.apps.accounts.scripted_provider import PAGE, ScriptedProvider
from tests.apps.accounts.test_oidc_strange import PAT, log_in
from tests.apps.conftest import PASSWORD, Api, login_as

ME, MINE, LINK = "/api/auth/me", "/api/auth/identities", "/api/auth/identities/link"
pytestmark = pytest.mark.django_db


def me(scripted: ScriptedProvider, **claims):
    return Api(scripted.token(**claims))("GET", ME)


class TestWhatTheProviderSays:
    def test_what_the_first_token_lacked_is_taken_over_later(self, scripted):
        first = me(scripted, sid="s1")
        assert first.data["email"].endswith("@oidc.invalid")
        later = int(time.time()) + 5
        second = me(scripted, iat=later, sid="s1", **PAT)
        assert second.data["id"] == first.data["id"]
        assert (second.data["email"], second.data["email_verified"], second.data["name"]) == (
            "pat@example.com", True, "Pat",
        )  # fmt: skip

    def test_a_login_does_so_too(self, scripted):
        first = log_in(scripted, email=None, name=None).data["user"]
        assert first["email"].endswith("@oidc.invalid")
        second = log_in(scripted).data["user"]
        assert (second["id"], second["email"], second["name"]) == (first["id"], "pat@example.com", "Pat")

    def test_a_changed_e_mail_and_name_are_taken_over(self, scripted):
        log_in(scripted)
        user = log_in(scripted, email="new@example.com", name="Patricia").data["user"]
        assert (user["email"], user["name"]) == ("new@example.com", "Patricia")
        assert AuditEvent.objects.filter(action="user.email_changed").count() == 1

    def test_older_claims_change_nothing(self, scripted):
        now = int(time.time())
        old = scripted.token(iat=now - 30, email="old@example.com", email_verified=True, name="Old")
        me(scripted, iat=now, **PAT)
        assert Api(old)("GET", ME).data["email"] == "pat@example.com"

    def test_what_is_left_out_and_what_was_chosen_here_stays(self, scripted):
        api = Api(log_in(scripted).data["access_token"])
        api("PATCH", ME, {"name": "My own"})
        user = log_in(scripted, name="Another", email=None).data["user"]
        assert (user["email"], user["name"]) == ("pat@example.com", "My own")

    def test_an_unverified_e_mail_replaces_no_verified_one(self, scripted):
        log_in(scripted)
        assert (
            log_in(scripted, email="new@example.com", email_verified=False).data["user"]["email"] == "pat@example.com"
        )

    def test_an_e_mail_that_is_anothers_is_not_taken(self, scripted, bob):
        log_in(scripted)
        answer = log_in(scripted, email="BOB@example.com")
        assert (answer.status, answer.data["user"]["email"]) == (200, "pat@example.com")

    def test_it_costs_two_queries_while_nothing_is_new(self, scripted, django_assert_num_queries):
        api = Api(scripted.token(**PAT))
        api("GET", ME)
        with django_assert_num_queries(2):  # who it is, and what `/me` says of their shares
            assert api("GET", ME).status == 200


class TestNobodyIsMadeAgain:
    def gone(self, scripted: ScriptedProvider, **claims) -> str:
        token = scripted.token(**{**PAT, **claims})
        user_id = Api(token)("GET", ME).data["id"]
        leaving.end_account(actor=Actor.system(), user_id=User.objects.get(pk=user_id).pk, now=timezone.now())
        User.objects.all().delete()  # as `accounts.erase` does
        return token

    @pytest.mark.parametrize("forgotten", [False, True], ids=["", "Redis has forgotten"])
    def test_by_a_token_from_before_the_end(self, scripted, forgotten):
        token = self.gone(scripted)
        if forgotten:
            redis.client().flushdb()
        written = AuditEvent.objects.count()
        answer = Api(token)("GET", ME)
        assert (answer.status, answer.code) == (401, "TOKEN_REVOKED")
        assert (User.objects.count(), UserIdentity.objects.count(), AuditEvent.objects.count()) == (0, 0, written)

    def test_by_a_page_that_goes_on_sending_tokens(self, scripted):
        self.gone(scripted, auth_time=int(time.time()) - 60)
        later = int(time.time()) + 30
        assert me(scripted, iat=later, **PAT).code == "TOKEN_REVOKED"
        assert me(scripted, iat=later, auth_time=int(time.time()) - 60, **PAT).code == "TOKEN_REVOKED"
        assert not User.objects.exists()

    def test_who_logs_in_there_anew_begins_anew(self, scripted):
        token = self.gone(scripted)
        assert log_in(scripted).status == 200
        redis.client().flushdb()
        assert Api(token)("GET", ME).code == "TOKEN_REVOKED"  # though there is an account again
        User.objects.all().delete()
        EndedIdentity.objects.update_or_create(
            holder=_holder(scripted), defaults={"ended_at": timezone.now() - dt.timedelta(seconds=30)}
        )
        assert me(scripted, auth_time=int(time.time()), **PAT).status == 200

    def test_an_operator_lets_them_in_again(self, scripted):
        self.gone(scripted)
        call_command("oidc_readmit", scripted.issuer, "pat")
        assert me(scripted, iat=int(time.time()) + 30, **PAT).status == 200
        with pytest.raises(CommandError):
            call_command("oidc_readmit", scripted.issuer, "pat")

    def test_a_disabled_user(self, scripted, make_user):
        me(scripted, **PAT)
        User.objects.update(is_active=False)
        assert me(scripted, email="other@example.com", email_verified=True, name="X").code == "UNAUTHENTICATED"
        assert User.objects.get().email == "pat@example.com"

    def test_a_disabled_account_is_not_linked(self, scripted, make_user):
        user = make_user("pat@example.com", email_verified_at=timezone.now(), is_active=False)
        assert me(scripted, **PAT).code == "UNAUTHENTICATED"
        assert log_in(scripted).code == "ACCOUNT_DISABLED"
        assert not user.identities.exists()

    def test_a_token_that_was_logged_out_says_nothing_any_more(self, scripted):
        me(scripted, iat=int(time.time()) - 60, **PAT)
        later = Api(scripted.token(**{**PAT, "name": "Later"}))
        user = User.objects.get()
        sessions.end_holder(_holder(scripted), now=timezone.now())
        assert later("GET", ME).code == "TOKEN_REVOKED"
        user.refresh_from_db()
        assert user.name == "Pat"

    def test_logging_out_everywhere_holds_though_redis_forgets(self, scripted):
        api = Api(scripted.token(**PAT))
        assert api("POST", "/api/auth/logout-all").status == 200
        redis.client().flushdb()
        assert api("GET", ME).code == "TOKEN_REVOKED"


def _holder(scripted: ScriptedProvider) -> str:
    return holder_of(scripted.issuer, "pat")


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "machine", "client_id": "machine"},
        {"sub": "machine@clients", "gty": "client-credentials", "azp": "machine"},
        {"sub": "0b6e", "idtyp": "app", "name": "A program"},
        {"sub": "0b6e", "preferred_username": "service-account-machine"},
        {"sub": "0b6e", "scope": "read write"},
        {"sub": "0b6e"},
    ],
)
def test_a_machines_token_registers_no_account(scripted, claims):
    answer = me(scripted, **claims)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")
    assert not User.objects.exists()


class TestTheOwner:
    @pytest.fixture
    def owner(self, scripted, make_user) -> Api:
        return login_as(make_user("alice@example.com", email_verified_at=timezone.now()))

    def begin(self, owner: Api, browser: Api, password: str = PASSWORD) -> str:
        """Where the provider's login is, for a browser that went to our URL."""
        url = owner("POST", LINK, {"redirect_uri": PAGE, "password": password}).data["url"]
        answer = browser.client.get(url.removeprefix("http://localhost:3721"))
        assert answer.status_code == 302
        return answer["Location"]

    def code(self, scripted, owner: Api, **claims) -> str:
        browser = Api()
        return query(come_back(browser, scripted.back(self.begin(owner, browser), **{**PAT, **claims})))["code"]

    def test_links_several_and_logs_in_by_each(self, scripted, owner):
        for sub in ("pat", "pat-at-work"):
            answer = owner("POST", MINE, {"code": self.code(scripted, owner, sub=sub)})
            assert (answer.status, answer.data["subject"], answer.data["email"]) == (201, sub, "pat@example.com")
        listed = owner("GET", MINE)
        assert {row["subject"] for row in listed.data} == {"pat", "pat-at-work"}
        assert listed.json["meta"]["total"] == 2
        mine = owner("GET", ME).data
        for sub in ("pat", "pat-at-work"):
            assert log_in(scripted, sub=sub).data["user"]["id"] == mine["id"]
            assert me(scripted, sub=sub, **PAT).data["email"] == "alice@example.com"
        assert AuditEvent.objects.filter(action="user.oidc_linked").count() == 2

    def test_a_code_links_for_whom_it_was_asked_alone(self, scripted, owner, bob_api):
        assert bob_api("POST", MINE, {"code": self.code(scripted, owner)}).code == "INVALID_CREDENTIALS"
        assert Api()("POST", "/api/auth/oidc/token", {"code": self.code(scripted, owner)}).code == "INVALID_CREDENTIALS"
        browser = Api()
        plain = query(come_back(browser, scripted.back(begin(browser), **PAT)))["code"]  # of a login
        assert owner("POST", MINE, {"code": plain}).code == "INVALID_CREDENTIALS"
        assert not UserIdentity.objects.exists()

    def test_it_wants_the_password_and_a_page_of_ours(self, scripted, owner):
        assert owner("POST", LINK, {"redirect_uri": PAGE, "password": "wrong"}).code == "INVALID_CREDENTIALS"
        bad = owner("POST", LINK, {"redirect_uri": "https://evil.example", "password": PASSWORD})
        assert bad.code == "VALIDATION_ERROR"
        assert Api()("POST", LINK, {"redirect_uri": PAGE}).code == "UNAUTHENTICATED"

    def test_the_url_is_good_once(self, scripted, owner):
        url = owner("POST", LINK, {"redirect_uri": PAGE, "password": PASSWORD}).data["url"]
        path = url.removeprefix("http://localhost:3721")
        assert Api().client.get(path).status_code == 302
        assert Api()("GET", path).code == "BAD_REQUEST"

    def test_who_has_no_password_needs_a_fresh_login(self, scripted):
        log_in(scripted)
        user = User.objects.get()
        old, _ = sessions.create(
            user_id=user.pk, address="", agent="", now=timezone.now() - leaving.FRESH - dt.timedelta(seconds=1)
        )
        assert Api(old)("POST", LINK, {"redirect_uri": PAGE}).code == "FORBIDDEN"
        assert login_as(user)("POST", LINK, {"redirect_uri": PAGE}).status == 201

    def test_what_is_anothers_is_not_linked(self, scripted, owner):
        log_in(scripted)
        answer = owner("POST", MINE, {"code": self.code(scripted, owner)})
        assert (answer.status, answer.code) == (409, "CONFLICT")

    def test_unlinking_ends_its_tokens_and_keeps_it_away(self, scripted, owner):
        row = owner("POST", MINE, {"code": self.code(scripted, owner)}).data
        token = scripted.token(**PAT)
        assert Api(token)("GET", ME).data["email"] == "alice@example.com"
        assert owner("DELETE", f"{MINE}/{row['id']}").status == 200
        assert Api(token)("GET", ME).code == "TOKEN_REVOKED"
        assert me(scripted, iat=int(time.time()) + 30, email="alice@example.com", email_verified=True).status == 401
        refused = log_in(scripted, email="alice@example.com")
        assert (refused.status, refused.code) == (409, "EMAIL_TAKEN")  # not linked behind the owner's back
        assert owner("DELETE", f"{MINE}/{row['id']}").code == "NOT_FOUND"
        assert owner("POST", MINE, {"code": self.code(scripted, owner)}).status == 201
        redis.client().delete(*redis.client().keys("visiona:adopted*"))
        assert Api(token)("GET", ME).code == "TOKEN_REVOKED"  # linked again, and older than the end

    def test_the_last_way_in_stays(self, scripted):
        log_in(scripted)
        api = login_as(User.objects.get())
        (row,) = api("GET", MINE).data
        assert api("DELETE", f"{MINE}/{row['id']}").code == "INVALID_STATE"

    def test_nobody_elses(self, scripted, owner, bob_api):
        row = owner("POST", MINE, {"code": self.code(scripted, owner)}).data
        assert bob_api("DELETE", f"{MINE}/{row['id']}").code == "NOT_FOUND"
        assert bob_api("GET", MINE).data == []


class TestTheIssuerMoves:
    def test_everybody_is_known_at_the_new_url(self, scripted, monkeypatch):
        user = log_in(scripted).data["user"]
        User.objects.update(oidc_issuer="https://old.example")
        UserIdentity.objects.update(issuer="https://old.example")
        assert log_in(scripted).code == "EMAIL_TAKEN"
        call_command("oidc_move_issuer", "https://old.example", scripted.issuer)
        assert log_in(scripted).data["user"]["id"] == user["id"]
        assert User.objects.get().oidc_issuer == scripted.issuer
        (row,) = AuditEvent.objects.filter(action="oidc.issuer_moved")
        assert row.detail == {"from": "https://old.example", "to": scripted.issuer, "identities": 1}

    def test_who_is_known_of_both_is_named_and_nothing_moves(self, scripted, alice):
        log_in(scripted)
        UserIdentity.objects.create(user=alice, issuer="https://old.example", subject="pat")
        with pytest.raises(CommandError, match="pat"):
            call_command("oidc_move_issuer", "https://old.example", scripted.issuer)
        assert UserIdentity.objects.filter(issuer="https://old.example").count() == 1

    def test_whoever_was_ended_at_the_old_url_stays_ended(self, scripted, make_user):
        """Though a move was taken back and made again: by tokens of the new URL, by an e-mail, until readmitted."""
        for subject in ("pat", "una", "kim"):
            EndedIdentity.objects.create(holder=holder_of("https://old.example", subject), ended_at=timezone.now())
        moves = [("https://old.example", "https://mid.example"), ("https://mid.example", "https://old.example")]
        for old, new in [*moves, moves[0], ("https://mid.example", scripted.issuer)]:
            call_command("oidc_move_issuer", old, new)
        assert me(scripted, iat=int(time.time()) + 30, **PAT).code == "TOKEN_REVOKED"
        make_user("una@example.com", email_verified_at=timezone.now())
        assert log_in(scripted, sub="una", email="una@example.com").code == "EMAIL_TAKEN"  # unlinked by its owner
        assert User.objects.count() == 1
        call_command("oidc_readmit", scripted.issuer, "kim")
        assert me(scripted, sub="kim", iat=int(time.time()) + 30, email="kim@example.com").status == 200
        assert log_in(scripted).status == 200  # begun anew
        assert not EndedIdentity.objects.filter(holder=holder_of("https://old.example", "pat")).exists()
        assert me(scripted, iat=int(time.time()) - 60, **PAT).code == "TOKEN_REVOKED"

    def test_in_the_admin(self, scripted, client, make_user):
        log_in(scripted)
        UserIdentity.objects.update(issuer="https://old.example")
        client.force_login(make_user("root@example.com", is_staff=True, is_superuser=True))
        (row,) = UserIdentity.objects.all()
        path = "/admin/accounts/useridentity/"
        assert b"https://old.example" in client.get(path).content
        asked = {"action": "move_issuer", "_selected_action": [str(row.pk)]}
        assert b"no way back" in client.post(path, asked).content
        row.refresh_from_db()
        assert row.issuer == "https://old.example"
        client.post(path, {**asked, "confirmed": "yes"})
        row.refresh_from_db()
        assert row.issuer == scripted.issuer


class TestBesideTheReleaseBefore:
    def test_whom_it_linked_is_known(self, scripted, make_user):
        user = make_user("x@example.com", oidc_issuer=scripted.issuer, oidc_subject="pat")
        assert me(scripted, **PAT).data["id"] == str(user.pk)
        assert user.identities.count() == 1
        services.logout_all(actor=Actor.system(), user=user, now=timezone.now())
        assert me(scripted, iat=int(time.time()) - 5, **PAT).code == "TOKEN_REVOKED"

    def test_whom_we_made_it_knows(self, scripted):
        log_in(scripted)
        user = User.objects.get()
        assert (user.oidc_issuer, user.oidc_subject) == (scripted.issuer, "pat")


@pytest.mark.django_db(transaction=True)
def test_the_migration_makes_an_identity_of_each_link():
    call_command("migrate", "accounts", "0004", verbosity=0)
    try:
        values = {"is_active": True, "locale": "", "oidc_issuer": "https://id.example"}
        made = [
            User(email="a@example.com", name="A", password="!x", oidc_subject="1", **values),
            User(email="b@oidc.invalid", password="!x", oidc_subject="2", **values),
            User(email="c@example.com", password="argon2$", oidc_subject="3", **values),
            User(email="d@example.com", password="argon2$"),
        ]
        for user in made:
            user.save(force_insert=True)
    finally:
        call_command("migrate", verbosity=0)
    rows = UserIdentity.objects.order_by("subject").values_list("user_id", "issuer", "subject", "email", "name")
    assert list(rows) == [
        (made[0].pk, "https://id.example", "1", "a@example.com", "A"),
        (made[1].pk, "https://id.example", "2", "", ""),
        (made[2].pk, "https://id.example", "3", "", ""),
    ]
