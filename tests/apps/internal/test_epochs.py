"""Where PostgreSQL and the registry disagree the higher epoch wins, and a mistake ends no box (data.md, "Presence")."""

import uuid

import pytest
from django.utils import timezone

from apps.accounts.models import User
from apps.devices import installation, presence, services
from apps.devices.models import Device, DeviceEvent
from apps.pairing.services import revoke_token
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, device_of, event, fact, issue, named, row
from tunnel.contract import CLOSE_REPLACED, CLOSE_REVOKED, new_token

LOST = 3
"""How many of its admissions the table has forgotten: a backup that was restored, a replica that was behind."""


@pytest.fixture
def box(daemon, alice):
    """A device that was admitted five times: its last answer, its session, and its session token."""
    token = daemon.ask_all(named(issue(alice), serial="S-1"))[0]["session_token"]
    for _ in range(4):
        ask = named(token, serial="S-1")
        admitted = daemon.ask_all(ask)[0]
    return admitted, ask["session"], token


def lose_commits() -> None:
    for device in Device.objects.all():
        Device.objects.filter(pk=device.pk).update(epoch=device.epoch - LOST)


def epoch_of(admitted) -> int:
    return device_of(admitted).epoch


@pytest.mark.parametrize("ended", [False, True], ids=["online", "offline"])
def test_a_table_that_forgot_admissions_refuses_nobody(daemon, box, ended):
    admitted, session, token = box
    if ended:
        registry.remove([(admitted["device_id"], session)])
    lose_commits()
    again = daemon.ask_all(named(token, serial="S-1"))[0]
    assert again["ok"] is True
    assert again["epoch"] == admitted["epoch"] + 1 == epoch_of(admitted)
    assert registry.lookup([admitted["device_id"]])[admitted["device_id"]].epoch == again["epoch"]


def test_what_the_daemons_tell_of_such_a_session_counts(daemon, box):
    admitted, session, _token = box
    lose_commits()
    assert daemon.tell(event("disconnected", admitted, session)) == 1
    assert epoch_of(admitted) == admitted["epoch"]
    assert DeviceEvent.objects.filter(action="disconnected").count() == 1


def test_a_full_list_brings_the_epoch_back(daemon, box):
    admitted, session, _token = box
    lose_commits()
    assert daemon.beat([fact(admitted, session)])["close"] == []
    assert epoch_of(admitted) == admitted["epoch"]


@pytest.mark.parametrize("epoch", [(1 << 63) - 1, 1 << 40])
def test_an_epoch_out_of_nowhere_stays_for_nobody(daemon, box, epoch):
    """Above the highest there is none, so nobody could be admitted any more, nor who is asked about in one call."""
    admitted, session, token = box
    wild = {**admitted, "epoch": epoch}
    assert daemon.tell(event("disconnected", wild, session)) == 0
    assert [order["code"] for order in daemon.beat([fact(wild, session)])["close"]] == [CLOSE_REPLACED]
    assert epoch_of(admitted) == admitted["epoch"]
    assert daemon.ask_all(named(token, serial="S-1"))[0]["epoch"] == admitted["epoch"] + 1


def test_a_registry_that_is_told_of_a_higher_epoch_during_an_admission(daemon, box, monkeypatch):
    admitted, _session, token = box
    put = registry.put

    def overtaken(node, sessions):
        monkeypatch.setattr(registry, "put", put)
        registry.end({admitted["device_id"]: 40})  # a tombstone of a life that the table has lost
        return put(node, sessions)

    monkeypatch.setattr(registry, "put", overtaken)
    again = daemon.ask_all(named(token))[0]
    assert (again["ok"], again["epoch"], epoch_of(admitted)) == (True, 41, 41)


# --- a revocation is none the weaker for it ---------------------------------------------------------------------------
def test_a_token_that_is_revoked_during_an_admission_admits_nobody(daemon, alice, monkeypatch):
    secret = issue(alice)
    put = registry.put

    def revoked(node, sessions):
        monkeypatch.setattr(registry, "put", put)
        registry.end({sessions[0].device_id: 40})
        revoke_token(actor=ACTOR, token_id=row(secret).id, owner_id=None, now=timezone.now())
        return put(node, sessions)

    monkeypatch.setattr(registry, "put", revoked)
    refused = daemon.ask_all(named(secret))[0]
    assert (refused["ok"], refused["code"]) == (False, "TOKEN_REVOKED")
    assert registry.online_devices() == set()


def test_unpairing_ends_the_tunnel_that_the_registry_knows(daemon, alice, box, django_capture_on_commit_callbacks):
    admitted, _session, token = box
    lose_commits()
    with django_capture_on_commit_callbacks(execute=True):
        services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=device_of(admitted).pk, now=timezone.now())
    assert registry.online_devices() == set()
    assert daemon.ask(token)["code"] == "TOKEN_REVOKED"


def test_revoking_ends_the_tunnel_that_the_registry_knows(daemon, alice, django_capture_on_commit_callbacks):
    secret = issue(alice)
    for _ in range(5):
        daemon.ask(secret)  # the prototype's agent, whose pairing token is its credential
    lose_commits()
    with django_capture_on_commit_callbacks(execute=True):
        revoke_token(actor=ACTOR, token_id=row(secret).id, owner_id=None, now=timezone.now())
    assert registry.online_devices() == set()
    assert daemon.ask(secret)["code"] == "TOKEN_REVOKED"


def test_what_was_left_open_is_closed_by_the_job(daemon, alice, box):
    admitted, _session, _token = box
    lose_commits()
    Device.objects.filter(pk=admitted["device_id"]).update(deleted_at=timezone.now())
    assert presence.close_forbidden() == 1
    assert registry.online_devices() == set()


# --- another database -------------------------------------------------------------------------------------------------
def test_a_database_without_a_user_knows_no_token_and_says_so(daemon):
    assert not User.objects.exists()
    answer = daemon.ask(new_token("vAs_"))
    assert (answer["status"], answer["code"], answer["retry_after"]) == (503, "DATABASE_UNAVAILABLE", 30)


def test_a_database_that_knows_a_device_of_old_closes_none(daemon, box):
    """An older copy, say: to it the device was never paired, or was unpaired."""
    admitted, session, _token = box
    device_of(admitted).session_tokens.all().delete()
    device_of(admitted).pairing_tokens.all().delete()
    registry.remember_database(str(uuid.uuid4()))
    assert daemon.beat(count=1)["close"] == []
    assert daemon.beat([fact(admitted, session)])["close"] == []
    assert presence.close_forbidden() == 0
    registry.remember_database(installation.identity())
    assert [close["session"] for close in daemon.beat(count=1)["close"]] == [session]


def test_a_database_that_is_not_the_boxes_own_refuses_none_and_closes_none(daemon, alice, box):
    """The API on another database for a while: what it does not know is not for it to say."""
    admitted, session, token = box
    device = device_of(admitted)
    registry.remember_database(str(uuid.uuid4()))
    Device.objects.filter(pk=device.pk).delete()
    assert daemon.ask(token)["status"] == 503
    assert daemon.beat([fact(admitted, session)])["close"] == []
    fresh = daemon.ask_all(named(issue(alice)))[0]
    assert fresh["ok"] is True, "a box of this very database comes in"
    assert daemon.ask(token)["code"] == "UNAUTHENTICATED", "and it is the one that counts from now on"
    closes = daemon.beat([fact(admitted, session)])["close"]
    assert [(close["session"], close["code"]) for close in closes] == [(session, CLOSE_REVOKED)]
