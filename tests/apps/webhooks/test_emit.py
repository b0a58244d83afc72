"""Events become deliveries and jobs in the transaction of the event."""

import json
import uuid

import pytest
from django.db import transaction
from django.utils import timezone

from apps.webhooks import services
from apps.webhooks.models import WebhookDelivery
from apps.webhooks.services import Happening
from tests.apps.webhooks.kit import jobs, make


def test_an_event_goes_to_who_listens(alice, bob):
    now = timezone.now()
    mine = make(alice, "device.online", "device.offline")
    make(alice, "device.offline")
    make(alice, "device.online", enabled=False)
    make(bob, "device.online")
    device = uuid.uuid4()
    assert services.emit(owner_id=alice.pk, event="device.online", data={"device_id": device}, now=now) == 1
    row = WebhookDelivery.objects.get()
    assert (row.webhook, row.event, row.status, row.attempts, row.next_attempt_at) == (
        mine, "device.online", "pending", 0, now,
    )  # fmt: skip
    body = json.loads(row.body)
    assert list(body) == ["id", "event", "created_at", "data"]
    assert body["id"] == str(row.event_id)
    assert body["created_at"].endswith("Z")
    assert body["data"] == {"device_id": str(device)}
    assert jobs() == [{"delivery_id": str(row.id), "attempt": 0}]


def test_two_that_listen_get_the_same_event(alice):
    make(alice, "device.paired")
    make(alice, "device.paired")
    assert services.emit(owner_id=alice.pk, event="device.paired", data={}, now=timezone.now()) == 2
    assert len({row.event_id for row in WebhookDelivery.objects.all()}) == 1


def test_an_event_that_is_rolled_back_tells_nobody(alice):
    make(alice, "device.paired")
    with transaction.atomic():
        assert services.emit(owner_id=alice.pk, event="device.paired", data={}, now=timezone.now()) == 1
        transaction.set_rollback(True)
    assert (WebhookDelivery.objects.count(), jobs()) == (0, [])


def test_a_disabled_user_is_told_nothing(alice):
    make(alice, "device.paired")
    alice.is_active = False
    alice.save()
    assert services.emit(owner_id=alice.pk, event="device.paired", data={}, now=timezone.now()) == 0


def test_an_unknown_event_is_a_fault_of_ours(alice):
    with pytest.raises(ValueError):
        services.emit(owner_id=alice.pk, event="device.exploded", data={}, now=timezone.now())


@pytest.mark.parametrize("count", [1, 500])
def test_many_cost_as_much_as_one(alice, bob, count, django_assert_num_queries):
    happenings = [Happening(bob.pk, "device.online", {"device_id": str(n)}) for n in range(count)]
    with django_assert_num_queries(1):
        assert services.emit_many(happenings, now=timezone.now()) == 0
    make(alice, "device.online")
    with django_assert_num_queries(5):  # the question, and two statements in a savepoint
        assert services.emit_many([Happening(alice.pk, "device.online", {})] * count, now=timezone.now()) == count
    with django_assert_num_queries(0):
        services.emit_many([], now=timezone.now())
