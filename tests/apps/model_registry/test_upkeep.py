"""What the passing of time removes, on both stores, and what it must leave."""

import datetime as dt
import io
import os
import time

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.model_registry import seeding, services, tasks, upkeep
from apps.model_registry.models import AIModel
from apps.storage import services as storage
from tests.apps.model_registry.kit import ACTOR, DATA, init, ready, upload
from tests.apps.stores import request, run_jobs

DAY = dt.timedelta(days=1)


def later(hours=25.0):
    return timezone.now() + dt.timedelta(hours=hours)


def counted(found):
    return found.uploads, found.models, found.orphans, found.failed


def test_an_upload_that_nobody_finished(store, alice_api):
    begun = init(alice_api)
    store.send(begun["upload"], DATA)
    assert counted(upkeep.reap(now=later(23))) == (0, 0, 0, 0)
    assert AIModel.objects.count() == 1
    assert counted(upkeep.reap(now=later())) == (1, 0, 0, 0)
    assert (AIModel.objects.count(), store.keys()) == (0, set())
    assert AuditEvent.objects.filter(action="model.upload_expired").count() == 1
    assert counted(upkeep.reap(now=later())) == (0, 0, 0, 0)
    assert alice_api("POST", f"/api/models/{begun['model']['id']}/finalize").code == "NOT_FOUND"


def test_what_is_ready_stays(store, alice_api):
    shown = upload(alice_api, store)
    assert counted(upkeep.reap(now=later(24 * 400))) == (0, 0, 0, 0)
    assert store.keys() == {AIModel.objects.get(id=shown["id"]).object_key}


def test_a_deleted_one_stays_for_thirty_days(store, alice_api):
    shown = upload(alice_api, store)
    alice_api("DELETE", f"/api/models/{shown['id']}")
    assert counted(upkeep.reap(now=timezone.now() + 29 * DAY)) == (0, 0, 0, 0)
    assert len(store.keys()) == 1
    assert counted(upkeep.reap(now=timezone.now() + 31 * DAY)) == (0, 1, 0, 0)
    assert (AIModel.objects.count(), store.keys()) == (0, set())


def test_bytes_that_no_row_speaks_of(store, alice_api):
    upload_key, object_key = storage.new_keys()
    storage.store().put(object_key, io.BytesIO(b"x"), limit=10)
    shown = upload(alice_api, store)
    if store.kind == "local":
        slot = store.folder / upload_key
        slot.mkdir(parents=True)
        (slot / "part-0").write_bytes(b"half")
    else:
        storage.store().put(upload_key, io.BytesIO(b"x"), limit=10)
    assert upkeep.reap(now=later(23)).orphans == 0
    if store.kind == "s3":  # moto dates each of these to 2010
        store.moto.client().create_multipart_upload(Bucket="models", Key=f"{store.prefix}/{storage.new_keys()[1]}")
    expected = 2 if store.kind == "local" else 3
    assert upkeep.reap(now=later(), dry_run=True).orphans == expected
    assert upkeep.reap(now=later()).orphans == expected
    assert store.keys() == {AIModel.objects.get(id=shown["id"]).object_key}


def test_a_slot_in_use_is_young(local, alice_api):
    upload_key, _object_key = storage.new_keys()
    slot = local.folder / upload_key
    slot.mkdir(parents=True)
    (slot / "part-0").write_bytes(b"arriving")
    old = time.time() - 3 * 86400
    os.utime(slot, (old, old))
    assert upkeep.reap(now=timezone.now()).orphans == 0
    os.utime(slot / "part-0", (old, old))
    os.utime(slot, (old, old))
    assert upkeep.reap(now=timezone.now()).orphans == 1


def test_all_of_a_user_who_leaves(store, alice, alice_api, bob):
    upload(alice_api, store)
    init(alice_api, name="pending")
    kept = ready(bob.pk)
    tasks.purge_owner(user_id=str(alice.pk))
    assert list(AIModel.objects.all()) == [kept]
    assert store.keys() == {kept.object_key}


