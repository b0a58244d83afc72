"""Which box a call is for, and what a scan leaves behind."""

import datetime as dt
import uuid

import pytest
from django.utils import timezone

from apps.common.errors import DomainError
from apps.devices import selectors, services
from apps.devices.models import Accelerator, Device, DeviceStatus
from apps.tunnels import registry
from tests.apps.internal.kit import device_of, issue


def choose(user, header=None, query=None):
    return selectors.choose_device(user.pk, header=header, query=query)


def refused(user, header=None, query=None):
    with pytest.raises(DomainError) as caught:
        choose(user, header, query)
    return caught.value


@pytest.fixture
def boxes(daemon, alice):
    """Two that are online."""
    return [daemon.ask(issue(alice), serial=f"S-{n}")["device_id"] for n in range(2)]


def test_with_none_online(alice):
    Device.objects.create(owner=alice, name="off")
    error = refused(alice)
    assert (error.code, error.status) == ("TUNNEL_DISCONNECTED", 503)
    assert error.retry_after


def test_with_one_online_none_need_be_named(daemon, alice, bob):
    Device.objects.create(owner=alice, name="off")
    daemon.ask(issue(bob))
    admitted = daemon.ask(issue(alice))
    target = choose(alice)
    assert str(target.device.id) == target.entry.device_id == admitted["device_id"]
    assert target.entry.node_url == daemon.url


def test_with_several_one_must_be_named(boxes, alice):
    error = refused(alice)
    assert error.code == "AMBIGUOUS_DEVICE"
    assert error.details["devices"] == sorted(boxes)
    names = {str(device.id): device.name for device in Device.objects.all()}
    assert error.details["names"] == [names[device] for device in sorted(boxes)]
    assert str(choose(alice, query=boxes[1]).device.id) == boxes[1]
    assert str(choose(alice, header=boxes[0]).device.id) == boxes[0]
    assert str(choose(alice, header=boxes[0], query=boxes[1]).device.id) == boxes[0]


@pytest.mark.parametrize("value", ["all", "0", "", "x" * 36, "{" + "0" * 34 + "}"])
def test_a_query_that_is_no_uuid_belongs_to_the_box(daemon, alice, value):
    admitted = daemon.ask(issue(alice))
    assert str(choose(alice, query=value).device.id) == admitted["device_id"]


@pytest.mark.parametrize("value", ["", "x", "all", "0" * 32, "0198c0de-0000-7000-8000-00000000abcd"])
def test_a_header_that_names_no_device(daemon, alice, value):
    daemon.ask(issue(alice))
    assert refused(alice, header=value).code == "NOT_FOUND"


def test_another_users_device_does_not_exist(boxes, bob):
    assert refused(bob, header=boxes[0]).code == "NOT_FOUND"
    assert refused(bob, query=boxes[0]).code == "NOT_FOUND"


def test_a_named_one_that_is_offline(boxes, alice):
    registry.end({boxes[0]: 1})
    assert refused(alice, header=boxes[0]).code == "TUNNEL_DISCONNECTED"
    assert str(choose(alice).device.id) == boxes[1]


def test_an_unpaired_one_is_not_chosen_though_its_tunnel_still_stands(boxes, alice):
    Device.objects.filter(id=boxes[0]).update(deleted_at=timezone.now())
    assert str(choose(alice).device.id) == boxes[1]
    assert refused(alice, header=boxes[0]).code == "NOT_FOUND"


# --- scans ------------------------------------------------------------------------------------------------------------
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
def device(alice):
    return Device.objects.create(owner=alice, name="box")


def item(serial, **fields):
    return {"serial": serial, "chip": "KL720", "usb_id": "3231:0720", "firmware": "1", "status": "ready", **fields}


@pytest.mark.parametrize("wrap", [lambda x: {"devices": x}, lambda x: {"data": {"devices": x}}, lambda x: {"data": x}])
def test_what_a_scan_found_is_stored_and_updated(device, wrap):
    first = services.store_scan(device, wrap([item("B"), item("A")]), NOW)
    assert [found.serial for found in first] == ["A", "B"]
    later = NOW + dt.timedelta(minutes=1)
    services.store_scan(device, wrap([item("A", status="busy", firmware="2")]), later)
    a, b = Accelerator.objects.order_by("serial")
    assert (a.firmware, a.status, a.seen_at, a.created_at) == ("2", "busy", later, first[0].created_at)
    assert (b.firmware, b.seen_at) == ("1", NOW)


