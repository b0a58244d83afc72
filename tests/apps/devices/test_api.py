"""The device routes: who may, what they take, what they answer."""

import datetime as dt
import json

import pytest
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.devices.models import Accelerator, Device, DeviceEvent, LinkStatus
from apps.pairing.models import PairingStatus, PairingToken, SessionToken
from apps.tunnels import registry
from tests.apps.internal.kit import device_of, event, issue, named, row

FIELDS = {
    "id", "name", "serial", "chip", "firmware", "agent_version", "address", "link_status", "device_status",
    "connected_at", "last_seen_at", "claimed_serial", "possible_twin", "cloned", "metadata", "created_at", "updated_at",
    "local_address", "local_listening",
}  # fmt: skip


def make(owner, serial=None, **fields):
    return Device.objects.create(owner=owner, name=fields.pop("name", serial or "box"), serial=serial, **fields)


@pytest.fixture
def device(alice):
    return make(alice, "S-1", name="Hall", chip="KL720")


def routes(device_id):
    return [
        ("GET", f"/api/devices/{device_id}", None),
        ("PATCH", f"/api/devices/{device_id}", {"name": "x"}),
        ("DELETE", f"/api/devices/{device_id}", None),
        ("GET", f"/api/devices/{device_id}/accelerators", None),
        ("GET", f"/api/devices/{device_id}/events", None),
    ]


# --- who may ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", range(5))
def test_whose_device_it_is(device, for_nobody_else, alice_api, index):
    method, path, body = routes(device.id)[index]
    for_nobody_else(method, path, body)
    device.refresh_from_db()
    assert (device.name, device.deleted_at) == ("Hall", None)
    assert alice_api(method, path, body).status == 200


@pytest.mark.parametrize("path", ["/api/devices", "/api/pairing/status"])
def test_lists_show_own_devices_alone(device, alice_api, bob_api, anonymous, path):
    assert anonymous("GET", path).code == "UNAUTHENTICATED"
    assert str(device.id) in str(alice_api("GET", path).json)
    assert str(device.id) not in str(bob_api("GET", path).json)


@pytest.mark.parametrize(
    "text", ["x", "0", "0198c0de-0000-7000-8000-00000000abcd", "0198c000-0000-7000-8000-00000000000g", "%00"]
)
def test_what_names_no_device(alice_api, text):
    for method, path, body in routes(text):
        assert alice_api(method, path, body).code == "NOT_FOUND", path


def test_an_unpaired_device_is_gone(device, alice_api):
    assert alice_api("DELETE", f"/api/devices/{device.id}").json == {"success": True, "data": None}
    for method, path, body in routes(device.id):
        assert alice_api(method, path, body).code == "NOT_FOUND", path
    assert alice_api("GET", "/api/devices").data == []


@pytest.mark.parametrize(
    "method,path",
    [
        ("PUT", "/api/devices"),
        ("POST", "/api/devices/{id}"),
        ("POST", "/api/devices/{id}/events"),
        ("POST", "/api/pairing/status"),
    ],
)
def test_other_methods(device, alice_api, method, path):
    answer = alice_api(method, path.format(id=device.id))
    assert (answer.status, answer.code) == (405, "METHOD_NOT_ALLOWED")


# --- the list ---------------------------------------------------------------------------------------------------------
def test_what_a_device_looks_like(device, alice_api):
    (shown,) = alice_api("GET", "/api/devices").data
    assert set(shown) == FIELDS
    assert shown["id"] == str(device.id)
    assert (shown["link_status"], shown["device_status"]) == ("offline", "unknown")
    assert alice_api("GET", f"/api/devices/{device.id}").data == shown


def test_the_link_is_the_registrys_word_at_once(daemon, alice, alice_api):
    admitted = daemon.ask(issue(alice))
    (shown,) = alice_api("GET", "/api/devices").data
    assert device_of(admitted).link_status == LinkStatus.OFFLINE  # the table follows
    assert shown["link_status"] == "online"
    assert shown["connected_at"] is not None
    registry.end({admitted["device_id"]: 1})
    assert alice_api("GET", f"/api/devices/{admitted['device_id']}").data["link_status"] == "offline"


