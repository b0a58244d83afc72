"""Two boxes of one serial, and two of one credential (data.md, "Redeeming a pairing token"): nobody loses a box."""

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from apps.devices import services
from apps.devices.models import Device, DeviceEvent
from apps.devices.serials import is_junk
from apps.pairing.models import PairingToken
from apps.tunnels import daemon as daemons
from apps.tunnels import registry
from tests.apps.internal.kit import ACTOR, Daemon, device_of, event, issue, named
from tunnel.contract import hash_token

OTHER = {"instance": "box-2", "address": "198.51.100.8"}


@pytest.fixture
def answer(monkeypatch):
    """What a ping of a session comes to: an agent that answers, one that does not, a daemon that cannot tell."""
    asked = []

    def say(verdict):
        def ping(node_url, session, *, seconds, request_id=""):
            asked.append(session)
            if isinstance(verdict, Exception):
                raise verdict
            return verdict

        monkeypatch.setattr(daemons, "ping", ping)
        return asked

    return say


@pytest.fixture
def first(daemon, alice):
    """A box that is online with the serial S-1: what it was answered."""
    return daemon.ask_all(named(issue(alice, "first"), serial="S-1"))[0]


def pair(daemon, alice, **fields):
    return daemon.ask_all(named(issue(alice, "second"), serial="S-1", **{**OTHER, **fields}))[0]


def events(device, action):
    return list(DeviceEvent.objects.filter(device_id=device.pk, action=action))


# --- serials that say nothing -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "serial",
    [
        "Default string", "DEFAULT STRING", "To be filled by O.E.M.", "To Be Filled By OEM", "0", "00000000",
        "0000-0000",
        "0000000000000000", "None", "N/A", "Not Specified", "System Serial Number", "INVALID", "123456789", "....",
        "xxxxx",
        "FFFFFFFF", "111111", "Not Applicable", "unknown", " - ", "0x00000000",
    ],
)  # fmt: skip
def test_junk(serial):
    assert is_junk(serial)


@pytest.mark.parametrize(
    "serial", ["S-1", "10000000ab12cd34", "A1", "KL-0001", "00000000ab12cd34", "5", "box-x", "雲-1"]
)
def test_what_is_none(serial):
    assert not is_junk(serial)


def test_two_boxes_of_a_junk_serial_are_two_devices(daemon, alice):
    results = daemon.ask_all(
        named(issue(alice), serial="Default string"), named(issue(alice), serial="Default string", **OTHER)
    )
    assert [result["ok"] for result in results] == [True, True]
    devices = [device_of(result) for result in results]
    assert devices[0].pk != devices[1].pk
    assert [(each.serial, each.claimed_serial) for each in devices] == [(None, "Default string")] * 2
    for result, fields in zip(results, ({}, OTHER), strict=True):
        again = daemon.ask_all(named(result["session_token"], serial="Default string", **fields))[0]
        assert again["device_id"] == result["device_id"]


def test_a_junk_serial_cannot_be_registered(alice_api):
    answer = alice_api("POST", "/api/devices", {"serial": "To be filled by O.E.M."})
    assert (answer.status, answer.code, list(answer.json["error"]["details"])) == (400, "VALIDATION_ERROR", ["serial"])


def test_nobody_is_asked_for_a_token_that_is_over(daemon, alice, first, answer):
    asked = answer(False)
    token = issue(alice, "second")
    PairingToken.objects.filter(token_hash=hash_token(token)).update(expires_at=timezone.now())
    assert daemon.ask_all(named(token, serial="S-1", **OTHER))[0]["code"] == "TOKEN_EXPIRED"
    assert asked == []


