"""Uploads that a worker checks: one winner, fair among owners, healed after a crash, told once how it ended."""

import datetime as dt
import threading
import uuid

import pytest
from django.db.models.functions import Now
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.audit.models import AuditEvent
from apps.model_registry import finalization, services
from apps.model_registry.finalization_models import Finalization
from apps.model_registry.models import AIModel
from apps.storage import services as storage
from apps.storage.base import Mismatch, StorageError, Stored
from tests.apps.conftest import login_as
from tests.apps.model_registry.kit import DATA, init
from tests.apps.stores import sha256


class Slow:
    """A store that neither reads nor waits unless it is told to; it remembers what it settled."""

    settles_at_once = False

    def __init__(self) -> None:
        self.settled, self.answer = [], None

    def settle(self, promise, *, upload_id="", parts=None, progress):
        progress()
        if self.answer is not None:
            raise self.answer
        self.settled.append(promise.upload_key)
        return Stored(promise.size, promise.sha256 or sha256(DATA))

    def discard(self, key, *, upload_id=""):
        raise AssertionError("no caller waits for the store to forget")


@pytest.fixture
def slow(local, monkeypatch):
    """No worker runs, and nobody waits for long."""
    made = Slow()

    def begin():
        monkeypatch.setattr(storage, "store", lambda: made)
        monkeypatch.setattr(finalization, "WAIT_SECONDS", 0.0)
        monkeypatch.setattr(finalization, "pause", lambda _seconds: None)
        return made

    return begin


def finalize(api, model, **body):
    return api("POST", f"/api/models/{model['id']}/finalize", body or None)


def work():
    return services.check_uploads(leaving=lambda: False)


def test_what_takes_long_is_202_and_the_same_call_tells_the_end(slow, alice_api):
    model = init(alice_api)["model"]
    store = slow()
    for _ in range(2):  # asked twice, checked once
        later = finalize(alice_api, model)
        assert (later.status, later.data["status"], later.data["sha256"]) == (202, "checking", None)
    assert alice_api("GET", "/api/models?status=checking").data[0]["id"] == model["id"]
    assert alice_api("GET", f"/api/models/{model['id']}/download").code == "INVALID_STATE"
    assert ProcrastinateJob.objects.filter(task_name=finalization.TASK).count() == 1
    assert work() == 1
    done = finalize(alice_api, model)
    assert (done.status, done.data["status"], done.data["sha256"]) == (200, "ready", sha256(DATA))
    assert len(store.settled) == 1
    event = AuditEvent.objects.get(action="model.finalize")
    assert event.actor_label == "alice@example.com"
    assert not Finalization.objects.exists()


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [(Mismatch("other bytes"), 409, "INVALID_STATE"), (StorageError(), 503, "DATABASE_UNAVAILABLE")],
)
def test_how_it_failed_is_told_once(slow, alice_api, error, status, code):
    model = init(alice_api)["model"]
    store = slow()
    store.answer = error
    assert finalize(alice_api, model).status == 202
    assert work() == 1
    assert AIModel.objects.get().status == "pending"
    refused = finalize(alice_api, model)
    assert (refused.status, refused.code) == (status, code)
    store.answer = None
    assert finalize(alice_api, model).status == 202  # that was told: this one is checked anew
    assert work() == 1
    assert finalize(alice_api, model).data["status"] == "ready"


def test_what_nobody_expected_ends(slow, alice_api):
    """Tried again a few times, each later than the last; then its owner is told, and may finalize again."""
    model = init(alice_api)["model"]
    store = slow()
    store.answer = RuntimeError("a fault of ours")
    assert finalize(alice_api, model).status == 202
    waited = []
    for attempt in range(1, finalization.ATTEMPTS + 1):
        assert work() == 1
        row = Finalization.objects.get()
        assert row.attempts == attempt
        assert work() == 0  # its time has not come
        waited.append((row.queued_at - timezone.now()).total_seconds())
        Finalization.objects.update(queued_at=timezone.now())
    assert (row.status, AIModel.objects.get().status) == ("failed", "pending")
    assert waited[:3] == [pytest.approx(5, abs=2), pytest.approx(10, abs=2), pytest.approx(20, abs=2)]
    refused = finalize(alice_api, model)
    assert (refused.status, refused.code) == (500, "INTERNAL_ERROR")
    assert "Finalize it again" in refused.json["error"]["message"]
    store.answer = None
    assert finalize(alice_api, model).status == 202
    assert work() == 1
    assert finalize(alice_api, model).data["status"] == "ready"


def test_what_kills_its_workers_ends(slow, alice_api):
    model = init(alice_api)["model"]
    slow()
    finalize(alice_api, model)
    for _ in range(finalization.ATTEMPTS):
        assert finalization._claim(timezone.now())
        Finalization.objects.update(beat_at=Now() - finalization.STALE - dt.timedelta(seconds=1))
        finalization.rescue(now=timezone.now())
        Finalization.objects.update(queued_at=timezone.now())
    assert work() == 0
    assert finalize(alice_api, model).code == "INTERNAL_ERROR"


