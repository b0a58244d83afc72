"""The admin's second step: nobody is in with the password alone, and staff who must have a factor are led to one."""

import html
import json
import re

import pytest
from django.conf import settings
from django.test import Client
from django.utils import timezone

from apps.accounts.factors import steps, totp
from apps.accounts.models import Passkey, SecondFactor, User
from apps.audit.models import AuditEvent
from tests.apps.accounts.factor_kit import next_code, on
from tests.apps.accounts.passkey_kit import Authenticator, passkey_on
from tests.apps.conftest import PASSWORD

LOGIN, STEP, OWN, LIST = "/admin/login/", "/admin/second-step/", "/admin/second-factor/", "/admin/accounts/user/"


@pytest.fixture
def root(make_user) -> User:
    return make_user("root@example.com", is_staff=True, is_superuser=True)


@pytest.fixture
def required(monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "REQUIRE_STAFF_MFA", True)


def first_step(user: User, client: Client | None = None, **more: str) -> Client:
    client = client or Client()
    answer = client.post(LOGIN, {"username": user.email, "password": PASSWORD, **more})
    assert (answer.status_code, answer.headers.get("Location")) == (302, STEP)
    return client


def secret_on(page) -> str:
    (secret,) = re.findall(rb'id="secret">([A-Z2-7]{32})<', page.content)
    return secret.decode()


def code_now(secret: str) -> str:
    return totp.code_of(secret, seconds=timezone.now().timestamp())


def test_the_password_alone_opens_no_page(root):
    secret, _codes = on(root)
    client = first_step(root, next=LIST)
    for path in ("/admin/", LIST, OWN):
        assert client.get(path).status_code == 302
    assert not AuditEvent.objects.filter(action="admin.login").exists()
    assert client.get(STEP).status_code == 200
    wrong = client.post(STEP, {"code": "000000"})
    assert (wrong.status_code, b"The code is wrong" in wrong.content) == (200, True)
    assert client.get(LIST).status_code == 302
    done = client.post(STEP, {"code": next_code(secret)})
    assert (done.status_code, done.headers["Location"]) == (302, LIST)
    assert client.get(LIST).status_code == 200
    told = AuditEvent.objects.filter(action__contains="factor_").order_by("id").values_list("action", flat=True)
    assert list(told) == ["user.factor_enabled", "admin.factor_asked", "user.factor_refused"]
    assert AuditEvent.objects.get(action="admin.login").actor_label == root.email


def test_a_recovery_code_does_too(root):
    _secret, codes = on(root)
    client = first_step(root)
    assert client.post(STEP, {"code": codes[0]}).headers["Location"] == "/admin/"
    assert Client().post(STEP, {"code": codes[1]}).headers["Location"] == LOGIN  # without the first step nothing


def test_the_session_is_a_new_one_after_each_step(root, make_user):
    """Whoever put a session's id into the browser, or was logged in there, has nothing of the login."""
    secret, _codes = on(root)
    client = Client()
    client.force_login(make_user("other@example.com", is_staff=True))
    ids = [client.cookies["visiona_admin"].value]
    first_step(root, client)
    ids.append(client.cookies["visiona_admin"].value)
    client.post(STEP, {"code": next_code(secret)})
    ids.append(client.cookies["visiona_admin"].value)
    assert len(set(ids)) == 3
    for old in ids[:2]:
        stranger = Client()
        stranger.cookies["visiona_admin"] = old
        assert [stranger.get(path).status_code for path in ("/admin/", STEP)] == [302, 302]


@pytest.mark.parametrize("what", ["late", "password", "disabled", "no staff"])
def test_the_second_step_is_over(root, what, monkeypatch):
    secret, _codes = on(root)
    client = first_step(root)
    if what == "late":
        monkeypatch.setattr(steps, "WITHIN_SECONDS", -1)
    elif what == "password":
        root.set_password("another horse battery")
        root.save()
    else:
        User.objects.filter(pk=root.pk).update(**{"is_active" if what == "disabled" else "is_staff": False})
    answer = client.post(STEP, {"code": next_code(secret)})
    assert answer.headers["Location"] == LOGIN
    assert client.get(LIST).status_code == 302


