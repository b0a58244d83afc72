"""Passkeys by the API: registered, asked for at login, refused where anything does not fit, removed."""

import copy
from typing import Any

import pytest
from django.conf import settings
from django.utils import timezone
from fido2.utils import websafe_encode
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apps.accounts import leaving
from apps.accounts.factors import checking, passkeys, webauthn
from apps.accounts.factors.webauthn import Answer
from apps.accounts.models import Passkey, SecondFactor, User
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.redis import client
from tests.apps.accounts.factor_kit import code_for, next_code, on
from tests.apps.accounts.mail_kit import deliver, token_in
from tests.apps.accounts.passkey_kit import Authenticator, passkey_on
from tests.apps.conftest import PASSWORD, Api

ROUTE, FACTOR, LOGIN = "/api/auth/passkeys", "/api/auth/second-factor", "/api/auth/login"


def asked(api: Api, user: User) -> dict[str, Any]:
    """What the passkey has to sign for a login."""
    answer = api("POST", f"{LOGIN}/passkey", {"email": user.email, "password": PASSWORD})
    assert answer.status == 200
    return answer.data["public_key"]


def log_in(api: Api, user: User, **more: Any):
    return api("POST", LOGIN, {"email": user.email, "password": PASSWORD, **more})


def begun(api: Api, **more: Any) -> dict[str, Any]:
    return api("POST", f"{ROUTE}/options", {"password": PASSWORD, **more}).data["public_key"]


def proof(api: Api, held: Authenticator) -> dict[str, Any]:
    """Password and passkey of who is logged in."""
    options = api("POST", f"{FACTOR}/passkey").data["public_key"]
    return {"password": PASSWORD, "passkey": held.signed(options)}


def actions() -> list[str]:
    return list(
        AuditEvent.objects.filter(action__regex="passkey|factor").order_by("id").values_list("action", flat=True)
    )


def test_it_is_registered_and_the_login_asks_for_it(alice, alice_api, anonymous):
    assert alice_api("POST", f"{ROUTE}/options", {"password": "wrong"}).code == "INVALID_CREDENTIALS"
    options, held = begun(alice_api), Authenticator()
    assert (options["rp"], options["user"]["name"]) == ({"id": "localhost", "name": "VisionA Cloud"}, alice.email)
    assert log_in(anonymous, alice).status == 200  # nothing has changed yet
    made = alice_api("POST", ROUTE, {"name": "telephone", "credential": held.made(options)})
    assert (made.status, len(made.data["recovery_codes"])) == (201, 10)
    state = alice_api("GET", FACTOR).data
    assert {key: state[key] for key in ("enabled", "authenticator", "passkeys")} == {
        "enabled": True, "authenticator": False, "passkeys": 1,
    }  # fmt: skip

    refused = log_in(anonymous, alice)
    assert (refused.status, refused.code) == (401, "SECOND_FACTOR_REQUIRED")
    assert refused.error["details"]["methods"] == ["passkey", "recovery_code"]
    assert log_in(anonymous, alice, code="000000").code == "INVALID_CREDENTIALS"
    options = asked(anonymous, alice)
    assert [each["id"] for each in options["allowCredentials"]] == [websafe_encode(held.id)]
    assert log_in(anonymous, alice, passkey=held.signed(options)).data["access_token"]
    (row,) = alice_api("GET", ROUTE).data
    assert (row["name"], row["last_used_at"] is not None) == ("telephone", True)
    assert log_in(anonymous, alice, code=made.data["recovery_codes"][0]).status == 200
    assert actions()[:2] == ["user.factor_enabled", "user.passkey_added"]


def test_what_a_passkey_signs_is_told_after_the_right_password_alone(alice, bob, anonymous):
    passkey_on(alice)
    for body in ({"email": alice.email, "password": "x"}, {"email": "nobody@example.com", "password": PASSWORD}):
        assert anonymous("POST", f"{LOGIN}/passkey", body).code == "INVALID_CREDENTIALS"
    assert anonymous("POST", f"{LOGIN}/passkey", {"email": bob.email, "password": PASSWORD}).code == "INVALID_STATE"


@pytest.mark.parametrize(
    "said",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://box.localhost:3721"},  # below our own name, and a box's
        {"origin": "http://localhost:3721.evil.example"},
        {"origin": ["http://localhost:3721"]},
        {"crossOrigin": True},
        {"type": "webauthn.create"},
        {"challenge": websafe_encode(b"x" * 32)},
        {"challenge": 7},
    ],
)
def test_what_was_said_to_somebody_else_is_refused(alice, anonymous, said):
    held, _codes = passkey_on(alice)
    refused = log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice), **said))
    assert (refused.status, refused.code) == (401, "INVALID_CREDENTIALS")
    assert refused.error["details"]["passkey"]
    failed = AuditEvent.objects.get(action="user.login_failed")
    assert failed.detail["wrong"] == "passkey"


