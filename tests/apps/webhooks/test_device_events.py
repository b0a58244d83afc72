"""What happens to devices, as webhooks are told of it."""

import json
import uuid

import pytest
from django.utils import timezone

from apps.devices import presence
from apps.devices.models import Device, LinkStatus
from apps.tunnels import registry
from apps.webhooks.models import Event, Webhook, WebhookDelivery
from tests.apps.internal.kit import Daemon, event, issue, named
from tests.apps.webhooks.kit import make


@pytest.fixture
def daemon(db):
    node = Daemon()
    node.beat()
    return node


@pytest.fixture
def webhook(alice):
    return make(alice, *Event.values)


@pytest.fixture
def box(daemon, alice, webhook):
    """An admitted agent of alice: (the answer, its session), and the webhook has been told so far."""
    ask = named(issue(alice, name="Shop"), "box")
    return daemon.ask_all(ask)[0], ask["session"]


def told():
    rows = WebhookDelivery.objects.order_by("created_at", "id")
    return [(row.event, json.loads(row.body)["data"]) for row in rows]


def base(serial=None):
    device = Device.objects.get()
    return {"device_id": str(device.id), "name": device.name, "serial": serial}


def test_pairing(daemon, box):
    assert told() == [("device.paired", {**base(), "how": "created"})]


def test_going_online_and_offline(daemon, box):
    daemon.tell(event("connected", *box))
    daemon.tell(event("disconnected", *box, reason="liveness", code=4408))
    assert told()[1:] == [("device.online", base()), ("device.offline", {**base(), "reason": "liveness"})]


def test_both_in_one_batch_and_the_batch_again(daemon, box):
    batch = [event("connected", *box), event("disconnected", *box, reason="closed")]
    daemon.tell(*batch)
    daemon.tell(*batch)
    assert [name for name, _ in told()] == ["device.paired", "device.online", "device.offline"]


def test_a_newer_connection_is_no_turn(daemon, box):
    daemon.tell(event("connected", *box))
    ask = named(box[0]["session_token"], "box")
    newer = daemon.ask_all(ask)[0]
    daemon.tell(event("disconnected", *box, reason="replaced"), event("connected", newer, ask["session"]))
    assert [name for name, _ in told()] == ["device.paired", "device.online"]


def test_the_devices_of_a_killed_daemon(daemon, box, monkeypatch):
    presence.follow_registry(now=timezone.now())
    assert Device.objects.get().link_status == LinkStatus.ONLINE
    registry.remove([(box[0]["device_id"], box[1])])
    monkeypatch.setattr(registry, "settled", lambda: True)
    presence.follow_registry(now=timezone.now())
    assert told()[1:] == [("device.online", base()), ("device.offline", {**base(), "reason": "lost"})]


def test_unpairing_and_no_word_after_it(daemon, box, alice_api):
    daemon.tell(event("connected", *box))
    assert alice_api("DELETE", f"/api/devices/{box[0]['device_id']}").status == 200
    daemon.tell(event("disconnected", *box, reason="revoked"))
    assert told()[1:] == [("device.online", base()), ("device.unpaired", base())]


@pytest.mark.parametrize("listening", [False, True])
def test_a_batch_costs_a_fixed_number_of_queries(daemon, alice, listening, django_assert_max_num_queries):
    asks = [named(issue(alice), f"b{index}") for index in range(30)]
    batch = [
        event("connected", answer, ask["session"]) for answer, ask in zip(daemon.ask_all(*asks), asks, strict=True)
    ]
    if listening:
        make(alice, "device.online")
    with django_assert_max_num_queries(10 if listening else 6):
        assert daemon.tell(*batch) == 30
    assert WebhookDelivery.objects.count() == (30 if listening else 0)


def test_a_webhook_of_another_is_told_nothing(daemon, alice, bob):
    Webhook.objects.all().delete()
    make(bob, *Event.values)
    ask = named(issue(alice))
    answer = daemon.ask_all(ask)[0]
    daemon.tell(event("connected", answer, ask["session"]))
    assert told() == []
    assert uuid.UUID(answer["device_id"])