# --- one serial on two boxes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("verdict", "fields"),
    [(True, {}), (True, {"instance": ""}), (None, {}), (daemons.DaemonUnavailable("away"), {})],
    ids=["answers", "answers, unnamed", "an older daemon", "daemon away"],
)
def test_a_box_of_a_serial_whose_device_is_there_becomes_a_device_of_its_own(
    daemon, alice, first, answer, verdict, fields
):
    answer(verdict)
    second = pair(daemon, alice, **fields)
    assert second["ok"] is True
    one, other = device_of(first), device_of(second)
    assert (one.serial, other.serial, other.claimed_serial) == ("S-1", None, "S-1")
    assert one.possible_twin
    assert other.possible_twin
    assert daemon.ask_all(named(first["session_token"], serial="S-1"))[0]["device_id"] == str(one.pk), (
        "nothing is revoked"
    )
    (mine,), (theirs,) = events(one, "possible_twin"), events(other, "possible_twin")
    assert mine.detail == {
        "serial": "S-1", "twin": str(other.pk), "twin_name": "second", "twin_address": OTHER["address"],
    }  # fmt: skip
    assert (mine.address, theirs.detail["twin"], theirs.detail["twin_address"]) == (
        "192.0.2.7",
        str(one.pk),
        "192.0.2.7",
    )
    again = daemon.ask_all(named(second["session_token"], serial="S-1", **OTHER))[0]
    assert again["device_id"] == second["device_id"]
    assert len(events(other, "possible_twin")) == 1, "told once"


def test_the_owner_dismisses_the_mark_until_there_is_a_new_finding(daemon, alice, first, answer, alice_api, bob_api):
    answer(True)
    second = pair(daemon, alice)
    one, other = (f"/api/devices/{each['device_id']}" for each in (first, second))
    assert bob_api("PATCH", one, {"possible_twin": False}).status == 404
    for wrong in (True, "false", None, 0):
        assert alice_api("PATCH", one, {"possible_twin": wrong}).status == 400
    assert alice_api("GET", one).data["possible_twin"] is True
    assert alice_api("PATCH", one, {"possible_twin": False}).data["possible_twin"] is False
    assert alice_api("GET", other).data["possible_twin"] is False, "it was of both"
    assert [len(events(device_of(each), "twin_dismissed")) for each in (first, second)] == [1, 1]
    assert daemon.ask_all(named(second["session_token"], serial="S-1", **OTHER))[0]["ok"]
    assert alice_api("GET", other).data["possible_twin"] is False, "the same finding again is none"
    assert alice_api("PATCH", one, {"possible_twin": False}).status == 200
    assert len(events(device_of(first), "twin_dismissed")) == 1
    third = pair(daemon, alice, instance="box-3")
    shown = [alice_api("GET", f"/api/devices/{each['device_id']}").data for each in (first, second, third)]
    assert [each["possible_twin"] for each in shown] == [True, False, True], "a third box is a new one"


@pytest.mark.parametrize(
    ("verdict", "fields"),
    [(False, {}), (False, {"instance": ""}), (None, {"instance": ""}), (True, {"instance": "box-1"})],
    ids=["dead", "dead, unnamed", "unnamed, an older daemon", "the same agent"],
)
def test_a_reinstalled_box_is_no_twin_of_its_own_tunnel(daemon, alice, first, answer, verdict, fields):
    answer(verdict)
    second = pair(daemon, alice, **fields)
    assert second["device_id"] == first["device_id"]
    assert not device_of(first).possible_twin
    assert daemon.ask(first["session_token"])["code"] == "TOKEN_REVOKED"


def test_one_that_is_offline_is_not_asked(daemon, alice, answer):
    ask = named(issue(alice), serial="S-1")
    first = daemon.ask_all(ask)[0]
    registry.remove([(first["device_id"], ask["session"])])
    asked = answer(True)
    assert pair(daemon, alice)["device_id"] == first["device_id"]
    assert asked == []


def test_two_new_boxes_of_a_serial_in_one_call(daemon, alice):
    results = daemon.ask_all(named(issue(alice), serial="S-1"), named(issue(alice), serial="S-1", **OTHER))
    assert [result["ok"] for result in results] == [True, True]
    assert results[0]["device_id"] != results[1]["device_id"]
    assert all(device_of(result).possible_twin for result in results)


def test_of_another_owner_it_is_nobodys_business(daemon, alice, bob, first, answer):
    asked = answer(True)
    second = daemon.ask_all(named(issue(bob), serial="S-1", **OTHER))[0]
    assert (device_of(second).serial, asked) == ("S-1", [])
    assert not device_of(first).possible_twin


