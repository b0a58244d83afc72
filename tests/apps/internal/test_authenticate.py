"""Who is admitted, as which device, and what becomes of the token: the rules of tunnel.md, "Agents"."""

import datetime as dt
import uuid

import pytest
import redis as redis_package
from django.db import OperationalError
from django.utils import timezone

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.devices import services
from apps.devices.models import Device, DeviceEvent
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.pairing.services import revoke_token
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, Daemon, credential, device_of, issue, named, row
from tunnel.contract import hash_token, new_token


def code(result):
    assert result["ok"] is False, result
    return result["status"], result["code"]


def age(model, days, **filters):
    model.objects.filter(**filters).update(issued_at=timezone.now() - dt.timedelta(days=days))


# --- what is refused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "token", ["", "x", "vAc_short", "vAu_" + "0" * 32, "vAc_" + "g" * 32, "vAc_" + "0" * 32, "vAs_" + "0" * 32]
)
def test_an_unknown_or_malformed_token(daemon, alice, token):
    assert code(daemon.ask(token)) == (401, "UNAUTHENTICATED")


def test_an_expired_pairing_token(daemon, alice):
    secret = issue(alice, now=timezone.now() - dt.timedelta(minutes=60, seconds=1))
    assert code(daemon.ask(secret)) == (401, "TOKEN_EXPIRED")


def test_a_revoked_pairing_token(daemon, alice):
    secret = issue(alice)
    revoke_token(actor=ACTOR, token_id=row(secret).id, owner_id=None, now=timezone.now())
    assert code(daemon.ask(secret)) == (401, "TOKEN_REVOKED")


def test_a_disabled_owner(daemon, alice):
    paired = daemon.ask_all(named(issue(alice)))[0]
    fresh = issue(alice)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert code(daemon.ask(fresh)) == (403, "ACCOUNT_DISABLED")
    assert code(daemon.ask(paired["session_token"])) == (403, "ACCOUNT_DISABLED")
    assert row(fresh).status == PairingStatus.ISSUED


@pytest.mark.parametrize("field", ["serial", "instance"])
@pytest.mark.parametrize("value", ["x" * 129, "a\nb", "a\x7fb"])
def test_what_an_agent_says_is_bounded(daemon, alice, field, value):
    secret = issue(alice)
    assert code(daemon.ask(secret, **{field: value})) == (400, "VALIDATION_ERROR")
    assert row(secret).status == PairingStatus.ISSUED


def test_long_words_about_itself_are_cut(daemon, alice):
    result = daemon.ask(issue(alice), chip="c" * 100, firmware="f\x01" * 100, agent="a" * 1000)
    device = device_of(result)
    assert (device.chip, device.firmware, device.agent_version) == ("c" * 64, "f" * 64, "a" * 128)


def test_one_device_too_many_asks_again_later(daemon, alice, settings):
    settings.VISIONA = {**settings.VISIONA, "QUOTA_DEVICES": 2}
    known = daemon.ask_all(named(issue(alice), serial="S-1"))[0]
    secrets = [issue(alice) for _ in range(3)]
    taken, *refused = daemon.ask_all(*(named(secret) for secret in secrets))
    assert taken["ok"] is True
    assert [(code(each), each["retry_after"]) for each in refused] == [((429, "QUOTA_EXCEEDED"), 300)] * 2
    assert [row(secret).status for secret in secrets[1:]] == [PairingStatus.ISSUED] * 2
    assert daemon.ask(known["session_token"])["ok"] is True
    assert daemon.ask(issue(alice), serial="S-1")["device_id"] == known["device_id"], "nor is pairing anew one more"
    Device.objects.filter(id=known["device_id"]).update(deleted_at=timezone.now())
    assert daemon.ask(secrets[1])["ok"] is True
    assert code(daemon.ask(issue(alice), serial="S-1")) == (429, "QUOTA_EXCEEDED"), "one that comes back counts"