def test_wrong_codes_count_with_wrong_passwords(root, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "THROTTLE_LOGIN", 2)
    on(root)
    client = first_step(root, Client(raise_request_exception=False))
    seen = [client.post(STEP, {"code": "000000"}).status_code for _ in range(3)]
    seen.append(client.post(LOGIN, {"username": root.email, "password": PASSWORD}).status_code)
    assert seen == [200, 200, 429, 429]


def test_the_forms_need_their_csrf_token(root):
    on(root)
    client = first_step(root)
    client.handler.enforce_csrf_checks = True
    assert client.post(STEP, {"code": "000000"}).status_code == 403


@pytest.mark.parametrize("elsewhere", ["https://evil.example/", "//evil.example/"])
def test_nobody_is_led_elsewhere(root, elsewhere):
    secret, _codes = on(root)
    client = first_step(root, next=elsewhere)
    assert client.post(STEP, {"code": next_code(secret)}).headers["Location"] == "/admin/"


def test_staff_without_one_are_led_to_set_it_up(root, required):
    client = first_step(root, next=LIST)
    assert client.get(LIST).status_code == 302
    secret = secret_on(client.get(STEP))
    again = client.post(STEP, {"code": "000000"})
    assert secret_on(again) == secret  # it is in their authenticator by now
    done = client.post(STEP, {"code": code_now(secret)})
    codes = re.findall(rb"<li>((?:[a-z2-7]{4}-){3}[a-z2-7]{4})</li>", done.content)
    assert (done.status_code, len(codes), LIST.encode() in done.content) == (200, 10, True)
    assert client.get(LIST).status_code == 200
    later = first_step(root)
    assert b'id="secret"' not in later.get(STEP).content
    assert later.post(STEP, {"code": codes[0].decode()}).status_code == 302


def test_sessions_from_before_show_the_factor_too(root, monkeypatch):
    client = Client()
    client.force_login(root)
    assert client.get(LIST).status_code == 200
    monkeypatch.setitem(settings.VISIONA, "REQUIRE_STAFF_MFA", True)
    assert client.get(LIST).status_code == 302
    monkeypatch.setitem(settings.VISIONA, "REQUIRE_STAFF_MFA", False)
    assert client.get(LIST).status_code == 200
    on(root)
    assert client.get(LIST).status_code == 302


def test_ones_own_page(root):
    client = Client()
    client.force_login(root)
    page = client.get(OWN)
    form = {"password": PASSWORD, "code": code_now(secret_on(page)), "act": "on"}
    assert b"The password is wrong" in client.post(OWN, {**form, "password": "x"}).content
    secret = secret_on(client.get(OWN))
    assert b'id="recovery-codes"' in client.post(OWN, {**form, "code": code_now(secret)}).content
    assert client.get(LIST).status_code == 200  # this session has shown it
    renewed = client.post(OWN, {"password": PASSWORD, "code": next_code(secret), "act": "renew"})
    codes = re.findall(rb"<li>((?:[a-z2-7]{4}-){3}[a-z2-7]{4})</li>", renewed.content)
    assert len(codes) == 10
    off = {"password": PASSWORD, "code": codes[0].decode(), "act": "off"}
    assert client.post(OWN, off).headers["Location"] == OWN
    assert not SecondFactor.objects.filter(confirmed_at__isnull=False).exists()


def test_what_is_required_is_not_switched_off_there(root, required):
    _secret, codes = on(root)
    client = first_step(root)
    client.post(STEP, {"code": codes[0]})
    assert b'value="off"' not in client.get(OWN).content
    client.post(OWN, {"password": PASSWORD, "code": codes[1], "act": "off"})
    assert SecondFactor.objects.filter(confirmed_at__isnull=False).exists()


def test_a_lost_one_is_removed_by_a_superuser_who_is_asked_first(root, alice, make_user):
    _secret, _codes = on(alice)
    factor, listed = SecondFactor.objects.get(), "/admin/accounts/secondfactor/"
    client = Client()
    client.force_login(root)
    for path in (listed, f"{listed}{factor.pk}/change/"):
        page = client.get(path)
        assert (page.status_code, factor.secret_sealed.encode() in page.content) == (200, False)
    form = {"action": "remove_factor", "_selected_action": [str(factor.pk)]}
    asked = client.post(listed, form)
    assert (asked.status_code, SecondFactor.objects.count()) == (200, 1)
    clerk = Client()
    clerk.force_login(make_user("clerk@example.com", is_staff=True))
    assert clerk.post(listed, {**form, "confirmed": "yes"}).status_code == 403
    assert client.post(listed, {**form, "confirmed": "yes"}).status_code == 302
    assert SecondFactor.objects.count() == 0
    row = AuditEvent.objects.get(action="user.factor_removed_by_staff")
    assert (row.actor_label, row.object_id) == (root.email, str(alice.pk))


