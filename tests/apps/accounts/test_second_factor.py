"""A second factor by the API: begun, switched on, asked for at login, spent, guessed at, switched off."""

import datetime as dt
import re
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from apps.accounts import leaving
from apps.accounts.factors import checking, owner, passkeys, recovery, totp
from apps.accounts.models import Passkey, SecondFactor, User
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.errors import DomainError
from tests.apps.accounts.factor_kit import next_code, on
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.accounts.passkey_kit import passkey_on
from tests.apps.conftest import PASSWORD, Api

ROUTE = "/api/auth/second-factor"


def log_in(api: Api, user: User, **more: str):
    return api("POST", "/api/auth/login", {"email": user.email, "password": PASSWORD, **more})


def actions() -> list[str]:
    return list(AuditEvent.objects.filter(action__contains="factor").order_by("id").values_list("action", flat=True))


def test_codes_are_those_of_the_standard():
    """RFC 6238, appendix B, with six of its eight digits."""
    secret = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
    seen = [totp.code_of(secret, seconds=at) for at in (59, 1111111109, 1234567890, 20000000000)]
    assert seen == ["287082", "081804", "005924", "353130"]


@pytest.mark.parametrize(("off", "good"), [(-60, False), (-30, True), (0, True), (30, True), (60, False)])
def test_a_code_is_good_for_a_step_before_and_after(off, good):
    secret = totp.new_secret()
    found = totp.step_of(secret, totp.code_of(secret, seconds=9_000 + off), seconds=9_000, after=0)
    assert found == ((9_000 + off) // 30 if good else None)


@pytest.mark.parametrize("typed", ["", "12345", "1234567", "12345a", "١٢٣٤٥٦", "123456\n"])
def test_what_is_no_code_is_none(typed):
    assert totp.step_of(totp.new_secret(), typed, seconds=9_000, after=0) is None


def test_it_is_on_once_a_code_has_shown_that_the_authenticator_took_it(alice, alice_api, anonymous):
    nothing = {"authenticator": False, "passkeys": 0, "recovery_codes_left": 0}
    assert alice_api("GET", ROUTE).data == {"enabled": False, "enabled_at": None, **nothing}
    assert alice_api("POST", ROUTE, {"password": "wrong"}).code == "INVALID_CREDENTIALS"
    offer = alice_api("POST", ROUTE, {"password": PASSWORD})
    assert offer.status == 201
    uri = urlsplit(offer.data["uri"])
    assert (uri.scheme, uri.netloc, unquote(uri.path)) == ("otpauth", "totp", f"/VisionA Cloud:{alice.email}")
    assert parse_qs(uri.query)["secret"] == [offer.data["secret"]]
    assert log_in(anonymous, alice).status == 200  # nothing has changed yet

    assert alice_api("POST", f"{ROUTE}/confirm", {"code": "000000"}).error["details"]["code"]
    code = totp.code_of(offer.data["secret"], seconds=timezone.now().timestamp())
    codes = alice_api("POST", f"{ROUTE}/confirm", {"code": code}).data["recovery_codes"]
    assert len({each for each in codes if re.fullmatch(r"([a-z2-7]{4}-){3}[a-z2-7]{4}", each)}) == 10
    state = alice_api("GET", ROUTE).data
    assert (state["enabled"], state["recovery_codes_left"]) == (True, 10)
    assert alice_api("POST", ROUTE, {"password": PASSWORD}).code == "INVALID_STATE"
    assert alice_api("POST", f"{ROUTE}/confirm", {"code": code}).code == "INVALID_STATE"
    assert actions() == ["user.factor_enabled"]


def test_nothing_is_confirmed_that_was_not_begun(alice_api):
    assert alice_api("POST", f"{ROUTE}/confirm", {"code": "000000"}).code == "INVALID_STATE"


def test_who_logs_in_by_a_provider_alone_has_the_providers(alice, alice_api):
    User.objects.filter(pk=alice.pk).update(password="!")
    assert alice_api("POST", ROUTE, {"password": "x"}).code == "INVALID_STATE"


def test_the_login_asks_for_it_after_the_right_password_alone(alice, bob, anonymous):
    secret, _codes = on(alice)
    wrong = anonymous("POST", "/api/auth/login", {"email": alice.email, "password": "x", "code": next_code(secret)})
    assert (wrong.status, wrong.code, wrong.error.get("details")) == (401, "INVALID_CREDENTIALS", None)
    for empty in ({}, {"code": ""}, {"code": " "}):
        asked = log_in(anonymous, alice, **empty)
        assert (asked.status, asked.code) == (401, "SECOND_FACTOR_REQUIRED")
    assert log_in(anonymous, alice, code="000000").error["details"]["code"]
    code = next_code(secret)
    assert log_in(anonymous, alice, code=f" {code[:3]} {code[3:]} ").data["access_token"]
    assert log_in(anonymous, bob, code="whatever").status == 200  # who has none is asked for none
    failed = AuditEvent.objects.filter(action="user.login_failed").order_by("id").values_list("detail", flat=True)
    assert [row.get("wrong") for row in failed] == [None, "code"]
    assert actions().count("user.factor_asked") == 3


def test_a_code_is_good_once(alice, anonymous):
    secret, _codes = on(alice)
    code = next_code(secret)
    assert log_in(anonymous, alice, code=code).status == 200
    again = log_in(anonymous, alice, code=code)
    assert (again.status, again.code) == (401, "INVALID_CREDENTIALS")


@pytest.mark.django_db(transaction=True)
def test_of_many_at_once_one_logs_in(make_user):
    alice = make_user("alice@example.com")
    secret, codes = on(alice)

    def once(code: str) -> int:
        try:
            return log_in(Api(), alice, code=code).status
        finally:
            connection.close()

    for code in (next_code(secret), codes[0]):
        with ThreadPoolExecutor(3) as pool:
            assert sorted(pool.map(once, [code] * 3)) == [200, 401, 401]


def test_a_recovery_code_is_good_once_in_any_spelling(alice, anonymous):
    _secret, codes = on(alice)
    assert log_in(anonymous, alice, code=codes[3].replace("-", " ").upper()).status == 200
    assert log_in(anonymous, alice, code=codes[3]).code == "INVALID_CREDENTIALS"
    assert log_in(anonymous, alice, code=codes[4]).status == 200
    rows = AuditEvent.objects.filter(action="user.recovery_code_used").order_by("id")
    assert [(row.object_id, row.detail) for row in rows] == [(str(alice.pk), {"left": left}) for left in (9, 8)]


def test_wrong_codes_count_with_the_failed_logins(alice, anonymous, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "THROTTLE_LOGIN", 2)
    on(alice)
    assert [log_in(anonymous, alice).status for _ in range(3)] == [401] * 3  # being asked is no failure
    assert [log_in(anonymous, alice, code="000000").status for _ in range(3)] == [401, 401, 429]


def test_guesses_from_any_number_of_addresses_get_ever_slower(alice, anonymous):
    """Whoever has the password could else try all codes: a throttle for each address is none for who has many."""
    secret, codes = on(alice)
    now, waited = timezone.now() + dt.timedelta(minutes=5), []
    for number in range(30):
        actor = Actor("", "", f"2001:db8:{number:x}::1", "")
        with pytest.raises(DomainError):
            checking.check(actor=actor, user=alice, proof="000000", now=now)
        factor = SecondFactor.objects.get()
        waited.append((factor.locked_until - now).total_seconds() if factor.locked_until else 0)
        now = max(now, factor.locked_until or now)
    assert waited[:7] == [0, 0, 0, 0, 2, 4, 8]
    assert waited[-1] == checking.LONGEST_WAIT
    right = totp.code_of(secret, seconds=now.timestamp() - 60)
    early = now - dt.timedelta(seconds=60)
    refused = checking.refusal(actor=Actor.system(), user=alice, proof=right, now=early)
    assert refused is not None
    assert (refused.code, refused.retry_after) == ("RATE_LIMITED", 60)
    assert checking.refusal(actor=Actor.system(), user=alice, proof=codes[0], now=early) is None  # the owner's way in
    right = totp.code_of(secret, seconds=now.timestamp())
    assert checking.refusal(actor=Actor.system(), user=alice, proof=right, now=now) is None
    assert SecondFactor.objects.get().failures == 0


def test_off_and_new_recovery_codes_on_password_and_code(alice, alice_api, anonymous):
    secret, codes = on(alice)
    for method, path in (("POST", f"{ROUTE}/recovery-codes"), ("DELETE", ROUTE)):
        for password, code in (("wrong", codes[0]), (PASSWORD, "000000")):
            refused = alice_api(method, path, {"password": password, "code": code})
            assert (refused.status, refused.code) == (401, "INVALID_CREDENTIALS")
    assert SecondFactor.objects.get().confirmed_at is not None
    body = {"password": PASSWORD, "code": next_code(secret)}
    renewed = alice_api("POST", f"{ROUTE}/recovery-codes", body).data["recovery_codes"]
    assert log_in(anonymous, alice, code=codes[0]).status == 401
    assert alice_api("DELETE", ROUTE, {"password": PASSWORD, "code": renewed[0]}).status == 200
    assert log_in(anonymous, alice).status == 200
    assert not SecondFactor.objects.exists()
    assert actions()[-1] == "user.factor_disabled"
    assert AuditEvent.objects.filter(action="user.recovery_codes_renewed").count() == 1
    assert alice_api("DELETE", ROUTE, {"password": PASSWORD, "code": renewed[1]}).code == "INVALID_STATE"


def test_a_new_password_by_mail_leaves_it_on(make_user, anonymous):
    alice = make_user("alice@example.com", email_verified_at=timezone.now())
    secret, _codes = on(alice)
    deliver()
    anonymous("POST", "/api/auth/password/reset", {"email": alice.email})
    (letter,) = deliver()
    body = {"token": token_in(letter), "password": "another horse battery"}
    assert anonymous("POST", "/api/auth/password/reset/confirm", body).status == 200
    login = {"email": alice.email, "password": "another horse battery"}
    assert anonymous("POST", "/api/auth/login", login).code == "SECOND_FACTOR_REQUIRED"
    assert anonymous("POST", "/api/auth/login", {**login, "code": next_code(secret)}).status == 200


def test_neither_secret_nor_codes_are_stored_plain(alice):
    secret, codes = on(alice)
    with connection.cursor() as cursor:
        cursor.execute("SELECT f::text FROM second_factors f")
        (row,) = cursor.fetchone()
    assert not [text for text in (secret, *codes, *(code.replace("-", "") for code in codes)) if text in row]
    assert recovery.hash_of(codes[0]) in row


def test_the_secret_is_sealed_anew_when_keys_change(alice, anonymous, monkeypatch):
    secret, codes = on(alice)
    before = SecondFactor.objects.get().secret_sealed
    monkeypatch.setattr(settings, "SECRET_KEY_FALLBACKS", [settings.SECRET_KEY])
    monkeypatch.setattr(settings, "SECRET_KEY", "another key that is long enough for everybody")
    assert [checking.reseal_secrets(), checking.reseal_secrets()] == [1, 0]
    assert SecondFactor.objects.get().secret_sealed != before
    monkeypatch.setattr(settings, "SECRET_KEY_FALLBACKS", [])
    assert log_in(anonymous, alice, code=next_code(secret)).status == 200
    monkeypatch.setattr(settings, "SECRET_KEY", "a key that came without the one before it")
    assert checking.reseal_secrets() == 0
    assert log_in(anonymous, alice, code="000000").status == 401
    assert log_in(anonymous, alice, code=codes[0]).status == 200


def test_it_goes_with_the_account(alice):
    on(alice)
    assert leaving.end_account(actor=Actor.system(), user_id=alice.pk, now=timezone.now())
    assert not SecondFactor.objects.exists()


def test_the_operators_command(alice, anonymous, capsys):
    on(alice)
    call_command("remove_factor", "ALICE@example.com")
    assert log_in(anonymous, alice).status == 200
    assert actions()[-1] == "user.factor_removed_by_staff"
    for email in (alice.email, "nobody@example.com"):
        with pytest.raises(CommandError):
            call_command("remove_factor", email)


def test_a_second_offer_takes_the_place_of_the_first(alice):
    first, second = owner.offer(user=alice), owner.offer(user=alice)
    now = timezone.now()
    actor = Actor.system()
    with pytest.raises(DomainError):
        owner.confirm(actor=actor, user=alice, code=totp.code_of(first.secret, seconds=now.timestamp()), now=now)
    owner.confirm(actor=actor, user=alice, code=totp.code_of(second.secret, seconds=now.timestamp()), now=now)


def test_the_owner_is_told_by_mail(alice, alice_api, anonymous):
    def told() -> list[str]:
        letters = deliver()
        assert {tuple(letter.to) for letter in letters} <= {(alice.email,)}
        return [str(letter.body).split("\n\n")[1] for letter in letters]

    def proof() -> dict[str, str]:
        return {"password": PASSWORD, "code": next_code(secret)}

    secret, codes = on(alice)
    assert told() == [f"an authenticator app was just added to {alice.email}: a login may be confirmed with its codes."]
    log_in(anonymous, alice, code=codes[0])
    assert told() == [f"a recovery code of {alice.email} was just used."]
    log_in(anonymous, alice, code="000000")
    log_in(anonymous, alice)
    assert told() == []  # nothing has changed
    alice_api("POST", f"{ROUTE}/recovery-codes", proof())
    assert told() == [f"new recovery codes were just made for {alice.email}: those from before are void."]
    passkey_on(alice)
    passkey = Passkey.objects.get()
    assert told() == [f"a passkey was just added to {alice.email}: a login may be confirmed with it."]
    passkeys.remove_lost(actor=Actor.system(), passkey_id=passkey.pk, now=timezone.now())
    assert told() == [f"a passkey of {alice.email} was just removed: it opens nothing any more."]
    User.objects.update(locale="zh-TW")
    owner.remove(actor=Actor.system(), user_id=alice.pk, now=timezone.now())
    assert ["的雙重驗證剛剛已關閉" in text for text in told()] == [True]
    passkey_on(alice)
    passkeys.remove_lost(actor=Actor.system(), passkey_id=Passkey.objects.get().pk, now=timezone.now())
    assert ["關閉" in text for text in told()] == [False, True]  # the last one: once, and what it means