# --- a new device -----------------------------------------------------------------------------------------------------
def test_an_agent_that_says_its_name_gets_a_session_token_and_uses_up_its_pairing_token(daemon, alice):
    secret = issue(alice, name="Shop")
    ask = named(secret, serial="S-1", chip="KL720", firmware="2.1")
    result = daemon.ask_all(ask)[0]
    assert result["ok"] is True
    assert result["epoch"] == 1
    assert result["user_id"] == str(alice.pk)
    assert result["replaced"] is None
    assert result["session_token"].startswith("vAs_")
    device = device_of(result)
    assert (device.name, device.serial, device.chip, device.firmware) == ("Shop", "S-1", "KL720", "2.1")
    assert (device.epoch, device.address, device.agent_version) == (1, "192.0.2.7", "visiona-agent/0.1.0")
    token = row(secret)
    assert (token.status, token.device_id, token.instance) == (PairingStatus.CONSUMED, device.id, "box-1")
    assert token.paired_at is not None
    entry = registry.lookup([result["device_id"]])[result["device_id"]]
    assert (entry.session, entry.epoch, entry.features) == (ask["session"], 1, ("keepalive",))
    assert DeviceEvent.objects.get(device_id=device.id).action == "paired"
    assert AuditEvent.objects.filter(action="device.pair", object_id=str(device.id)).count() == 1


def test_no_secret_is_stored(daemon, alice):
    secret = issue(alice)
    result = daemon.ask_all(named(secret))[0]
    assert SessionToken.objects.get().token_hash == hash_token(result["session_token"])
    dump = str(list(PairingToken.objects.values())) + str(list(SessionToken.objects.values()))
    dump += str(list(AuditEvent.objects.values())) + str(list(DeviceEvent.objects.values()))
    assert secret not in dump
    assert result["session_token"] not in dump


@pytest.mark.parametrize("name,serial,expected", [("N", "S", "N"), ("", "S", "S"), ("N", "", "N")])
def test_how_a_new_device_is_called(daemon, alice, name, serial, expected):
    assert device_of(daemon.ask(issue(alice, name=name), serial=serial)).name == expected


def test_one_without_any_name_gets_one(daemon, alice):
    assert device_of(daemon.ask(issue(alice))).name.startswith("Box ")


# --- the session token ------------------------------------------------------------------------------------------------
def test_the_session_token_admits_the_same_device_with_a_higher_epoch(daemon, alice):
    first = daemon.ask_all(named(issue(alice)))[0]
    again = daemon.ask_all(named(first["session_token"]))[0]
    assert (again["device_id"], again["epoch"], again["session_token"]) == (first["device_id"], 2, None)
    token = SessionToken.objects.get()
    assert token.last_used_at is not None
    assert token.expires_at - timezone.now() > dt.timedelta(days=364)


def test_a_session_token_rotates_after_thirty_days_and_the_old_one_is_good_until_the_new_one_is_used(daemon, alice):
    old = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    age(SessionToken, 30, token_hash=hash_token(old))
    new = daemon.ask_all(named(old))[0]["session_token"]
    assert new not in (None, old)
    assert SessionToken.objects.get(token_hash=hash_token(new)).rotated_from_id == hash_token(old)
    newer = daemon.ask_all(named(old))[0]["session_token"]  # the answer was lost: the old one still works
    assert newer not in (None, new)
    assert code(daemon.ask(new)) == (401, "TOKEN_REVOKED")
    assert daemon.ask(newer)["ok"] is True
    assert code(daemon.ask(old)) == (401, "TOKEN_REVOKED")
    assert daemon.ask(newer)["ok"] is True


def test_a_session_token_of_less_than_thirty_days_stays(daemon, alice):
    token = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    age(SessionToken, 29)
    assert daemon.ask(token)["session_token"] is None


def test_a_session_token_ends_a_year_after_its_last_use(daemon, alice):
    token = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    SessionToken.objects.update(expires_at=timezone.now())
    assert code(daemon.ask(token)) == (401, "TOKEN_EXPIRED")


def test_a_session_token_of_an_unpaired_device(daemon, alice):
    first = daemon.ask_all(named(issue(alice)))[0]
    services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=uuid.UUID(first["device_id"]), now=timezone.now())
    assert code(daemon.ask(first["session_token"])) == (401, "TOKEN_REVOKED")


# --- redeeming again --------------------------------------------------------------------------------------------------
def test_the_same_instance_may_redeem_again_for_ten_minutes(daemon, alice):
    secret = issue(alice)
    first = daemon.ask_all(named(secret))[0]
    second = daemon.ask_all(named(secret))[0]
    assert second["device_id"] == first["device_id"]
    assert second["epoch"] == 2
    assert code(daemon.ask(first["session_token"])) == (401, "TOKEN_REVOKED")
    assert daemon.ask(second["session_token"])["ok"] is True
    PairingToken.objects.update(paired_at=timezone.now() - dt.timedelta(minutes=10))
    assert code(daemon.ask_all(named(secret))[0]) == (401, "TOKEN_REVOKED")


