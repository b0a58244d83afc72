"""An upload in its two phases, on both stores: what ends as a ready model, and what does not."""

import io
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import OperationalError, connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.model_registry import services
from apps.model_registry.models import AIModel, ModelSource
from apps.storage import services as storage
from tests.apps.conftest import login_as
from tests.apps.model_registry.kit import ACTOR, DATA, init, init_body, ready, upload
from tests.apps.stores import request, sha256

FIELDS = {
    "id", "name", "version", "description", "filename", "format", "chips", "source", "status", "size", "sha256",
    "faa_object_key", "created_at", "updated_at",
}  # fmt: skip


def finalize(api, begun, **body):
    return api("POST", f"/api/models/{begun['model']['id']}/finalize", body or None)


def bytes_of(model_id):
    model = AIModel.objects.get(id=model_id)
    with storage.open_range(key=model.object_key, start=0, length=model.size) as pieces:
        return b"".join(pieces)


# --- the whole way ----------------------------------------------------------------------------------------------------
def test_init_upload_finalize_download(store, alice_api):
    begun = init(alice_api, sha256=sha256(DATA).upper(), description="d", faa_object_key="faa/1")
    model, sending = begun["model"], begun["upload"]
    assert set(begun) == {"model", "upload"}
    assert set(model) == FIELDS
    assert (model["status"], model["source"], model["format"], model["sha256"]) == (
        "pending", "upload", "nef", sha256(DATA),
    )  # fmt: skip
    assert set(sending) == {"method", "url", "headers", "expires_at"}
    assert sending["method"] == "PUT"
    assert sending["url"].startswith("http")
    assert store.send(sending, DATA).status in (200, 201)
    assert AIModel.objects.get().status == "pending"
    done = finalize(alice_api, begun)
    assert done.status == 200
    assert (done.data["status"], done.data["size"], done.data["sha256"]) == ("ready", len(DATA), sha256(DATA))
    assert finalize(alice_api, begun).data == done.data
    download = alice_api("GET", f"/api/models/{model['id']}/download")
    assert set(download.data) == {"url", "expires_at"}
    got = request("GET", download.data["url"])
    assert (got.status, got.body) == (200, DATA)
    assert got.headers["content-disposition"] == 'attachment; filename="yolo.nef"'
    part = request("GET", download.data["url"], headers={"Range": "bytes=100-199"})
    assert (part.status, part.body) == (206, DATA[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(DATA)}"
    assert set(AuditEvent.objects.values_list("action", flat=True)) == {
        "model.init", "model.finalize", "model.download",
    }  # fmt: skip
    assert store.keys() == {AIModel.objects.get().object_key}


def test_a_checksum_is_found_where_none_was_promised(store, alice_api):
    begun = init(alice_api)
    assert begun["model"]["sha256"] is None
    store.send(begun["upload"], DATA)
    assert finalize(alice_api, begun).data["sha256"] == sha256(DATA)


def test_the_last_whole_body_counts(store, alice_api):
    begun = init(alice_api)
    store.send(begun["upload"], DATA[::-1])
    store.send(begun["upload"], DATA)
    assert finalize(alice_api, begun).data["sha256"] == sha256(DATA)
    assert bytes_of(begun["model"]["id"]) == DATA


def test_a_url_of_a_finalized_upload_changes_nothing(store, alice_api):
    begun = init(alice_api)
    store.send(begun["upload"], DATA)
    finalize(alice_api, begun)
    again = store.send(begun["upload"], DATA[::-1])
    if store.kind == "local":
        assert again.status == 403
    assert finalize(alice_api, begun).status == 200
    assert bytes_of(begun["model"]["id"]) == DATA


# --- what does not become ready ---------------------------------------------------------------------------------------
def test_nothing_has_arrived(store, alice_api):
    begun = init(alice_api)
    assert finalize(alice_api, begun).code == "INVALID_STATE"
    assert AIModel.objects.get().status == "pending"
    store.send(begun["upload"], DATA)
    assert finalize(alice_api, begun).status == 200


def test_too_little_has_arrived(store, alice_api):
    begun = init(alice_api)
    store.send(begun["upload"], DATA[:-1])
    assert finalize(alice_api, begun).code == "INVALID_STATE"
    assert AIModel.objects.get().status == "pending"


def test_something_else_has_arrived(store, alice_api):
    begun = init(alice_api, sha256=sha256(DATA))
    other = DATA[::-1]
    store.send(begun["upload"], other)
    refused = finalize(alice_api, begun)
    assert (refused.status, refused.code) == (409, "INVALID_STATE")
    assert AIModel.objects.get().status == "pending"
    store.send(begun["upload"], DATA)
    assert finalize(alice_api, begun).status == 200


def test_a_name_and_version_that_are_ready_already(store, alice_api):
    upload(alice_api, store)
    refused = alice_api("POST", "/api/models/init", init_body())
    assert (refused.status, refused.code) == (409, "CONFLICT")
    assert AIModel.objects.count() == 1
    assert alice_api("POST", "/api/models/init", init_body(version="2")).status == 201


def test_a_pending_one_begins_anew_and_stays_who_it_is(store, alice_api):
    first = init(alice_api, description="old")
    store.send(first["upload"], DATA)
    second = init(alice_api, size=3, description="new")
    assert second["model"]["id"] == first["model"]["id"]
    assert second["model"]["created_at"] == first["model"]["created_at"]
    assert (second["model"]["size"], second["model"]["description"]) == (3, "new")
    assert finalize(alice_api, second).code == "INVALID_STATE"
    store.send(second["upload"], b"abc")
    assert finalize(alice_api, second).data["size"] == 3
    assert store.keys() == {AIModel.objects.get().object_key}


def test_the_url_of_an_upload_that_began_anew(store, alice_api):
    first, second = init(alice_api), init(alice_api)
    sent = store.send(first["upload"], DATA)
    if store.kind == "local":
        assert sent.status == 403
    assert finalize(alice_api, second).code == "INVALID_STATE"


def test_a_deleted_one_frees_its_name_and_its_upload(store, alice_api):
    begun = init(alice_api)
    store.send(begun["upload"], DATA)
    assert alice_api("DELETE", f"/api/models/{begun['model']['id']}").status == 200
    assert store.keys() == set()
    assert finalize(alice_api, begun).code == "NOT_FOUND"
    assert init(alice_api)["model"]["id"] != begun["model"]["id"]


# --- races ------------------------------------------------------------------------------------------------------------
def together(count, act):
    """Runs `act` in threads at once; what each returned or raised."""
    barrier = threading.Barrier(count)

    def one(index):
        try:
            barrier.wait(30)
            return act(index)
        except Exception as error:  # noqa: BLE001 - what it was is asserted on
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.django_db(transaction=True)
def test_one_finalize_wins(store, alice):
    api = login_as(alice)
    begun = init(api, sha256=sha256(DATA))
    store.send(begun["upload"], DATA)
    model_id = uuid.UUID(begun["model"]["id"])
    done = together(
        6,
        lambda _: (
            services.finalize(actor=ACTOR, owner_id=alice.pk, model_id=model_id, parts=None, now=timezone.now()).status
        ),
    )
    assert "ready" in done
    assert set(done) <= {"ready", "checking"}  # on S3 few calls of one user wait for the end
    assert finalize(api, begun).data["status"] == "ready"
    assert AuditEvent.objects.filter(action="model.finalize").count() == 1
    assert bytes_of(model_id) == DATA


@pytest.mark.django_db(transaction=True)
def test_one_row_for_inits_at_once(local, alice):
    api = login_as(alice)
    answers = together(6, lambda _: api("POST", "/api/models/init", init_body()).status)
    assert set(answers) == {201}
    assert AIModel.objects.count() == 1
    model = AIModel.objects.get()
    assert local.keys() == {model.upload_key}


@pytest.mark.django_db(transaction=True)
def test_delete_and_finalize_at_once(store, alice):
    api = login_as(alice)
    begun = init(api)
    store.send(begun["upload"], DATA)
    path = f"/api/models/{begun['model']['id']}"
    acts = [("POST", f"{path}/finalize"), ("DELETE", path)]
    finalized, deleted = (answer.status for answer in together(2, lambda index: login_as(alice)(*acts[index])))
    assert deleted == 200
    assert finalized in (200, 404, 409)
    model = AIModel.objects.get()
    assert model.deleted_at is not None
    assert store.keys() <= {model.object_key}


# --- made of bytes at hand --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size, code", [(0, "VALIDATION_ERROR"), (101, "PAYLOAD_TOO_LARGE")])
def test_bytes_at_hand_that_are_none_or_too_many(store, alice, monkeypatch, size, code):
    monkeypatch.setattr(services, "max_size", lambda: 100)
    with pytest.raises(services.DomainError) as refused:
        services.create_ready(
            actor=ACTOR, owner_id=alice.pk, facts=services.Facts("c", "1", "c.nef"), stream=io.BytesIO(b"x" * size),
            source=ModelSource.UPLOAD, now=timezone.now(),
        )  # fmt: skip
    assert refused.value.code == code
    assert store.keys() == set()
    assert not AIModel.objects.exists()


def test_bytes_at_hand_under_a_name_that_is_taken(store, alice):
    kept = ready(alice.pk)
    with pytest.raises(services.DomainError) as refused:
        ready(alice.pk)
    assert refused.value.code == "CONFLICT"
    assert store.keys() == {kept.object_key}


def test_a_commit_whose_answer_did_not_come(local, alice, monkeypatch):
    """The row may be there: its bytes must not go. If it is not, the reaper finds them."""

    def lost(*_args):
        raise OperationalError("no answer")

    monkeypatch.setattr(services, "_write_created", lost)
    with pytest.raises(OperationalError):
        ready(alice.pk)
    assert len(local.keys()) == 1
    monkeypatch.setattr(services, "_write_pending", lost)
    with pytest.raises(OperationalError):
        services.begin_upload(
            actor=ACTOR, owner_id=alice.pk, facts=services.Facts("n", "1", "f"), size=1, sha256="", base_url="http://x",
            now=timezone.now(),
        )  # fmt: skip
    assert len(local.keys()) == 2
