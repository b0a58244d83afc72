"""A webhook that is deleted while an event is being told of: neither breaks the other."""

import threading
import time

import pytest
from django.db import connection, transaction
from django.utils import timezone

from apps.common.actor import Actor
from apps.webhooks import services
from apps.webhooks.models import Webhook, WebhookDelivery
from tests.apps.webhooks.kit import make

pytestmark = pytest.mark.django_db(transaction=True)


class Other(threading.Thread):
    """Runs `act` on a connection of its own; `join` raises what it raised."""

    def __init__(self, act):
        super().__init__()
        self.act, self.error, self.pid = act, None, 0
        self.start()

    def run(self):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_backend_pid()")
                self.pid = cursor.fetchone()[0]
            self.act()
        except Exception as error:  # noqa: BLE001 - raised again in the test's own thread
            self.error = error
        finally:
            connection.close()

    def until_it_waits_or_ends(self):
        """Whoever needs a lock that this thread holds waits for it; all else is over soon."""
        deadline = time.monotonic() + 30
        while self.is_alive() and time.monotonic() < deadline:
            with connection.cursor() as cursor:
                cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [self.pid])
                if self.pid and cursor.fetchone()[0]:
                    return
            time.sleep(0.01)

    def end(self):
        self.join(30)
        assert not self.is_alive()
        if self.error is not None:
            raise self.error


def emit(alice):
    return services.emit(owner_id=alice.pk, event="device.online", data={}, now=timezone.now())


def delete(alice, hook):
    services.delete_webhook(actor=Actor.system(), owner_id=alice.pk, webhook_id=hook.id, now=timezone.now())


@pytest.mark.parametrize("how", ["one", "all"])
def test_deleted_while_an_event_is_not_committed_yet(alice, how):
    hook = make(alice, "device.online")
    act = (lambda: delete(alice, hook)) if how == "one" else (lambda: services.delete_all(user_id=alice.pk))
    with transaction.atomic():
        assert emit(alice) == 1
        other = Other(act)
        other.until_it_waits_or_ends()
    other.end()
    assert (Webhook.objects.count(), WebhookDelivery.objects.count()) == (0, 0)


def test_told_of_while_its_deletion_is_not_committed_yet(alice):
    hook = make(alice, "device.online")
    told = []
    with transaction.atomic():
        delete(alice, hook)
        other = Other(lambda: told.append(emit(alice)))
        other.until_it_waits_or_ends()
    other.end()
    assert told == [0]
    assert WebhookDelivery.objects.count() == 0


def test_a_change_holds_up_no_event(alice):
    hook = make(alice, "device.online")
    with transaction.atomic():
        services.change_webhook(
            actor=Actor.system(), owner_id=alice.pk, webhook_id=hook.id, changes={"enabled": True}, now=timezone.now()
        )
        Other(lambda: emit(alice)).end()
    assert WebhookDelivery.objects.count() == 1