@pytest.mark.parametrize("first,second", [("box-1", "box-2"), ("box-1", ""), ("", "")])
def test_another_instance_may_not(daemon, alice, first, second):
    secret = issue(alice)
    assert daemon.ask_all(named(secret, first))[0]["ok"] is True
    assert code(daemon.ask_all(named(secret, second))[0]) == (401, "TOKEN_REVOKED")


def test_a_consumed_token_is_dead_for_one_that_says_no_name(daemon, alice):
    secret = issue(alice)
    daemon.ask_all(named(secret))
    assert code(daemon.ask(secret, instance="box-1")) == (401, "TOKEN_REVOKED")


# --- agents of the prototype ------------------------------------------------------------------------------------------
def test_an_agent_that_says_nothing_goes_on_using_its_pairing_token_for_the_same_device(daemon, alice):
    secret = issue(alice)
    first = daemon.ask(secret)
    assert first["session_token"] is None
    PairingToken.objects.update(expires_at=timezone.now() - dt.timedelta(days=9))  # bounds the first use only
    second = daemon.ask(secret)
    assert (second["device_id"], second["epoch"]) == (first["device_id"], 2)
    assert row(secret).status == PairingStatus.PAIRED
    revoke_token(actor=ACTOR, token_id=row(secret).id, owner_id=alice.pk, now=timezone.now())
    assert code(daemon.ask(secret)) == (401, "TOKEN_REVOKED")


def test_a_setting_turns_that_off(daemon, alice, settings):
    settings.VISIONA = {**settings.VISIONA, "PAIRING_TOKEN_RECONNECT": False}
    secret = issue(alice)
    assert daemon.ask(secret)["ok"] is True
    assert code(daemon.ask(secret)) == (401, "TOKEN_REVOKED")


def test_a_box_whose_agent_learns_its_name_moves_to_a_session_token(daemon, alice):
    secret = issue(alice)
    first = daemon.ask(secret)
    second = daemon.ask_all(named(secret))[0]
    assert second["device_id"] == first["device_id"]
    assert second["session_token"]
    assert row(secret).status == PairingStatus.CONSUMED


# --- serials ----------------------------------------------------------------------------------------------------------
def test_a_live_device_of_the_serial_is_paired_anew_and_its_old_tokens_die(daemon, alice):
    first = daemon.ask_all(named(issue(alice), serial="S-1"))[0]
    plain = issue(alice)
    daemon.ask(plain, serial="S-2")
    registry.end(dict.fromkeys(registry.online_devices(), 1))  # of one that is online: tests/…/test_twins.py
    second = daemon.ask_all(named(issue(alice), "other", serial="S-1"))[0]
    third = daemon.ask(issue(alice), serial="S-2")
    assert second["device_id"] == first["device_id"]
    assert third["device_id"] == str(row(plain).device_id)
    assert code(daemon.ask(first["session_token"])) == (401, "TOKEN_REVOKED")
    assert code(daemon.ask(plain)) == (401, "TOKEN_REVOKED")
    assert daemon.ask(second["session_token"])["ok"] is True


def test_an_unpaired_device_of_the_serial_is_revived(daemon, alice):
    first = daemon.ask_all(named(issue(alice), serial="S-1"))[0]
    device_id = uuid.UUID(first["device_id"])
    services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device_id, now=timezone.now())
    second = daemon.ask_all(named(issue(alice), serial="S-1"))[0]
    assert second["device_id"] == first["device_id"]
    assert second["epoch"] > first["epoch"]
    assert device_of(second).deleted_at is None
    assert registry.lookup([first["device_id"]])[first["device_id"]].epoch == second["epoch"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ({"local": "127.0.0.1:8080", "local_listening": False}, ("127.0.0.1:8080", False)),
        ({"local": "[::1]:8080", "local_listening": True}, ("[::1]:8080", True)),
        ({"local": f"{'a' * 255}:65535"}, (f"{'a' * 255}:65535", None)),
        ({"local": f"{'a' * 256}:65535", "local_listening": True}, ("", None)),
        ({"local": "<b>:80", "local_listening": False}, ("", None)),
        ({"local": "127.0.0.1:80\n", "local_listening": False}, ("", None)),
        ({"local_listening": False}, ("", None)),
        ({}, ("", None)),  # an agent that does not look, or a daemon that does not tell
    ],
)
def test_what_an_agent_says_of_its_local_address_is_shown(daemon, alice, alice_api, said, kept):
    secret = issue(alice)
    device = daemon.ask(secret, local="10.0.0.1:1", local_listening=True)
    assert daemon.ask(secret, **said)["ok"]
    one = alice_api("GET", f"/api/devices/{device['device_id']}").data
    for answer in (one, *alice_api("GET", "/api/devices").data):
        assert (answer["local_address"], answer["local_listening"]) == kept


