"""Rows by ids with kept SQL: what the ORM gives, to the last column."""

import uuid

import pytest
from django.utils import timezone

from apps.accounts.selectors import active_user
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.devices.selectors import device_of


@pytest.mark.parametrize("metadata", [{}, {"site": {"rack": [1, None, "é"]}}])
def test_a_row_is_the_orms_own(alice, metadata, django_assert_num_queries):
    made = Device.objects.create(owner=alice, name="box", metadata=metadata, last_seen_at=timezone.now())
    with django_assert_num_queries(1):
        found = device_of(alice.pk, made.pk)
    usual = Device.objects.get(pk=made.pk)
    names = [field.attname for field in Device._meta.concrete_fields]
    assert {name: getattr(found, name) for name in names} == {name: getattr(usual, name) for name in names}
    assert found == usual
    assert found.owner == alice


def test_it_can_be_saved(alice):
    made = Device.objects.create(owner=alice, name="box", metadata={"a": 1})
    found = device_of(alice.pk, made.pk)
    found.name = "other"
    found.save()
    made.refresh_from_db()
    assert (made.name, made.metadata) == ("other", {"a": 1})


def test_each_id_is_taken_for_what_it_is(alice, bob):
    """The owner's and the row's do not change places, nor is one asked for in the place of another."""
    mine, gone = Device.objects.create(owner=alice), Device.objects.create(owner=alice, deleted_at=timezone.now())
    theirs = Device.objects.create(owner=bob)
    assert device_of(alice.pk, mine.pk).pk == mine.pk
    for owner, row in ((alice, theirs), (bob, mine), (alice, gone), (mine, alice)):
        with pytest.raises(DomainError) as refused:
            device_of(owner.pk, row.pk)
        assert refused.value.code == "NOT_FOUND"


def test_one_who_is_disabled_is_not_found(alice):
    assert active_user(alice.pk) == alice
    alice.is_active = False
    alice.save()
    assert active_user(alice.pk) is None
    assert active_user(uuid.uuid4()) is None
