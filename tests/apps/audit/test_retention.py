"""What is kept no longer goes, what is kept stays, and nothing but retention deletes events."""

import datetime as dt
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.utils import timezone

from apps.audit import retention
from apps.audit.models import AuditEvent
from apps.audit.services import record
from apps.audit.tasks import sweep
from apps.common.actor import Actor
from apps.common.db import append_only
from apps.devices import tasks
from apps.devices.models import Accelerator, Device, DeviceEvent
from apps.pairing.models import PairingToken, SessionToken

WORKER = Actor.system("worker")
TABLES = ("audit_events", "device_events")


def days_ago(days: float) -> dt.datetime:
    return timezone.now() - dt.timedelta(days=days)


def audit(days: float, action: str = "thing.done") -> None:
    record(actor=WORKER, action=action, now=days_ago(days))


def device_event(days: float, device_id) -> None:
    DeviceEvent.objects.create(at=days_ago(days), device_id=device_id, action="paired")


def kept(model=AuditEvent) -> int:
    return model.objects.exclude(action="retention.purge").count() if model is AuditEvent else model.objects.count()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize(
    "sql", ["TRUNCATE {0}", "TRUNCATE {0} CASCADE", "DELETE FROM {0}", "UPDATE {0} SET action = ''"]
)
def test_nobody_empties_or_changes_a_table_of_events(alice, table, sql):
    audit(1)
    device_event(1, alice.pk)
    with pytest.raises(DatabaseError, match=r"append-only|Cannot update"), transaction.atomic():
        connection.cursor().execute(sql.format(table))
    assert (kept(), kept(DeviceEvent)) == (1, 1)


def test_retention_itself_changes_nothing(db):
    audit(1)
    with (
        pytest.raises(DatabaseError, match="Cannot update"),
        append_only.lifted(),
        connection.cursor() as cursor,
    ):
        cursor.execute("UPDATE audit_events SET action = ''")


def test_the_lift_ends_with_its_transaction(db):
    audit(400)
    retention.sweep(retention.AUDIT, actor=WORKER, now=timezone.now())
    with pytest.raises(DatabaseError), transaction.atomic():
        AuditEvent.objects.all().delete()


def test_audit_events_are_kept_for_a_year(db):
    for days in (1, 364.9, 365.1, 900):
        audit(days)
    sweep(timestamp=0)
    assert kept() == 2
    purge = AuditEvent.objects.get(action="retention.purge")
    assert purge.detail == {"what": "audit events", "rows": 2, "days": 365}
    sweep(timestamp=0)
    assert AuditEvent.objects.filter(action="retention.purge").count() == 1  # nothing to tell of nothing


def test_device_events_are_kept_for_90_days_and_deleted_devices_for_30(alice):
    live, fresh, old = (Device.objects.create(owner=alice, name=name, serial=name) for name in "abc")
    Device.objects.filter(pk=fresh.pk).update(deleted_at=days_ago(29))
    Device.objects.filter(pk=old.pk).update(deleted_at=days_ago(31))
    Accelerator.objects.create(device=old, serial="A", seen_at=days_ago(40))
    SessionToken.objects.create(token_hash="s", device=old, issued_at=days_ago(40), expires_at=days_ago(1))
    PairingToken.objects.create(token_hash="p", owner=alice, device=old, expires_at=days_ago(40))
    for days in (89, 91):
        device_event(days, old.pk)
    tasks.sweep(timestamp=0)
    assert set(Device.objects.values_list("pk", flat=True)) == {live.pk, fresh.pk}
    assert not Accelerator.objects.exists()
    assert not SessionToken.objects.exists()
    assert kept(DeviceEvent) == 1


def test_days_are_a_setting(db, settings):
    settings.VISIONA = {**settings.VISIONA, "KEEP_AUDIT_DAYS": 10}
    audit(9)
    audit(11)
    sweep(timestamp=0)
    assert kept() == 1


@pytest.mark.django_db(transaction=True)
def test_batches_and_two_hosts_at_once():
    for _ in range(25):
        audit(400)
    audit(1)

    def run(_host: int) -> int:
        try:
            return append_only.purge(retention.AUDIT.rows(timezone.now()), batch=4)
        finally:
            connection.close()

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(run, range(2)))
    left = append_only.purge(retention.AUDIT.rows(timezone.now()), batch=4)  # what both had left to the other
    assert sum(counts) + left == 25
    assert kept() == 1


def test_the_command(db):
    audit(400)
    out = io.StringIO()
    call_command("retain", "--dry-run", stdout=out)
    assert "audit events older than 365 d: 1 to delete" in out.getvalue()
    assert kept() == 1
    out = io.StringIO()
    call_command("retain", stdout=out)
    assert "audit events older than 365 d: 1 deleted" in out.getvalue()
    assert "device events older than 90 d: 0 deleted" in out.getvalue()
    assert kept() == 0