def test_a_local_address_of_another_kind_is_refused(daemon, alice):
    answer = daemon.post("authenticate", {"node": daemon.node, "credentials": [credential("x", local=[1])]})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


def test_a_device_registered_before_is_the_one_that_is_paired(daemon, alice):
    device = services.register_device(
        actor=ACTOR, owner_id=alice.pk, serial="S-1", name="Hall", chip="", metadata={}, now=timezone.now()
    )
    assert daemon.ask(issue(alice, name="other"), serial="S-1")["device_id"] == str(device.id)
    assert Device.objects.get().name == "Hall"


def test_another_users_serial_is_nobodys_business(daemon, alice, bob):
    one = daemon.ask(issue(alice), serial="S-1")
    other = daemon.ask(issue(bob), serial="S-1")
    assert other["ok"] is True
    assert one["device_id"] != other["device_id"]


def test_a_device_cannot_take_the_serial_of_another_live_one(daemon, alice):
    """It comes in all the same: the token decides who it is, and its owner is told (test_twins.py)."""
    daemon.ask(issue(alice), serial="S-1")
    other = daemon.ask_all(named(issue(alice), serial="S-2"))[0]
    plain = issue(alice)
    daemon.ask(plain)
    assert daemon.ask(other["session_token"], serial="S-1")["device_id"] == other["device_id"]
    assert daemon.ask(plain, serial="S-1")["device_id"] == str(row(plain).device_id)
    assert [device_of(other).serial, Device.objects.get(id=row(plain).device_id).serial] == ["S-2", None]


def test_a_device_whose_hardware_says_a_serial_later_takes_it(daemon, alice):
    secret = issue(alice)
    first = daemon.ask(secret)
    assert device_of(first).serial is None
    assert device_of(daemon.ask(secret, serial="S-7")).serial == "S-7"


# --- many at once -----------------------------------------------------------------------------------------------------
def test_answers_come_in_order_and_one_bad_credential_spoils_no_other(daemon, alice, bob):
    good, mine = issue(alice), issue(bob)
    results = daemon.ask_all(credential("nonsense"), named(good), credential(mine), credential("vAs_" + "1" * 32))
    assert [result["ok"] for result in results] == [False, True, True, False]
    assert results[1]["user_id"] == str(alice.pk)
    assert results[2]["user_id"] == str(bob.pk)


def test_of_one_token_in_one_call_the_first_that_says_its_name_wins(daemon, alice):
    secret = issue(alice)
    results = daemon.ask_all(*[named(secret, f"box-{index}") for index in range(10)])
    assert [result["ok"] for result in results] == [True] + [False] * 9
    assert {code(result) for result in results[1:]} == {(401, "TOKEN_REVOKED")}
    assert (Device.objects.count(), SessionToken.objects.filter(revoked_at=None).count()) == (1, 1)


def test_plain_agents_of_one_token_in_one_call_are_one_device_and_the_last_is_it(daemon, alice):
    secret = issue(alice)
    asks = [credential(secret) for _ in range(10)]
    results = daemon.ask_all(*asks)
    assert [result["epoch"] for result in results] == list(range(1, 11))
    device_id = str(Device.objects.get().id)
    assert {result["device_id"] for result in results} == {device_id}
    assert registry.lookup([device_id])[device_id].session == asks[-1]["session"]


def test_pairing_anew_in_the_same_call_kills_what_the_call_admitted_before(daemon, alice):
    first = daemon.ask_all(named(issue(alice), serial="S-1"))[0]["session_token"]
    age(SessionToken, 40)
    before, anew, after = daemon.ask_all(
        named(first, serial="S-1"), named(issue(alice), serial="S-1"), named(first, serial="S-1")
    )
    assert before["ok"] is True
    assert anew["ok"] is True
    assert code(after) == (401, "TOKEN_REVOKED")
    assert code(daemon.ask(before["session_token"])) == (401, "TOKEN_REVOKED")
    assert daemon.ask(anew["session_token"])["ok"] is True


