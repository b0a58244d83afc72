"""The audit trail: append-only for everybody, in the transaction of the act, readable in the admin."""

import datetime as dt

import pytest
from django.db import DatabaseError, transaction
from django.test import Client
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.audit.services import record
from apps.common.actor import Actor

NOW = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
ACTOR = Actor("the-user", "alice@example.com", "192.0.2.1", "the-id")
LIST = "/admin/audit/auditevent/"


@pytest.fixture
def row(db) -> AuditEvent:
    record(actor=ACTOR, action="thing.done", object_type="thing", object_id="7", detail={"a": 1}, now=NOW)
    return AuditEvent.objects.get()


def test_holds_plain_values(row):
    assert (row.at, row.actor, row.actor_label, row.action) == (NOW, "the-user", "alice@example.com", "thing.done")
    assert (row.object_type, row.object_id, row.detail) == ("thing", "7", {"a": 1})
    assert (row.address, row.request_id) == ("192.0.2.1", "the-id")


def test_cannot_be_changed_or_deleted(row):
    row.action = "nothing.done"
    for act in (row.save, row.delete, AuditEvent.objects.all().delete):
        with pytest.raises(DatabaseError), transaction.atomic():
            act()
    row.refresh_from_db()
    assert row.action == "thing.done"


def test_stands_only_if_the_act_does(db):
    def act() -> None:
        with transaction.atomic():
            record(actor=Actor.system(), action="thing.done", now=timezone.now())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        act()
    assert not AuditEvent.objects.exists()


def test_long_values_are_cut_not_refused(db):
    record(actor=Actor("u", "l" * 300, "a" * 100, "r" * 100), action="thing.done", now=NOW)
    assert len(AuditEvent.objects.get().actor_label) == 254


@pytest.fixture
def staff(make_user) -> Client:
    client = Client()
    client.force_login(make_user("root@example.com", is_staff=True, is_superuser=True))
    return client


@pytest.mark.parametrize("query", ["", "?q=the-id", "?action=thing.done", "?q=192.0.2.1"])
def test_the_admin_lists_filters_and_finds(staff, row, query):
    page = staff.get(LIST + query)
    assert page.status_code == 200
    assert b"thing.done" in page.content


def test_the_admin_shows_and_changes_nothing(staff, row):
    assert staff.get(f"{LIST}{row.pk}/change/").status_code == 200
    assert staff.post(f"{LIST}{row.pk}/change/", {"action": "x"}).status_code == 403
    assert staff.post(f"{LIST}{row.pk}/delete/", {"post": "yes"}).status_code == 403
    assert staff.get(f"{LIST}add/").status_code == 403
    staff.post(LIST, {"action": "delete_selected", "_selected_action": [str(row.pk)], "post": "yes"})
    assert AuditEvent.objects.filter(pk=row.pk).exists()