def test_more_rows_than_a_batch(local, alice, monkeypatch):
    monkeypatch.setattr(upkeep, "BATCH", 2)
    for index in range(5):
        ready(alice.pk, name=f"n{index}", data=b"x")
    AIModel.objects.update(deleted_at=timezone.now() - 31 * DAY)
    assert counted(upkeep.reap(now=timezone.now())) == (0, 5, 0, 0)
    assert local.keys() == set()


def test_the_command(local, alice, alice_api, capsys):
    init(alice_api)
    AIModel.objects.update(upload_begun_at=timezone.now() - 2 * DAY)
    call_command("reap", "--dry-run")
    assert AIModel.objects.count() == 1
    call_command("reap")
    assert AIModel.objects.count() == 0
    assert capsys.readouterr().out.splitlines()[-1] == "uploads: 1, models: 0, orphans: 0, failed: 0"


def test_the_job(local, alice_api):
    init(alice_api)
    AIModel.objects.update(upload_begun_at=timezone.now() - 2 * DAY)
    tasks.reap(timestamp=0)
    assert AIModel.objects.count() == 0


def test_a_built_in_model_from_a_file(local, tmp_path, alice_api, capsys):
    path = tmp_path / "face.nef"
    path.write_bytes(DATA)
    call_command("add_builtin_model", str(path), "--name", "face", "--model-version", "2", "--chip", "KL720")
    assert "face 2" in capsys.readouterr().out
    shown = alice_api("GET", "/api/models?owner=builtin").data
    assert [(each["name"], each["source"], each["chips"]) for each in shown] == [("face", "builtin", ["KL720"])]
    for words in (
        (str(path), "--name", "face", "--model-version", "2"),
        ("/none", "--name", "x", "--model-version", "1"),
    ):
        with pytest.raises(CommandError):
            call_command("add_builtin_model", *words)


def test_the_demo_model_comes_back_with_its_bytes(local, alice):
    first = seeding.ensure_model(actor=ACTOR, owner_id=alice.pk, now=timezone.now())
    assert seeding.ensure_model(actor=ACTOR, owner_id=alice.pk, now=timezone.now()).id == first.id
    (local.folder / first.object_key).unlink()
    second = seeding.ensure_model(actor=ACTOR, owner_id=alice.pk, now=timezone.now())
    assert second.id != first.id
    assert services.models_of(alice.pk).count() == 1


def test_a_url_ends_with_its_model(store, alice_api):
    """Its time is not over, its bytes are kept, and it leads nowhere; where a database is restored it does again."""
    shown = upload(alice_api, store)
    url = alice_api("GET", f"/api/models/{shown['id']}/download").data["url"]
    assert request("GET", url).body == DATA
    alice_api("DELETE", f"/api/models/{shown['id']}")
    run_jobs()
    gone = request("GET", url).status
    assert gone == (404 if store.kind == "local" else 403)  # moto's word for what is not there; S3's is 404
    model = AIModel.objects.get()
    with storage.open_range(key=model.object_key, start=0, length=model.size) as pieces:  # a backup's, a deployment's
        assert b"".join(pieces) == DATA
    for deleted_at, status in ((None, 200), (timezone.now(), gone)):
        AIModel.objects.update(deleted_at=deleted_at)
        assert counted(upkeep.reap(now=timezone.now())) == (0, 0, 0, 0)
        assert request("GET", url).status == status
        assert store.keys() == {model.object_key}


def test_withdrawing_waits_for_its_row(store, alice_api):
    """A job that comes late leaves a live model alone, and one that is purged is no error."""
    shown = upload(alice_api, store)
    key = AIModel.objects.get().object_key
    services.withdraw(key=key)
    assert alice_api("GET", f"/api/models/{shown['id']}/download").status == 200
    assert [found.withdrawn for found in storage.store().leftovers()] == [False]
    AIModel.objects.all().delete()
    storage.store().discard(key)
    services.withdraw(key=key)
    assert store.keys() == set()