def test_a_call_of_many_costs_a_fixed_number_of_queries(daemon, alice, django_assert_max_num_queries):
    tokens = [daemon.ask_all(named(issue(alice), f"b{n}"))[0]["session_token"] for n in range(40)]
    with django_assert_max_num_queries(10):
        results = daemon.ask_all(*[named(token) for token in tokens])
    assert all(result["ok"] for result in results)


# --- where the older session is ---------------------------------------------------------------------------------------
def test_an_older_session_on_another_node_is_named_for_closing(daemon, alice):
    other = Daemon("0198c000-0000-7000-8000-000000000002", "http://127.0.0.1:2")
    other.beat()
    ask = named(issue(alice))
    first = daemon.ask_all(ask)[0]
    moved = other.ask(first["session_token"])
    assert moved["replaced"] == {"node_url": daemon.url, "session": ask["session"]}
    assert other.ask(first["session_token"])["replaced"] is None  # the node knows its own sessions


def test_one_that_was_unpaired_while_it_was_admitted_is_refused(daemon, alice, monkeypatch):
    secret = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    device = Device.objects.get()
    put = registry.put

    def unpaired_meanwhile(node, sessions):
        Device.objects.filter(pk=device.pk).update(deleted_at=timezone.now())
        registry.end({str(device.pk): sessions[0].epoch})
        return put(node, sessions)

    monkeypatch.setattr(registry, "put", unpaired_meanwhile)
    assert code(daemon.ask(secret)) == (401, "TOKEN_REVOKED")
    assert registry.lookup([str(device.pk)]) == {}


def test_one_that_was_overtaken_while_it_was_admitted_is_told_to_wait(daemon, alice, monkeypatch):
    secret = daemon.ask_all(named(issue(alice)))[0]["session_token"]
    device_id = str(Device.objects.get().pk)
    put = registry.put

    def overtaken(node, sessions):
        Device.objects.update(epoch=9)
        put(node, [registry.Session(device_id, str(uuid.uuid4()), 9, str(alice.pk), "2026-01-01T00:00:00Z")])
        return put(node, sessions)

    monkeypatch.setattr(registry, "put", overtaken)
    result = daemon.ask(secret)
    assert (result["code"], result["retry_after"]) == ("CONFLICT", 30)
    assert registry.lookup([device_id])[device_id].epoch == 9


def test_unknown_tokens_alone_touch_no_row(daemon, alice, django_assert_max_num_queries):
    with django_assert_max_num_queries(5):
        daemon.ask_all(*[credential(new_token("vAs_")) for _ in range(50)])


# --- when a part is down ----------------------------------------------------------------------------------------------
def refuse(*args, **kwargs):
    raise redis_package.ConnectionError("gone")


def test_without_redis_nobody_is_admitted_and_no_token_is_used_up(daemon, alice, monkeypatch):
    secret = issue(alice)
    monkeypatch.setattr(registry, "ping", refuse)
    answer = daemon.post("authenticate", {"node": daemon.node, "credentials": [named(secret)]})
    assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    assert answer.headers["Retry-After"]
    assert row(secret).status == PairingStatus.ISSUED


def test_redis_goes_away_after_the_commit_and_the_same_box_redeems_again(daemon, alice, monkeypatch):
    secret = issue(alice)
    with monkeypatch.context() as broken:
        broken.setattr(registry, "put", refuse)
        answer = daemon.post("authenticate", {"node": daemon.node, "credentials": [named(secret)]})
    assert (answer.status, answer.code) == (503, "CACHE_UNAVAILABLE")
    assert daemon.ask_all(named(secret))[0]["ok"] is True
    assert Device.objects.get().epoch == 2


def test_a_database_that_is_gone(daemon, alice, monkeypatch):
    def fail(act):
        raise OperationalError("gone")

    secret = issue(alice)
    monkeypatch.setattr("apps.devices.admission.retry_stale", fail)
    answer = daemon.post("authenticate", {"node": daemon.node, "credentials": [named(secret)]})
    assert (answer.status, answer.code) == (503, "DATABASE_UNAVAILABLE")
    assert "gone" not in str(answer.json)
    assert registry.online_devices() == set()