def test_a_listed_front_end_on_our_own_name_may(alice, anonymous):
    held, _codes = passkey_on(alice, origin="http://localhost:3000")  # of VISIONA_CORS_ALLOWED_ORIGINS
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200


def test_a_challenge_is_good_once_for_its_user_and_purpose_and_not_for_long(alice, bob, alice_api, anonymous):
    held, _codes = passkey_on(alice)
    passkey_on(bob)
    options = asked(anonymous, alice)
    signed = held.signed(options)
    assert log_in(anonymous, alice, passkey=signed).status == 200
    assert log_in(anonymous, alice, passkey=signed).status == 401  # a replay
    assert log_in(anonymous, alice, passkey=held.signed(options)).status == 401  # signed anew, asked once
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, bob))).status == 401
    proves = alice_api("POST", f"{FACTOR}/passkey").data["public_key"]
    assert log_in(anonymous, alice, passkey=held.signed(proves)).status == 401
    late = asked(anonymous, alice)
    (key,) = client().keys(f"*passkey:login:{alice.pk}:*")  # what was used is gone
    assert 0 < client().ttl(key) <= webauthn.CHALLENGE_SECONDS
    client().delete(key)
    assert log_in(anonymous, alice, passkey=held.signed(late)).status == 401


def test_another_users_passkey_is_refused(alice, bob, anonymous):
    held, _codes = passkey_on(alice)
    passkey_on(bob)
    assert log_in(anonymous, bob, passkey=held.signed(asked(anonymous, bob))).status == 401
    stolen = Authenticator(id=held.id)  # her id, another key
    assert log_in(anonymous, alice, passkey=stolen.signed(asked(anonymous, alice))).status == 401


def test_a_passkey_belongs_to_one_account(alice, bob, alice_api, bob_api):
    held, _codes = passkey_on(alice)
    taken = bob_api("POST", ROUTE, {"name": "x", "credential": held.made(begun(bob_api))})
    assert (taken.status, taken.code) == (409, "CONFLICT")
    assert not SecondFactor.objects.filter(user=bob).exists()


def test_a_counter_that_goes_back_is_refused_and_told(alice, anonymous):
    held, _codes = passkey_on(alice)
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200
    held.counter -= 1
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 401
    assert "user.passkey_counter_refused" in actions()
    assert Passkey.objects.get().sign_count == 2
    held.counter = 40
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200


def test_one_that_does_not_count_is_taken(alice, anonymous):
    held, _codes = passkey_on(alice, counts=False)
    for _ in range(2):
        assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200


def test_somebody_has_to_be_there(alice, anonymous):
    held, _codes = passkey_on(alice)
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice), flags=0)).status == 401


def test_a_second_one_asks_for_the_first(alice, alice_api, anonymous):
    first, _codes = passkey_on(alice)
    bare = alice_api("POST", f"{ROUTE}/options", {"password": PASSWORD})
    assert bare.code == "SECOND_FACTOR_REQUIRED"
    options = alice_api("POST", f"{ROUTE}/options", proof(alice_api, first)).data["public_key"]
    assert [each["id"] for each in options["excludeCredentials"]] == [websafe_encode(first.id)]
    second = Authenticator()
    made = alice_api("POST", ROUTE, {"name": "key", "credential": second.made(options)})
    assert (made.status, made.data["recovery_codes"]) == (201, [])
    for held in (first, second):
        assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200


def test_what_was_begun_before_a_factor_was_on_ends_then(alice, alice_api):
    """Else whoever has the password and a login begins, waits until the owner is protected, and adds their own."""
    options = begun(alice_api)
    on(alice)
    late = alice_api("POST", ROUTE, {"name": "x", "credential": Authenticator().made(options)})
    assert (late.status, late.code) == (401, "INVALID_CREDENTIALS")


def test_an_authenticator_that_was_begun_before_a_passkey_was_on_is_void(alice, alice_api):
    """The same, the other way round."""
    offer = alice_api("POST", FACTOR, {"password": PASSWORD}).data
    passkey_on(alice)
    assert alice_api("POST", f"{FACTOR}/confirm", {"code": code_for(offer["secret"])}).code == "INVALID_STATE"