def test_filters(daemon, alice, alice_api):
    online = daemon.ask(issue(alice, name="Roof_cam"), serial="A-100", chip="KL520")["device_id"]
    hall = str(make(alice, "B-200", name="Hall", chip="KL720").id)
    bare = make(alice, "C-300", name="Cellar")
    Accelerator.objects.create(device=bare, serial="X", chip="KL520", seen_at=timezone.now())

    def found(query):
        return {shown["id"] for shown in alice_api("GET", f"/api/devices?{query}").data}

    assert found("status=online") == {online}
    assert found("status=offline") == {hall, str(bare.id)}
    assert found("link_status=online") == {online}
    assert found("link_status=offline&status=online") == {hall, str(bare.id)}
    assert found("chip=KL720") == {hall}
    assert found("chip=KL520") == {online, str(bare.id)}
    assert found("chip=KL") == set()
    assert found("search=hall") == {hall}
    assert found("search=-300") == {str(bare.id)}
    assert found("search=_") == {online}
    assert found("search=%25") == set()
    assert found("search=") == {online, hall, str(bare.id)}
    assert found("status=offline&search=HALL&chip=KL720") == {hall}


@pytest.mark.parametrize(
    "query,field",
    [
        ("status=asleep", "status"),
        ("status=", "status"),
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("ordering=owner", "ordering"),
        ("cursor=x", "cursor"),
        ("cluster=1", "cluster"),
        ("page=2", "page"),
        ("search=" + "x" * 201, "search"),
        ("chip=" + "x" * 65, "chip"),
        ("status=online&status=offline", "status"),
        ("search=%00", "search"),
    ],
)
def test_a_bad_query(alice_api, query, field):
    answer = alice_api("GET", f"/api/devices?{query}")
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert field in answer.error["details"]


@pytest.mark.parametrize("ordering", ["created_at", "-created_at", "name", "-name", "updated_at", "-updated_at"])
def test_pages(alice, alice_api, ordering):
    for index in range(7):
        make(alice, f"S-{index}", name=f"box {index % 3}")
    seen, path = [], f"/api/devices?limit=3&ordering={ordering}"
    while path:
        answer = alice_api("GET", path)
        assert answer.json["meta"]["total"] == 7
        seen += answer.data
        path = answer.json["meta"]["next"]
    names = [shown[ordering.lstrip("-")] for shown in seen]
    assert len({shown["id"] for shown in seen}) == 7
    assert names == sorted(names, reverse=ordering.startswith("-"))


def test_a_list_of_fifty_costs_four_queries(daemon, alice, alice_api, django_assert_max_num_queries):
    daemon.ask_all(*[named(issue(alice), f"b{index}") for index in range(60)])
    with django_assert_max_num_queries(4):
        shown = alice_api("GET", "/api/devices").data
    assert len(shown) == 50
    assert {one["link_status"] for one in shown} == {"online"}


# --- registering ------------------------------------------------------------------------------------------------------
def test_registering(alice, alice_api):
    body = {"serial": " S-1 ", "name": "Hall", "chip": "KL720", "metadata": {"floor": 2, "text": r"\u0000"}}
    answer = alice_api("POST", "/api/devices", body)
    assert answer.status == 201
    assert set(answer.data) == FIELDS
    assert (answer.data["serial"], answer.data["name"], answer.data["metadata"]) == ("S-1", "Hall", body["metadata"])
    assert Device.objects.get().owner == alice
    assert AuditEvent.objects.filter(action="device.register", actor=str(alice.pk)).count() == 1


def test_one_without_a_name_is_called_by_its_serial(alice_api):
    assert alice_api("POST", "/api/devices", {"serial": "S-1"}).data["name"] == "S-1"