def test_a_worker_of_the_release_before_was_killed(slow, alice_api):
    """It counts no attempts; whoever looks after the rows goes on all the same."""
    model = init(alice_api)["model"]
    slow()
    finalize(alice_api, model)
    assert finalization._claim(timezone.now())
    Finalization.objects.update(attempts=0, beat_at=Now() - finalization.STALE - dt.timedelta(seconds=1))
    finalization.rescue(now=timezone.now())
    Finalization.objects.update(queued_at=timezone.now())
    assert work() == 1
    assert finalize(alice_api, model).data["status"] == "ready"


def test_a_worker_that_was_killed(slow, alice_api):
    model = init(alice_api)["model"]
    store = slow()
    assert finalize(alice_api, model).status == 202
    dead = finalization._claim(dt.datetime.now(dt.UTC))
    assert work() == 0
    assert finalization.rescue(now=dt.datetime.now(dt.UTC)) == 0  # it beats still
    Finalization.objects.update(beat_at=Now() - finalization.STALE - dt.timedelta(seconds=1))
    assert finalization.rescue(now=dt.datetime.now(dt.UTC)) == 0  # in a while: it may be the check that kills
    assert finalization.rescue(now=dt.datetime.now(dt.UTC) + finalization.BACKOFF) == 1
    assert finalization._fail(dead, StorageError()) == "lost"  # it was not dead after all
    assert AIModel.objects.get().status == "checking"
    Finalization.objects.update(queued_at=timezone.now())
    assert work() == 1
    assert finalize(alice_api, model).data["status"] == "ready"
    assert len(store.settled) == 1


def test_a_worker_that_ends(slow, alice_api):
    model = init(alice_api)["model"]
    store = slow()
    finalize(alice_api, model)
    looks = iter([False, True, True])  # it ends while bytes are read
    assert services.check_uploads(leaving=lambda: next(looks)) == 1
    assert (store.settled, AIModel.objects.get().status) == ([], "checking")
    assert work() == 1
    assert AIModel.objects.get().status == "ready"


def test_begun_anew_while_it_is_checked(slow, alice_api, monkeypatch):
    model = init(alice_api)["model"]
    slow()
    finalize(alice_api, model)
    row = Finalization.objects.get()
    begun = AIModel.objects.get()
    monkeypatch.undo()
    init(alice_api, size=3)
    assert AIModel.objects.get().status == "pending"
    with pytest.raises(services.DomainError):
        services._write_ready(None, begun.owner_id, begun, Stored(len(DATA), sha256(DATA)), dt.datetime.now(dt.UTC))
    assert finalization._fail(row, StorageError()) == "lost"
    assert not Finalization.objects.exists()


def test_owners_share_the_workers(slow, alice, alice_api, bob_api):
    """One who queues much waits behind those who queue little, and never has more than a share at once."""
    many = [init(alice_api, name=f"m{n}")["model"]["id"] for n in range(6)]
    few = init(bob_api)["model"]["id"]
    slow()
    for model in (*many, few):
        assert (alice_api if model != few else bob_api)("POST", f"/api/models/{model}/finalize").status == 202
    now = dt.datetime.now(dt.UTC)
    taken = [str(finalization._claim(now).model_id) for _ in range(3)]
    assert taken == [many[0], few, many[1]]
    assert finalization._claim(now) is None  # though four wait
    Finalization.objects.filter(model_id=many[0]).delete()
    assert str(finalization._claim(now).model_id) == many[2]


def test_few_calls_wait(slow, alice, bob):
    """Each is a thread of the API: of one owner fewer than of all."""
    held, one, other = [], uuid.uuid4(), uuid.uuid4()
    for owner in (one, one, one, other, *(uuid.uuid4() for _ in range(8))):
        place = finalization._place(owner)
        held.append((place, place.__enter__()))
    assert [waits for _, waits in held] == [True, True, False, True, *[True] * 5, False, False, False]
    for place, _ in held:
        place.__exit__(None, None, None)
    assert not finalization._waiting


def test_so_many_at_once_in_a_worker(slow, alice_api):
    slow()
    taken = [finalization._places.acquire(blocking=False) for _ in range(finalization.AT_ONCE)]
    assert all(taken)
    assert work() == 0  # who has a place goes on with what is queued
    for _ in taken:
        finalization._places.release()


def test_deleting_waits_for_no_store(slow, alice_api):
    """It is a worker's job, in the transaction of the row."""
    model = init(alice_api)["model"]
    slow()
    assert alice_api("DELETE", f"/api/models/{model['id']}").status == 200
    assert ProcrastinateJob.objects.filter(task_name=services.DISCARD).count() == 1


@pytest.mark.django_db(transaction=True)
def test_one_of_several_workers(slow, alice):
    api = login_as(alice)
    models = [init(api, name=f"m{n}")["model"] for n in range(4)]
    store = slow()
    for model in models:
        finalize(api, model)
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    work()
    assert sorted(store.settled) == sorted(set(store.settled))
    assert set(AIModel.objects.values_list("status", flat=True)) == {"ready"}