def test_of_two_that_switch_on_at_once_the_second_has_to_ask_again(alice, alice_api, monkeypatch):
    options = begun(alice_api)
    registered = webauthn.registered

    def overtaken(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.undo()
        made = registered(*args, **kwargs)
        passkey_on(alice)
        return made

    monkeypatch.setattr(webauthn, "registered", overtaken)
    late = alice_api("POST", ROUTE, {"name": "x", "credential": Authenticator().made(options)})
    assert (late.code, Passkey.objects.count()) == ("INVALID_CREDENTIALS", 1)


@pytest.mark.parametrize(
    ("public", "said", "good"),
    [
        ("https://VisionA.example/", "https://visiona.example", True),
        ("https://visiona.example:443", "https://visiona.example", True),
        ("https://visiona.example", "http://visiona.example", False),
        ("https://visiona.example", "https://visiona.example:8443", False),
        ("https://visiona.example", "https://app.visiona.example", True),  # of VISIONA_CORS_ALLOWED_ORIGINS
        ("https://visiona.example", "https://box1.visiona.example", False),
        ("https://visiona.example", "https://elsewhere.example", False),  # listed, and not below our name
        ("https://visiona.example", "https://evilvisiona.example", False),
    ],
)
def test_whose_pages_may(alice, anonymous, monkeypatch, public, said, good):
    listed = ("https://app.visiona.example", "https://elsewhere.example", "https://evilvisiona.example")
    held, _codes = passkey_on(alice)
    monkeypatch.setitem(settings.VISIONA, "PUBLIC_URL", public)
    monkeypatch.setitem(settings.VISIONA, "CORS_ALLOWED_ORIGINS", listed)
    options = asked(anonymous, alice)
    assert options["rpId"] == "visiona.example"
    assert (log_in(anonymous, alice, passkey=held.signed(options, origin=said)).status == 200) is good


def test_there_is_an_end_to_how_many(alice, alice_api, monkeypatch):
    monkeypatch.setattr(passkeys, "MOST", 1)
    held, _codes = passkey_on(alice)
    refused = alice_api("POST", f"{ROUTE}/options", proof(alice_api, held))
    assert (refused.status, refused.code) == (409, "QUOTA_EXCEEDED")
    options = webauthn.creation_options(user=alice, factor=checking.factor_of(alice.pk))  # two begun at once
    refused = alice_api("POST", ROUTE, {"name": "x", "credential": Authenticator().made(options)})
    assert (refused.status, refused.code) == (409, "QUOTA_EXCEEDED")


def test_removed_on_password_and_factor_and_the_last_one_switches_off(alice, bob_api, alice_api, anonymous):
    held, codes = passkey_on(alice)
    path = f"{ROUTE}/{Passkey.objects.get().pk}"
    assert bob_api("DELETE", path, {"password": PASSWORD, "code": codes[0]}).status == 404
    assert alice_api("DELETE", path, {"password": PASSWORD}).code == "SECOND_FACTOR_REQUIRED"
    assert alice_api("DELETE", path, {"password": "x", "code": codes[0]}).code == "INVALID_CREDENTIALS"
    assert alice_api("DELETE", path, proof(alice_api, held)).status == 200
    assert log_in(anonymous, alice).status == 200
    assert not SecondFactor.objects.exists()
    assert actions()[-2:] == ["user.passkey_removed", "user.factor_disabled"]


def test_authenticator_and_passkey_stand_beside_each_other(alice, alice_api, anonymous):
    secret, codes = on(alice)
    begin = begun(alice_api, code=next_code(secret))
    held = Authenticator()
    assert alice_api("POST", ROUTE, {"name": "key", "credential": held.made(begin)}).data["recovery_codes"] == []
    assert log_in(anonymous, alice, code=codes[0]).status == 200  # those of the first factor are for both
    assert log_in(anonymous, alice).error["details"]["methods"] == ["passkey", "authenticator", "recovery_code"]
    assert alice_api("DELETE", f"{FACTOR}/authenticator", proof(alice_api, held)).status == 200
    assert alice_api("DELETE", f"{FACTOR}/authenticator", proof(alice_api, held)).code == "INVALID_STATE"
    assert log_in(anonymous, alice).error["details"]["methods"] == ["passkey", "recovery_code"]

    offer = alice_api("POST", FACTOR, proof(alice_api, held))
    assert offer.status == 201
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200  # still the passkey's
    confirmed = alice_api("POST", f"{FACTOR}/confirm", {"code": code_for(offer.data["secret"])})
    assert (confirmed.status, confirmed.data) == (200, {"recovery_codes": []})
    assert alice_api("DELETE", f"{ROUTE}/{Passkey.objects.get().pk}", proof(alice_api, held)).status == 200
    assert log_in(anonymous, alice, code=next_code(offer.data["secret"])).status == 200
    assert alice_api("DELETE", FACTOR, {"password": PASSWORD, "code": codes[1]}).status == 200
    assert not SecondFactor.objects.exists()


def test_who_logs_in_by_a_provider_alone_has_the_providers(alice, alice_api):
    User.objects.filter(pk=alice.pk).update(password="!")
    assert alice_api("POST", f"{ROUTE}/options", {"password": "x"}).code == "INVALID_STATE"


def test_it_goes_with_the_account_and_stays_with_a_new_password(make_user, anonymous):
    alice = make_user("alice@example.com", email_verified_at=timezone.now())
    held, _codes = passkey_on(alice)
    deliver()
    anonymous("POST", "/api/auth/password/reset", {"email": alice.email})
    (letter,) = deliver()
    body = {"token": token_in(letter), "password": PASSWORD}
    assert anonymous("POST", "/api/auth/password/reset/confirm", body).status == 200
    assert log_in(anonymous, alice).code == "SECOND_FACTOR_REQUIRED"
    assert log_in(anonymous, alice, passkey=held.signed(asked(anonymous, alice))).status == 200
    assert leaving.end_account(actor=Actor.system(), user_id=alice.pk, now=timezone.now())
    assert not Passkey.objects.exists()


def test_a_takeover_by_mail_sheds_what_a_stranger_registered(make_user, anonymous):
    alice = make_user("alice@example.com", email_verified_at=None)
    passkey_on(alice)
    deliver()
    anonymous("POST", "/api/auth/password/reset", {"email": alice.email})
    (letter,) = deliver()
    body = {"token": token_in(letter), "password": PASSWORD}
    assert anonymous("POST", "/api/auth/password/reset/confirm", body).status == 200
    assert not Passkey.objects.exists()
    assert log_in(anonymous, alice).status == 200


# --- hostile bytes ----------------------------------------------------------------------------------------------------
_JUNK = [
    b"", b"\xff", b"\x81" * 3000, b"\xa1\x80\x80", b"\x9b" + b"\xff" * 8, b"\xc0", b"[" * 3000, b"{}", b"null", b"7",
    b"\xa3cfmtdnonegattStmt\xa0hauthData\x40", b'{"type": "webauthn.create", "challenge": "\xc3\xa9", "origin": 1}',
]  # fmt: skip


@pytest.mark.parametrize("part", ["clientDataJSON", "attestationObject"])
def test_junk_registers_nothing(alice, alice_api, part):
    for junk in _JUNK:
        credential = Authenticator().made(begun(alice_api))
        credential["response"][part] = websafe_encode(junk)[:4000]
        answer = alice_api("POST", ROUTE, {"name": "x", "credential": credential})
        assert answer.code == ("INVALID_CREDENTIALS" if junk else "VALIDATION_ERROR")
    assert not Passkey.objects.exists()


@pytest.mark.parametrize("part", ["clientDataJSON", "authenticatorData", "signature"])
def test_junk_logs_nobody_in(alice, anonymous, part, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "THROTTLE_LOGIN", 1000)
    held, _codes = passkey_on(alice)
    for junk in _JUNK:
        credential = held.signed(asked(anonymous, alice))
        credential["response"][part] = websafe_encode(junk)[:4000]
        answer = log_in(anonymous, alice, passkey=credential)
        assert answer.code == ("INVALID_CREDENTIALS" if junk else "VALIDATION_ERROR")


@pytest.mark.parametrize(
    "passkey",
    [
        None, "x", [], {}, {"id": 1}, {"id": "AA", "rawId": "AB", "type": "public-key", "response": {}},
        {"id": "AA", "rawId": "AA", "type": "x", "response": {}}, {"id": "A", "rawId": "A", "type": "public-key"},
    ],
)  # fmt: skip
def test_what_is_no_passkeys_answer_is_a_bad_body(alice, anonymous, passkey):
    passkey_on(alice)
    assert log_in(anonymous, alice, passkey=passkey).code == "VALIDATION_ERROR"


ES256 = b"\xa5\x01\x02\x03\x26"
"""How a key of COSE begins that is of an elliptic curve and signs by ES256; below it becomes algorithm -100."""


def test_a_key_that_nobody_can_check_is_not_registered(alice, alice_api):
    class Unknown(Authenticator):
        def _data(self, rp_id: str, flags: int, attested: bytes = b"") -> bytes:
            before, key = attested.split(ES256)
            return super()._data(rp_id, flags, before + b"\xa5\x01\x02\x03\x38\x63" + key)

    made = alice_api("POST", ROUTE, {"name": "x", "credential": Unknown().made(begun(alice_api))})
    assert made.code == "INVALID_CREDENTIALS"


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    credential=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.binary(max_size=8).map(websafe_encode),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "rawId", "type", "response", "clientDataJSON", "attestationObject", "signature",
                             "authenticatorData", "clientExtensionResults", "authenticatorAttachment"]),
            inner,
        ),
        max_leaves=12,
    )
)  # fmt: skip
def test_whatever_json_the_admins_form_holds_is_refused(alice, credential):
    """There no serializer looks at it first."""
    if not isinstance(credential, dict):
        credential = {"response": credential}
    answer = Answer("register", copy.deepcopy(credential))
    assert webauthn.registered(answer, user=alice, factor=None) is None
    factor = SecondFactor(user=alice)
    assert webauthn.used(Answer("admin", credential), factor=factor, now=timezone.now()) == "wrong"
