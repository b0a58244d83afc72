"""What the table of models holds to, whoever writes it."""

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from apps.model_registry.models import AIModel
from apps.storage import services as storage


def make(owner, name="n", **fields):
    given = {"version": "1", "filename": "f", "size": 1, "object_key": storage.new_keys()[1]}
    return AIModel.objects.create(owner=owner, name=name, **{**given, **fields})


def refuses(act):
    with pytest.raises(IntegrityError), transaction.atomic():
        act()


def test_a_name_and_version_are_unique_among_an_owners_live_models(alice, bob):
    make(alice)
    refuses(lambda: make(alice))
    make(alice, version="2")
    make(bob)
    make(alice, deleted_at=timezone.now())


def test_and_among_the_built_in_ones(alice):
    make(None, source="builtin")
    refuses(lambda: make(None, source="builtin"))
    make(None, source="builtin", version="2")
    make(alice)


@pytest.mark.parametrize(
    "fields",
    [
        {"status": "odd"},
        {"source": "odd"},
        {"source": "builtin"},  # of an owner
        {"size": 0},
        {"size": -1},
        {"status": "ready"},  # without a checksum
    ],
)
def test_what_no_model_is(alice, fields):
    refuses(lambda: make(alice, **fields))


def test_no_owner_without_being_built_in(db):
    refuses(lambda: make(None, source="upload"))


def test_an_object_is_one_models(alice):
    key = storage.new_keys()[1]
    make(alice, object_key=key)
    refuses(lambda: make(alice, name="other", object_key=key))


@pytest.mark.django_db(transaction=True)
def test_up_down_up():
    try:
        call_command("migrate", "model_registry", "zero", verbosity=0)
        assert "models" not in connection.introspection.table_names()
    finally:
        call_command("migrate", verbosity=0)
    assert {"models", "deployments"} <= set(connection.introspection.table_names())
    call_command("makemigrations", "model_registry", "--check", "--dry-run", verbosity=0)
