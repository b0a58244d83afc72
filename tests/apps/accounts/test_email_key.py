"""One idea of "the same address" (data.md, `users`): registering, looking up, counting, linking, and the old rows."""

import datetime as dt
import uuid

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from apps.accounts import selectors
from apps.accounts.models import User
from apps.accounts.oidc.claims import Identity
from apps.accounts.oidc.linking import user_of
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tests.apps.conftest import PASSWORD

REGISTER, LOGIN = "/api/auth/register", "/api/auth/login"
NOW = dt.datetime(2026, 11, 30, tzinfo=dt.UTC)


@pytest.mark.parametrize("char", ["\u0130", "\u0131", "\u017f", "\u212a", "é", "\ufb01"])
def test_what_two_ideas_of_lower_differ_on_is_no_account(anonymous, db, char):
    """`\\u0130` and its kin pass for letters where case is ignored: somebody could wait there for a victim's login."""
    answer = anonymous("POST", REGISTER, {"email": f"v{char}ctim@example.com", "password": PASSWORD})
    assert (answer.status, answer.code, list(answer.error["details"])) == (400, "VALIDATION_ERROR", ["email"])
    assert not User.objects.exists()


def test_a_domain_is_written_in_ascii(anonymous, db):
    answer = anonymous("POST", REGISTER, {"email": "pat@bücher.example", "password": PASSWORD})
    assert answer.error["details"]["email"] == ["Write this address as pat@xn--bcher-kva.example."]
    assert anonymous("POST", REGISTER, {"email": "Pat@xn--bcher-kva.example", "password": PASSWORD}).status == 201
    assert anonymous("POST", LOGIN, {"email": "pat@BÜCHER.example", "password": PASSWORD}).status == 200


def test_every_spelling_counts_as_one_in_the_throttle(anonymous, alice, monkeypatch, settings):
    monkeypatch.setitem(settings.VISIONA, "THROTTLE_LOGIN", 2)
    tried = ("alice@example.com", "ALICE@\uff45xample.com", "alice@example.com.")
    codes = [anonymous("POST", LOGIN, {"email": email, "password": "wrong"}).code for email in tried]
    assert codes == ["INVALID_CREDENTIALS"] * 2 + ["RATE_LIMITED"]


def test_a_providers_login_joins_no_look_alike(db, make_user):
    """A row of an older release, whose address PostgreSQL takes for `victim@example.com` in some locales."""
    row("v\u0130ctim@example.com", verified=True)
    victim = Identity("https://id.example", "1", "victim@example.com", True, "V", "", 0.0, 1.0)
    assert user_of(victim, actor=Actor.system(), now=NOW).email == "victim@example.com"
    assert User.objects.count() == 2


def row(email: str, *, verified: bool = False, older: bool = True) -> uuid.UUID:
    """A user as the release before writes one: without a key."""
    user_id = uuid.uuid4()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO users (id, created_at, updated_at, email, email_verified_at, name, password, is_active, "
            "is_staff, is_superuser, locale, oidc_issuer, oidc_subject) "
            "VALUES (%s, now(), now(), %s, %s, '', '!', true, false, false, '', '', '')",
            [user_id, email, NOW if verified else None],
        )
    return user_id


class TestBesideTheReleaseBefore:
    def test_what_it_writes_is_found_and_unique(self, db):
        user_id = row("Pat@Example.com")
        found = selectors.by_email("pat@example.com")
        assert found is not None
        assert found.pk == user_id
        with pytest.raises(IntegrityError), transaction.atomic():
            row("pAT@example.com")

    def test_what_it_changes_too(self, db, alice):
        with connection.cursor() as cursor:
            cursor.execute("UPDATE users SET email = 'Other@Example.com' WHERE id = %s", [alice.pk])
        assert selectors.by_email("alice@example.com") is None
        assert selectors.by_email("other@example.com") == alice


@pytest.mark.django_db(transaction=True)
class TestTheMigration:
    @pytest.fixture(autouse=True)
    def _old_schema(self):
        call_command("migrate", "accounts", "0001", verbosity=0)
        yield
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM users")
        call_command("migrate", verbosity=0)

    def test_it_fills_every_key_and_goes_back(self):
        plain, idn = row("Pat@Example.com"), row("pat@bücher.example")
        call_command("migrate", "accounts", "0004", verbosity=0)
        keys = dict(User.objects.values_list("pk", "email_key"))
        assert keys == {plain: "pat@example.com", idn: "pat@xn--bcher-kva.example"}
        call_command("migrate", "accounts", "0001", verbosity=0)
        call_command("migrate", "accounts", "0004", verbosity=0)
        assert dict(User.objects.values_list("pk", "email_key")) == keys

    def test_it_stops_at_collisions_and_names_them(self):
        one, two = row("pat@xn--bcher-kva.example", verified=True), row("pat@bücher.example")
        row("una@example.com")
        with pytest.raises(CommandError) as caught:
            call_command("migrate", "accounts", "0004", verbosity=0)
        said = str(caught.value).splitlines()
        assert said[0].startswith("1 e-mail addresses belong to several accounts")
        assert said[1:3] == [
            "  'pat@xn--bcher-kva.example'",
            f"    {one}  'pat@xn--bcher-kva.example'  confirmed, since {timezone.now():%Y-%m-%d}",
        ]
        assert str(two) in said[3]
        assert len(said) == 4

        call_command("set_email", str(two), "pat2@example.com")
        call_command("migrate", "accounts", "0004", verbosity=0)
        assert User.objects.filter(email_key="pat2@example.com", pk=two).exists()


class TestAnOperatorSetsOne:
    @pytest.mark.parametrize("confirmed", [NOW, None])
    def test_it_is_as_confirmed_as_the_old_one_and_audited(self, alice, bob, confirmed):
        """Who was confirmed must not lose all boxes at the next reset mail (`test_taken_over`)."""
        User.objects.update(email_verified_at=confirmed)
        call_command("set_email", str(alice.pk), "New@example.com")
        alice.refresh_from_db()
        assert (alice.email, alice.email_key, alice.email_verified_at) == (
            "New@example.com",
            "new@example.com",
            confirmed,
        )
        assert AuditEvent.objects.filter(action="user.email_changed", object_id=str(alice.pk)).count() == 1

    @pytest.mark.parametrize("email", ["bob@example.com", "v\u0130ctim@example.com", "none"])
    def test_what_cannot_be(self, alice, bob, email):
        with pytest.raises(CommandError):
            call_command("set_email", str(alice.pk), email)
        with pytest.raises(CommandError):
            call_command("set_email", str(uuid.uuid4()), "new@example.com")


def test_two_that_race_for_one_address(db, alice):
    with pytest.raises(DomainError, match="EMAIL_TAKEN"):
        user_of(
            Identity("https://id.example", "1", "ALICE@example.com", True, "", "", 0.0, 1.0),
            actor=Actor.system(),
            now=NOW,
        )