def test_a_serial_is_taken_once_by_each_owner(device, alice_api, bob_api):
    answer = alice_api("POST", "/api/devices", {"serial": "S-1"})
    assert (answer.status, answer.code) == (409, "SERIAL_TAKEN")
    assert bob_api("POST", "/api/devices", {"serial": "S-1"}).status == 201
    assert alice_api("DELETE", f"/api/devices/{device.id}").status == 200
    assert alice_api("POST", "/api/devices", {"serial": "S-1"}).status == 201


@pytest.mark.parametrize(
    "body,field",
    [
        ({}, "serial"),
        ({"serial": ""}, "serial"),
        ({"serial": None}, "serial"),
        ({"serial": 7}, "serial"),
        ({"serial": "x" * 129}, "serial"),
        ({"serial": "a\tb"}, "serial"),
        ({"serial": "a\0b"}, "serial"),
        ({"serial": "S", "name": "x" * 201}, "name"),
        ({"serial": "S", "name": 1}, "name"),
        ({"serial": "S", "chip": "x" * 65}, "chip"),
        ({"serial": "S", "metadata": []}, "metadata"),
        ({"serial": "S", "metadata": "x"}, "metadata"),
        ({"serial": "S", "metadata": {"x": "y" * 17_000}}, "metadata"),
        ({"serial": "S", "metadata": {"x": "\0"}}, "metadata"),
        ({"serial": "S", "metadata": {"x": [{"\0": 1}]}}, "metadata"),
        ({"serial": "S", "metadata": {"x": json.loads("[" * 300 + "]" * 300)}}, "metadata"),
        ([], "non_field_errors"),
    ],
)
def test_a_bad_registration(alice_api, body, field):
    answer = alice_api("POST", "/api/devices", body)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR"), answer.json
    assert list(answer.error["details"]) == [field]
    assert Device.objects.count() == 0


@pytest.mark.parametrize(
    "body,kind,expected",
    [
        (b"{", "application/json", "BAD_REQUEST"),
        (b"serial=x", "application/x-www-form-urlencoded", "UNSUPPORTED_MEDIA_TYPE"),
    ],
)
def test_a_body_that_is_no_json(alice_api, body, kind, expected):
    assert alice_api("POST", "/api/devices", body, content_type=kind).code == expected


# --- changing ---------------------------------------------------------------------------------------------------------
def test_renaming(device, alice_api):
    answer = alice_api("PATCH", f"/api/devices/{device.id}", {"name": "Roof", "metadata": {"a": [1]}})
    assert (answer.data["name"], answer.data["metadata"]) == ("Roof", {"a": [1]})
    device.refresh_from_db()
    assert device.name == "Roof"
    assert device.serial == "S-1"


def test_changing_nothing(device, alice_api):
    assert alice_api("PATCH", f"/api/devices/{device.id}", {}).data["name"] == "Hall"
    assert AuditEvent.objects.filter(action="device.change").count() == 0


@pytest.mark.parametrize("body", [{"name": ""}, {"name": None}, {"name": 3}, {"name": "x" * 201}, {"metadata": 1}, []])
def test_a_bad_change(device, alice_api, body):
    assert alice_api("PATCH", f"/api/devices/{device.id}", body).code == "VALIDATION_ERROR"
    device.refresh_from_db()
    assert device.name == "Hall"


def test_what_the_box_says_cannot_be_changed_here(device, alice_api):
    alice_api("PATCH", f"/api/devices/{device.id}", {"name": "x", "serial": "T", "link_status": "online", "epoch": 9})
    device.refresh_from_db()
    assert (device.serial, device.link_status, device.epoch) == ("S-1", "offline", 0)


# --- unpairing --------------------------------------------------------------------------------------------------------
def test_unpairing_ends_everything_of_the_device(daemon, alice, alice_api, django_capture_on_commit_callbacks):
    secret = issue(alice)
    ask = named(secret, serial="S-1")
    admitted = daemon.ask_all(ask)[0]
    with django_capture_on_commit_callbacks(execute=True):
        assert alice_api("DELETE", f"/api/devices/{admitted['device_id']}").status == 200
    device = device_of(admitted)
    assert device.deleted_at is not None
    assert row(secret).status == PairingStatus.REVOKED
    assert SessionToken.objects.get().revoke_reason == "unpaired"
    assert DeviceEvent.objects.first().action == "unpaired"
    assert AuditEvent.objects.filter(action="device.unpair", object_id=str(device.id)).count() == 1
    assert daemon.ask(admitted["session_token"])["code"] == "TOKEN_REVOKED"
    assert registry.lookup([admitted["device_id"]]) == {}
    assert daemon.beat(count=1)["close"] == [{"session": ask["session"], "code": 4401, "reason": "revoked"}]


