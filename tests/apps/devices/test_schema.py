"""What the tables themselves hold to, whoever writes them; and that the migrations go both ways."""

import pytest
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from apps.devices.models import Accelerator, Device, DeviceEvent
from apps.pairing.models import PairingToken


def refuses(act, error=IntegrityError):
    with pytest.raises(error), transaction.atomic():
        act()


def test_a_serial_is_unique_among_the_live_devices_of_an_owner(alice, bob):
    Device.objects.create(owner=alice, name="a", serial="S")
    refuses(lambda: Device.objects.create(owner=alice, name="b", serial="S"))
    Device.objects.create(owner=bob, name="c", serial="S")
    Device.objects.create(owner=alice, name="d", serial="S", deleted_at=timezone.now())
    Device.objects.create(owner=alice, name="e", serial=None)
    Device.objects.create(owner=alice, name="f", serial=None)


@pytest.mark.parametrize("field", ["link_status", "device_status"])
def test_an_unknown_status_of_a_device(alice, field):
    refuses(lambda: Device.objects.create(owner=alice, name="a", **{field: "asleep"}))


def test_an_unknown_status_of_a_pairing_token(alice):
    refuses(
        lambda: PairingToken.objects.create(token_hash="x", owner=alice, expires_at=timezone.now(), status="expired")
    )


def test_an_accelerator_is_one_row(alice):
    device = Device.objects.create(owner=alice, name="a")
    Accelerator.objects.create(device=device, serial="A", seen_at=timezone.now())
    refuses(lambda: Accelerator.objects.create(device=device, serial="A", seen_at=timezone.now()))


def test_the_history_of_a_device_is_written_once(alice):
    device = Device.objects.create(owner=alice, name="a")
    event = DeviceEvent.objects.create(at=timezone.now(), device_id=device.id, action="paired")
    refuses(lambda: DeviceEvent.objects.filter(pk=event.pk).update(action="x"), DatabaseError)
    refuses(event.delete, DatabaseError)
    assert DeviceEvent.objects.get().action == "paired"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("app", ["pairing", "devices"])
def test_up_down_up(app):
    """Back to nothing and forth again; what depends on it goes and comes too."""
    try:
        call_command("migrate", app, "zero", verbosity=0)
        assert "devices" not in connection.introspection.table_names() or app == "pairing"
    finally:
        call_command("migrate", verbosity=0)
    assert {"devices", "pairing_tokens", "session_tokens", "device_events"} <= set(
        connection.introspection.table_names()
    )


def test_no_migration_is_missing(db):
    call_command("makemigrations", "devices", "pairing", "--check", "--dry-run", verbosity=0)