@pytest.mark.parametrize(
    "statuses,expected",
    [
        (["ready", "ready"], DeviceStatus.READY),
        (["ready", "busy"], DeviceStatus.BUSY),
        (["busy", "Error"], DeviceStatus.ERROR),
        ([""], DeviceStatus.READY),
        ([], DeviceStatus.UNKNOWN),
    ],
)
def test_the_devices_status_follows_from_what_was_found(device, statuses, expected):
    Device.objects.update(device_status=DeviceStatus.BUSY)
    services.store_scan(device, {"devices": [item(str(n), status=s) for n, s in enumerate(statuses)]}, NOW)
    device.refresh_from_db()
    assert device.device_status == expected


@pytest.mark.parametrize(
    "payload",
    [None, 1, "x", [], {}, {"devices": None}, {"devices": {}}, {"data": {"data": []}}, {"devices": [1, None, "x", {}]},
     {"devices": [item(""), item(None), item(7), item("\0")]}],
)  # fmt: skip
def test_what_is_no_scan_stores_nothing(device, payload):
    assert services.store_scan(device, payload, NOW) == []
    assert Accelerator.objects.count() == 0


def test_a_box_is_not_trusted(device):
    long = item("s" * 500, chip="c" * 500, usb_id={"x": 1}, firmware="a\0b\nc", status=["x"])
    (found,) = services.store_scan(device, {"devices": [long, long]}, NOW)
    assert (len(found.serial), len(found.chip), found.usb_id, found.firmware, found.status) == (128, 64, "", "abc", "")


def test_however_often_a_box_invents_accelerators_they_stay_few(device, monkeypatch):
    monkeypatch.setattr(services, "MAX_ACCELERATORS", 10)
    for turn in range(3):
        payload = {"devices": [item(f"{turn}-{n:03}") for n in range(50)]}
        assert len(services.store_scan(device, payload, NOW + dt.timedelta(seconds=turn))) == 10
    assert set(Accelerator.objects.values_list("serial", flat=True)) == {f"2-{n:03}" for n in range(10)}


def test_a_device_that_was_unpaired_meanwhile_stores_nothing(daemon, alice):
    device = device_of(daemon.ask(issue(alice)))
    Device.objects.update(deleted_at=timezone.now())
    assert services.store_scan(device, {"devices": [item("A")]}, NOW) == []
    assert Accelerator.objects.count() == 0


@pytest.mark.parametrize("field", ["created_at", "updated_at", "name"])
@pytest.mark.parametrize("sign", ["", "-"])
def test_the_first_of_a_list_are_what_the_orm_brings(alice, bob, sign, field):
    kept = [{}, {"a": [1.5, None, 2**70, "中"]}, {"b": {}}]
    for number in range(6):
        Device.objects.create(owner=alice, name=f"n{number % 4}", serial=f"S-{number}" * (number > 0) or None)
    for device, metadata in zip(Device.objects.filter(owner=alice), kept, strict=False):
        Device.objects.filter(pk=device.pk).update(metadata=metadata, last_seen_at=timezone.now())
    Device.objects.create(owner=bob, name="another's")
    Device.objects.create(owner=alice, name="unpaired", deleted_at=timezone.now())
    order = (sign + field, sign + "id")
    by_orm = selectors.devices_of(alice.pk).order_by(*order).values_list(*selectors.DEVICE_COLUMNS)
    assert len(by_orm) == 6
    for count in (4, 51, 4):
        found = selectors.first_devices(alice.pk, order, count)
        assert [(uuid.UUID(str(row.id)), *row[1:]) for row in found] == list(by_orm[:count])
        assert all(type(row.id) is str for row in found)
    assert [row.name for row in selectors.first_devices(bob.pk, order, 51)] == ["another's"]