def test_unpairing_is_all_or_nothing(daemon, alice, alice_api, monkeypatch):
    admitted = daemon.ask(issue(alice))

    def fail(*args, **kwargs):
        raise RuntimeError("full disk")

    monkeypatch.setattr("apps.devices.services.revoke_of_devices", fail)
    assert alice_api("DELETE", f"/api/devices/{admitted['device_id']}").code == "INTERNAL_ERROR"
    assert device_of(admitted).deleted_at is None
    assert PairingToken.objects.get().status == PairingStatus.PAIRED
    assert DeviceEvent.objects.filter(action="unpaired").count() == 0
    assert registry.lookup([admitted["device_id"]]) != {}


# --- accelerators and events ------------------------------------------------------------------------------------------
def test_accelerators(device, alice_api):
    Accelerator.objects.create(device=device, serial="B", chip="KL720", seen_at=timezone.now())
    Accelerator.objects.create(device=device, serial="A", chip="KL520", usb_id="1-1", seen_at=timezone.now())
    answer = alice_api("GET", f"/api/devices/{device.id}/accelerators")
    assert [shown["serial"] for shown in answer.data] == ["A", "B"]
    assert answer.json["meta"]["total"] == 2
    assert set(answer.data[0]) == {"id", "serial", "chip", "usb_id", "firmware", "status", "seen_at", "created_at"}


def test_events_tell_the_devices_history(daemon, alice, alice_api):
    ask = named(issue(alice))
    admitted = daemon.ask_all(ask)[0]
    daemon.tell(event("connected", admitted, ask["session"]))
    daemon.tell(event("disconnected", admitted, ask["session"], reason="liveness", code=4408))
    answer = alice_api("GET", f"/api/devices/{admitted['device_id']}/events")
    assert [shown["action"] for shown in answer.data] == ["disconnected", "connected", "paired"]
    assert answer.data[0]["detail"]["reason"] == "liveness"
    assert set(answer.data[0]) == {"id", "at", "action", "actor", "address", "request_id", "detail"}
    first = alice_api("GET", f"/api/devices/{admitted['device_id']}/events?limit=1&ordering=at")
    assert first.data[0]["action"] == "paired"
    assert first.json["meta"]["next"] is not None


@pytest.mark.parametrize("path", ["accelerators?ordering=chip", "events?ordering=created_at", "events?x=1"])
def test_a_bad_query_of_a_part(device, alice_api, path):
    assert alice_api("GET", f"/api/devices/{device.id}/{path}").code == "VALIDATION_ERROR"


# --- pairing status ---------------------------------------------------------------------------------------------------
def test_pairing_status(daemon, alice, alice_api):
    assert alice_api("GET", "/api/pairing/status").data == {"connected": False, "devices": []}
    offline = make(alice, "S-9", created_at=timezone.now() - dt.timedelta(days=1))
    admitted = daemon.ask(issue(alice))
    data = alice_api("GET", "/api/pairing/status").data
    assert data["connected"] is True
    by_id = {shown["device_id"]: shown for shown in data["devices"]}
    assert by_id[admitted["device_id"]]["connected"] is True
    assert by_id[admitted["device_id"]]["connected_at"] is not None
    assert by_id[str(offline.id)]["connected"] is False
    assert by_id[str(offline.id)]["connected_at"] is None
    registry.end({admitted["device_id"]: 1})
    assert alice_api("GET", "/api/pairing/status").data["connected"] is False


def test_pairing_status_takes_no_query(alice_api):
    assert alice_api("GET", "/api/pairing/status?x=1").code == "VALIDATION_ERROR"