def test_the_owner_sees_both(daemon, alice, alice_api, bob_api, first, answer):
    answer(True)
    second = pair(daemon, alice)
    listed = {each["id"]: each for each in alice_api("GET", "/api/devices").data}
    assert [listed[each["device_id"]]["possible_twin"] for each in (first, second)] == [True, True]
    assert listed[second["device_id"]]["claimed_serial"] == "S-1"
    told = alice_api("GET", f"/api/devices/{first['device_id']}/events").data
    assert [each["detail"]["twin_address"] for each in told if each["action"] == "possible_twin"] == [OTHER["address"]]
    assert bob_api("GET", f"/api/devices/{second['device_id']}").status == 404


def test_once_one_of_them_is_unpaired_the_other_is_no_twin_and_takes_the_serial(daemon, alice, first, answer):
    answer(True)
    second = pair(daemon, alice)
    services.unpair_device(actor=ACTOR, owner_id=alice.pk, device_id=uuid.UUID(first["device_id"]), now=timezone.now())
    assert not device_of(second).possible_twin
    daemon.ask_all(named(second["session_token"], serial="S-1", **OTHER))
    device = device_of(second)
    assert (device.serial, device.claimed_serial) == ("S-1", "")


def test_a_device_that_says_the_serial_of_another_later_comes_in_all_the_same(daemon, alice, first):
    own = daemon.ask_all(named(issue(alice), serial="S-2", **OTHER))[0]
    again = daemon.ask_all(named(own["session_token"], serial="S-1", **OTHER))[0]
    assert (again["ok"], again["device_id"]) == (True, own["device_id"])
    device = device_of(own)
    assert (device.serial, device.claimed_serial, device.possible_twin) == ("S-2", "S-1", True)


# --- one credential on two boxes --------------------------------------------------------------------------------------
HERE, THERE = "192.0.2.7", "198.51.100.8"


def take_turns(daemon: Daemon, token: str, times: int, **said: object) -> None:
    """Two agents with one credential take each other over, in one daemon."""
    ask = named(token, address=HERE)
    held = daemon.ask_all(ask)[0]
    for turn in range(times):
        old, old_address, admitted = ask["session"], ask["address"], held
        ask = named(token, address=THERE if turn % 2 == 0 else HERE)
        held = daemon.ask_all(ask)[0]
        daemon.tell(event("disconnected", admitted, old, reason="replaced", code=4409, address=old_address, **said))


def test_a_copied_card_is_shown_with_both_addresses(daemon, alice, alice_api, first):
    take_turns(daemon, first["session_token"], 3, answered=True)
    device = device_of(first)
    (told,) = events(device, "cloned")
    assert {told.detail["address"], told.detail["other_address"]} == {HERE, THERE}
    replaced = events(device, "replaced")
    assert len(replaced) == 3
    assert told.detail["replaced_session"] in {each.detail["session"] for each in replaced}
    assert alice_api("GET", f"/api/devices/{device.pk}").data["cloned"] is True
    assert alice_api("GET", "/api/devices").data[0]["cloned"] is True
    take_turns(daemon, first["session_token"], 2, answered=True)
    assert len(events(device, "cloned")) == 1, "one word for all of it"


def test_a_daemon_of_the_former_release_is_taken_at_its_word(daemon, first):
    take_turns(daemon, first["session_token"], 3)
    assert device_of(first).cloned_at is not None


def test_a_box_whose_line_breaks_is_no_clone(daemon, first):
    take_turns(daemon, first["session_token"], 6, answered=False)
    assert device_of(first).cloned_at is None


def test_so_is_one_that_is_taken_over_now_and_then(daemon, first):
    take_turns(daemon, first["session_token"], 2, answered=True)
    assert device_of(first).cloned_at is None


def test_it_is_over_when_it_is_paired_anew_and_forgotten_after_a_day(daemon, alice, alice_api, first):
    take_turns(daemon, first["session_token"], 3, answered=True)
    Device.objects.update(cloned_at=timezone.now() - dt.timedelta(hours=25))
    assert alice_api("GET", f"/api/devices/{first['device_id']}").data["cloned"] is False
    Device.objects.update(cloned_at=timezone.now())
    daemon.ask_all(named(issue(alice), serial="S-1"))
    assert device_of(first).cloned_at is None