# --- passkeys ---------------------------------------------------------------------------------------------------------
def options_on(page, kind: str) -> dict:
    """What the page asks the browser's passkeys for: `get` or `create`."""
    (found,) = re.findall(rf'data-{kind}="([^"]*)"'.encode(), page.content)
    return json.loads(html.unescape(found.decode()))


def test_a_passkey_opens_the_admin(root):
    held, _codes = passkey_on(root)
    client = first_step(root, next=LIST)
    assert b"Send the code" in client.post(STEP, {"code": ""}).content
    options = options_on(client.get(STEP), "get")
    for junk in ("{", "[]", '{"id": 1}', json.dumps(Authenticator(id=held.id).signed(options))):
        assert b"answer does not hold" in client.post(STEP, {"passkey": junk}).content
    options = options_on(client.get(STEP), "get")
    done = client.post(STEP, {"passkey": json.dumps(held.signed(options))})
    assert done.headers["Location"] == LIST
    assert client.get(LIST).status_code == 200


def test_staff_without_a_factor_may_set_up_a_passkey(root, required):
    client, held = first_step(root, next=LIST), Authenticator()
    made = json.dumps(held.made(options_on(client.get(STEP), "create")))
    done = client.post(STEP, {"passkey": made, "act": "passkey"})
    assert (done.status_code, b'id="recovery-codes"' in done.content) == (200, True)
    assert client.get(LIST).status_code == 200
    again = first_step(root)
    signed = json.dumps(held.signed(options_on(again.get(STEP), "get")))
    assert again.post(STEP, {"passkey": signed}).status_code == 302
    assert b"remove:" not in again.get(OWN).content  # the last one of who must have one


def test_passkeys_on_ones_own_page(root):
    client, first, second = Client(), Authenticator(), Authenticator()
    client.force_login(root)
    assert b"The password is wrong" in client.post(OWN, {"password": "x", "act": "add"}).content
    page = client.post(OWN, {"password": PASSWORD, "act": "add"})
    made = json.dumps(first.made(options_on(page, "create")))
    assert b"answer does not hold" in client.post(OWN, {"passkey": "{", "act": "passkey"}).content
    assert b'id="recovery-codes"' in client.post(OWN, {"passkey": made, "act": "passkey"}).content
    assert client.get(LIST).status_code == 200  # this session has shown it

    def shown() -> dict[str, str]:
        return {"password": PASSWORD, "passkey": json.dumps(first.signed(options_on(client.get(OWN), "get")))}

    assert b"Send the code" in client.post(OWN, {"password": PASSWORD, "act": "add"}).content
    page = client.post(OWN, {**shown(), "act": "add"})
    made = json.dumps(second.made(options_on(page, "create")))
    assert client.post(OWN, {"passkey": made, "act": "passkey"}).headers["Location"] == OWN
    stays = Passkey.objects.get(credential_id=first.id)
    gone = Passkey.objects.get(credential_id=second.id)
    client.post(OWN, {**shown(), "act": f"remove:{gone.pk}"})
    assert list(Passkey.objects.all()) == [stays]
    client.post(OWN, {**shown(), "act": f"remove:{stays.pk}"})
    assert not SecondFactor.objects.exists()
    assert client.get(LIST).status_code == 200


def test_a_lost_passkey_is_removed_by_a_superuser(root, alice):
    passkey_on(alice)
    passkey, listed = Passkey.objects.get(), "/admin/accounts/passkey/"
    client = Client()
    client.force_login(root)
    assert [client.get(path).status_code for path in (listed, f"{listed}{passkey.pk}/change/")] == [200, 200]
    form = {"action": "remove_passkey", "_selected_action": [str(passkey.pk)]}
    assert (client.post(listed, form).status_code, Passkey.objects.count()) == (200, 1)
    assert client.post(listed, {**form, "confirmed": "yes"}).status_code == 302
    assert not SecondFactor.objects.exists()
    told = AuditEvent.objects.filter(action__contains="passkey").values_list("action", flat=True)
    assert sorted(told) == ["user.passkey_added", "user.passkey_removed_by_staff"]
