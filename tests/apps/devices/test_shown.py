"""What lists show of a device is, byte for byte, what its serializer would make of it."""

import datetime as dt
import uuid
from typing import Any

import pytest
from django.test import RequestFactory
from django.utils import timezone
from rest_framework.request import Request

from apps.accounts.models import User
from apps.accounts.selectors import active_user
from apps.common.api.pagination import paginate
from apps.common.api.parsers import EnvelopeRenderer
from apps.devices import selectors
from apps.devices.api.serializers import DeviceSerializer, shown
from apps.devices.api.views import DeviceQuery
from apps.devices.models import Device, DeviceStatus
from apps.tunnels.registry import Entry

SINCE = "2030-01-02T03:04:05.123456+00:00"


def ask() -> Request:
    return Request(RequestFactory().get("/rows"))


def entry(device: Device, connected_at: str) -> Entry:
    return Entry(str(device.id), "n", "http://n", "s", 1, str(device.owner_id), connected_at, "192.0.2.1", "a/1", ())


def devices(owner: User) -> list[Device]:
    """One of each kind: nothing known, everything known, texts and numbers that JSON writes in more than one way."""
    moment = dt.datetime(2030, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    Device.objects.create(owner=owner, name="bare")
    Device.objects.create(
        owner=owner,
        name='b\u00f8x "\u2028</b>\t\U0001f600',
        serial="S-1",
        chip="KL720",
        firmware="1.2",
        agent_version="a/1",
        address="192.0.2.1",
        device_status=DeviceStatus.BUSY,
        last_seen_at=moment.replace(microsecond=120),
        metadata={"\u00fc": [1.5, 1e20, 10**30, None, True], "n": {"\u2029": ""}},
    )
    Device.objects.update(created_at=moment, updated_at=moment.replace(microsecond=500_000))
    return list(Device.objects.order_by("id"))


def by_serializer(device: Device, since: str | None) -> bytes:
    device.link_status = "online" if since else "offline"
    device.connected_at = dt.datetime.fromisoformat(since) if since else None  # type: ignore[attr-defined]  # as a source
    rendered: bytes = EnvelopeRenderer().render(DeviceSerializer(device).data)
    return rendered


@pytest.mark.parametrize("since", [None, SINCE, "2030-01-02T03:04:05Z"])
def test_it_is_what_the_serializer_would_make(alice: User, since: str | None) -> None:
    for device in devices(alice):
        made = shown(device, entry(device, since) if since else None)
        assert EnvelopeRenderer().render(made) == by_serializer(device, since)


def test_a_row_shows_what_the_object_does(alice: User) -> None:
    whole = [shown(device, None) for device in devices(alice)]
    rows: Any = selectors.devices_of(alice.pk).order_by("id").values_list(*selectors.DEVICE_COLUMNS, named=True)
    assert [shown(row, None) for row in rows] == whole


def test_a_device_just_made_shows_like_one_just_read(alice: User) -> None:
    made = Device.objects.create(owner=alice, name="new", last_seen_at=timezone.now())
    assert shown(made, None) == shown(Device.objects.get(), None)
    assert type(shown(made, None)["device_status"]) is str


@pytest.mark.parametrize(("limit", "queries"), [(2, 1), (3, 1), (1, 2)])
def test_a_first_page_that_holds_all_is_not_counted(
    alice: User, django_assert_num_queries: Any, limit: int, queries: int
) -> None:
    devices(alice)
    with django_assert_num_queries(queries):
        found, meta = paginate(ask(), Device.objects.all(), limit=limit, ordering="name", cursor=None)
    assert (len(found), meta["total"]) == (min(limit, 2), 2)


def test_a_last_page_tells_the_total_of_all(alice: User) -> None:
    devices(alice)
    _, meta = paginate(ask(), Device.objects.all(), limit=1, ordering="name", cursor=None)
    cursor = meta["next"].rpartition("cursor=")[2]
    found, meta = paginate(ask(), Device.objects.all(), limit=5, ordering="name", cursor=cursor)
    assert (len(found), meta["total"], meta["next"]) == (1, 2, None)


def test_the_user_of_a_request_is_whole(alice: User, bob: User) -> None:
    found = active_user(alice.pk)
    read = User.objects.get(pk=alice.pk)
    assert found is not None
    fields = [field.attname for field in User._meta.concrete_fields]
    assert [getattr(found, name) for name in fields] == [getattr(read, name) for name in fields]
    assert not found.get_deferred_fields()
    found.name = "Alice again"
    found.save()  # an update, not a second row
    assert User.objects.get(pk=alice.pk).name == "Alice again"
    User.objects.filter(pk=bob.pk).update(is_active=False)
    assert active_user(bob.pk) is None
    assert active_user(uuid.UUID(int=7)) is None


def test_a_query_read_again_is_the_same_and_ones_own(alice_api: Any, bob_api: Any, alice: User) -> None:
    devices(alice)
    for _ in range(2):
        assert [len(api("GET", "/api/devices?limit=1").data) for api in (alice_api, bob_api)] == [1, 0]
        assert len(alice_api("GET", "/api/devices?limit=2").data) == 2
        for bad in ("limit=0", "limit=1&limit=1", "limit=1&foo=1"):
            assert alice_api("GET", f"/api/devices?{bad}").code == "VALIDATION_ERROR"
    one = DeviceQuery.read(Request(RequestFactory().get("/rows?limit=1")))
    one["limit"] = 200
    assert DeviceQuery.read(Request(RequestFactory().get("/rows?limit=1")))["limit"] == 1
