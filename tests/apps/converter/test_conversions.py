"""Conversions: ordered, sent to the converter, reported on, ended."""

import datetime as dt
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.converter import services, tasks
from apps.converter.models import Conversion
from apps.model_registry import services as registry
from apps.model_registry.models import AIModel
from apps.webhooks.signing import verify
from tests.apps.conftest import login_as
from tests.apps.converter.kit import SECRET, report
from tests.apps.converter.steps import MADE, RESULT, bytes_of, order, sent, shown, submit
from tests.apps.model_registry.kit import DATA, init, ready
from tests.apps.stores import request, sha256
from tests.apps.webhooks.kit import jobs


# --- ordering ---------------------------------------------------------------------------------------------------------
def test_the_order_of_refusals(alice, bob, alice_api, local):
    """404, then 409, then 501 (api.md)."""
    pending, whole, foreign = init(alice_api)["model"], ready(alice.pk, "a"), ready(bob.pk, "b")

    def ask(model_id):
        answer = alice_api("POST", "/api/conversions", {"model_id": str(model_id), "chip": "KL720"})
        return answer.status, answer.code

    assert ask(uuid.uuid4()) == ask(foreign.id) == (404, "NOT_FOUND")
    assert ask(pending["id"]) == (409, "INVALID_STATE")
    assert ask(whole.id) == (501, "NOT_IMPLEMENTED")
    assert Conversion.objects.count() == 0


@pytest.mark.parametrize(
    "body,field",
    [
        ({"chip": "KL720"}, "model_id"),
        ({"model_id": "x", "chip": "KL720"}, "model_id"),
        ({"model_id": 5, "chip": "KL720"}, "model_id"),
        ({"model_id": str(uuid.uuid4())}, "chip"),
        ({"model_id": str(uuid.uuid4()), "chip": ""}, "chip"),
        ({"model_id": str(uuid.uuid4()), "chip": "x" * 65}, "chip"),
        ({"model_id": str(uuid.uuid4()), "chip": "a\nb"}, "chip"),
    ],
)
def test_a_bad_body(alice_api, converter, body, field):
    answer = alice_api("POST", "/api/conversions", body)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [field]


def test_an_order(alice, alice_api, converter, model):
    answer = alice_api("POST", "/api/conversions", {"model_id": str(model.id), "chip": "KL720"})
    assert answer.status == 201
    assert set(answer.data) == {
        "id", "model_id", "chip", "status", "bytes_done", "bytes_total", "error", "result_model_id", "created_at",
        "updated_at", "finished_at",
    }  # fmt: skip
    assert (answer.data["status"], answer.data["bytes_total"]) == ("queued", len(DATA))
    assert jobs("converter.submit") == [{"conversion_id": answer.data["id"], "attempt": 0}]
    assert alice_api("GET", f"/api/conversions/{answer.data['id']}").data == answer.data
    assert AuditEvent.objects.get(action="conversion.create").object_id == answer.data["id"]


def test_a_built_in_model_may_be_converted(alice_api, converter, local):
    assert order(alice_api, ready(None, "builtin")).owner.email == "alice@example.com"


def test_so_many_at_once(alice_api, converter, model, monkeypatch):
    monkeypatch.setattr(services, "MAX_OPEN", 2)
    order(alice_api, model)
    order(alice_api, model)
    answer = alice_api("POST", "/api/conversions", {"model_id": str(model.id), "chip": "KL720"})
    assert (answer.status, answer.code) == (409, "CONFLICT")


def test_the_list(alice, bob, alice_api, converter, model, django_assert_num_queries):
    made = [order(alice_api, model, chip) for chip in ("KL520", "KL720", "KL730")]
    other = ready(alice.pk, "other")
    with django_assert_num_queries(2):
        answer = alice_api("GET", "/api/conversions")
    assert [row["id"] for row in answer.data] == [str(each.id) for each in reversed(made)]
    assert answer.json["meta"]["total"] == 3
    assert len(alice_api("GET", "/api/conversions?limit=1").data) == 1
    assert alice_api("GET", "/api/conversions?status=done").data == []
    assert len(alice_api("GET", f"/api/conversions?status=queued&model_id={model.id}").data) == 3
    assert alice_api("GET", f"/api/conversions?model_id={other.id}").data == []
    assert login_as(bob)("GET", "/api/conversions").data == []
    for query in ("?x=1", "?status=lost", "?model_id=x", "?ordering=chip"):
        assert alice_api("GET", "/api/conversions" + query).code == "VALIDATION_ERROR"


# --- sending the order ------------------------------------------------------------------------------------------------
def test_what_the_converter_is_sent(alice_api, converter, model):
    conversion = order(alice_api, model)
    tasks.submit(conversion_id=str(conversion.id), attempt=0)
    _, headers, body = converter.got[0]
    assert verify(headers["X-VisionA-Signature"], [SECRET], body, int(time.time()))
    told = json.loads(body)
    assert set(told) == {"id", "chip", "source", "callback_url"}
    assert (told["id"], told["chip"]) == (str(conversion.id), "KL720")
    assert told["callback_url"] == f"http://testserver/api/conversions/{conversion.id}/callback"
    assert set(told["source"]) == {"url", "expires_at", "filename", "format", "size", "sha256"}
    assert (told["source"]["size"], told["source"]["sha256"]) == (len(DATA), sha256(DATA))
    assert request("GET", told["source"]["url"]).body == DATA
    assert shown(alice_api, conversion)["status"] == "running"
    assert submit(conversion) == "done"
    assert len(converter.got) == 1


@pytest.mark.parametrize("status", [302, 408, 429, 500, 503])
def test_a_converter_that_cannot_now(alice_api, converter, model, status):
    converter.answer = status
    conversion = order(alice_api, model)
    assert submit(conversion) == "retry"
    assert (conversion.status, conversion.attempts) == ("queued", 1)
    assert jobs("converter.submit")[-1] == {"conversion_id": str(conversion.id), "attempt": 1}
    converter.answer = 200
    assert submit(conversion, 1) == "taken"


def test_a_slow_converter_holds_a_few_places_of_a_worker_only(alice_api, converter, model, monkeypatch):
    """What finds no place is no attempt: it comes a moment later."""
    conversions = [order(alice_api, model) for _ in range(services.AT_ONCE + 1)]
    waiting, became = iter(conversions[1:]), []

    def slow(body, now, send=services._send):
        """While this order is under way the next one's job begins."""
        became.extend(submit(each) for each in [next(waiting, None)] if each)
        return send(body, now)

    monkeypatch.setattr(services, "_send", slow)
    assert submit(conversions[0]) == "taken"
    assert sorted(became) == ["busy", "taken", "taken"]
    last = conversions[-1]
    assert (last.status, last.attempts) == ("queued", 0)
    again = {"conversion_id": str(last.id), "attempt": 0}
    assert jobs("converter.submit").count(again) == 2, "the first, and the one that comes a moment later"
    monkeypatch.undo()
    assert submit(last) == "taken"


def test_a_converter_that_will_not(alice_api, converter, model):
    converter.answer = 422
    conversion = order(alice_api, model)
    assert submit(conversion) == "failed"
    assert (conversion.status, conversion.error) == ("failed", "the converter answered 422")


def test_a_converter_that_is_away(alice_api, converter, model, settings, free_port):
    settings.VISIONA = {**settings.VISIONA, "CONVERTER_URL": f"http://127.0.0.1:{free_port()}/"}
    conversion = order(alice_api, model)
    results = [submit(conversion, number) for number in range(services.ATTEMPTS)]
    assert results == ["retry"] * 7 + ["failed"]
    assert conversion.error == "the converter does not answer: connection refused"
    assert conversion.finished_at is not None


def test_what_changed_before_the_order_was_sent(alice, alice_api, converter, model, settings):
    first, second, third = (order(alice_api, model) for _ in range(3))
    assert alice_api("DELETE", f"/api/conversions/{first.id}").status == 200
    assert submit(first) == "done"
    alice.is_active = False
    alice.save()
    assert submit(second) == "failed"
    alice.is_active = True
    alice.save()
    assert alice_api("DELETE", f"/api/models/{model.id}").status == 200
    assert submit(third) == "failed"
    assert third.error == "the model was deleted"
    assert converter.got == []


# --- the whole way ----------------------------------------------------------------------------------------------------
def test_from_order_to_new_model(store, alice, alice_api, converter):
    model = ready(alice.pk, "yolo", description="d")
    conversion = order(alice_api, model)
    submit(conversion)
    running = report(conversion.id, {"status": "running", "bytes_done": 100})
    assert (running.status, running.data["status"]) == (200, "running")
    assert request("GET", running.data["source"]["url"]).body == DATA
    assert shown(alice_api, conversion)["bytes_done"] == 100
    told = report(conversion.id, MADE)
    assert (told.status, told.data["status"]) == (200, "running")
    result = alice_api("GET", f"/api/models/{shown(alice_api, conversion)['result_model_id']}").data
    assert (result["status"], result["source"]) == ("pending", "converted")
    early = report(conversion.id, {"status": "done"})  # nothing was sent yet
    assert (early.code, early.error.get("details")) == ("INVALID_STATE", None)
    assert store.send(told.data["upload"], RESULT).status in (200, 201)
    ended = report(conversion.id, {"status": "done"})
    assert (ended.status, ended.data) == (200, {"status": "done", "model_id": result["id"]})
    new = AIModel.objects.get(id=result["id"])
    assert (new.status, new.source, new.name, new.version, new.chips) == (
        "ready", "converted", "yolo", "1-KL720", ["KL720"],
    )  # fmt: skip
    assert (new.filename, new.format, new.description, new.owner) == ("yolo.vtq", "vtq", "d", alice)
    assert bytes_of(new) == RESULT
    seen = shown(alice_api, conversion)
    assert (seen["status"], seen["bytes_done"], seen["error"]) == ("done", len(DATA), "")
    assert seen["finished_at"] is not None
    assert report(conversion.id, {"status": "done"}).data == ended.data
    assert AuditEvent.objects.filter(action="conversion.done").count() == 1
    assert alice_api("GET", "/api/models?source=converted").data[0]["id"] == result["id"]


def test_a_version_that_is_free(alice_api, converter, model, local, alice):
    versions = []
    for _ in range(3):
        conversion = sent(alice_api, local, model)
        assert report(conversion.id, {"status": "done"}).status == 200
        conversion.refresh_from_db()
        versions.append(conversion.result.version)
    assert versions == ["1-KL720", "1-KL720-2", "1-KL720-3"]
    long = ready(alice.pk, "long", version="v" * 64)
    assert [sent(alice_api, local, long).result.version for _ in range(2)] == ["v" * 62 + "-2", "v" * 62 + "-3"]


def test_a_result_that_is_reported_again_is_the_same_model(alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    again = report(conversion.id, MADE)
    assert again.status == 200
    assert AIModel.objects.filter(source="converted").count() == 1
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"  # the upload has begun anew
    assert local.send(again.data["upload"], RESULT).status == 201
    assert report(conversion.id, {"status": "done"}).status == 200


def test_bytes_that_are_not_those_reported(alice_api, converter, model, local):
    conversion = order(alice_api, model)
    submit(conversion)
    upload = report(conversion.id, MADE).data["upload"]
    assert local.send(upload, b"x" * len(RESULT)).status in (201, 409)
    answer = report(conversion.id, {"status": "done"})
    assert (answer.status, answer.code) == (409, "INVALID_STATE")
    assert shown(alice_api, conversion)["status"] == "running"
    assert local.send(report(conversion.id, MADE).data["upload"], RESULT).status == 201
    assert report(conversion.id, {"status": "done"}).status == 200


def test_it_could_not_be_converted(alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    answer = report(conversion.id, {"status": "failed", "error": "no such layer"})
    assert (answer.status, answer.data) == (200, {"status": "failed"})
    seen = shown(alice_api, conversion)
    assert (seen["status"], seen["error"]) == ("failed", "no such layer")
    assert AIModel.objects.get(id=conversion.result_id).deleted_at is not None
    assert report(conversion.id, {"status": "failed", "error": "x"}).status == 200
    assert shown(alice_api, conversion)["error"] == "no such layer"
    for late in ({"status": "running"}, MADE, {"status": "done"}):
        answer = report(conversion.id, late)
        assert (answer.code, answer.error["details"]) == ("INVALID_STATE", {"status": ["failed"]})


# --- races ------------------------------------------------------------------------------------------------------------
def test_cancelling(alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    assert alice_api("DELETE", f"/api/conversions/{conversion.id}").status == 200
    assert alice_api("DELETE", f"/api/conversions/{conversion.id}").status == 200
    assert shown(alice_api, conversion)["status"] == "cancelled"
    assert AIModel.objects.get(id=conversion.result_id).deleted_at is not None
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"
    finished = sent(alice_api, local, model)
    report(finished.id, {"status": "done"})
    assert alice_api("DELETE", f"/api/conversions/{finished.id}").code == "INVALID_STATE"


def test_the_model_is_deleted_meanwhile(alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    assert alice_api("DELETE", f"/api/models/{model.id}").status == 200
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"
    seen = shown(alice_api, conversion)
    assert (seen["status"], seen["error"]) == ("failed", "the model was deleted")
    assert AIModel.objects.get(id=conversion.result_id).deleted_at is not None


def test_the_new_model_is_deleted_meanwhile(alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    assert alice_api("DELETE", f"/api/models/{conversion.result_id}").status == 200
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"
    assert shown(alice_api, conversion)["error"] == "the new model was deleted"


def test_its_owner_is_disabled_meanwhile(alice, alice_api, converter, model, local):
    conversion = sent(alice_api, local, model)
    alice.is_active = False
    alice.save()
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"
    conversion.refresh_from_db()
    assert (conversion.status, conversion.error) == ("failed", "the account is disabled")


def test_cancelled_while_the_bytes_are_checked(alice, alice_api, converter, model, local, monkeypatch):
    conversion = sent(alice_api, local, model)
    finalize = registry.finalize

    def slow(**given):
        found = finalize(**given)
        services.cancel_conversion(
            actor=services.CONVERTER, owner_id=alice.pk, conversion_id=conversion.id, now=timezone.now()
        )
        return found

    monkeypatch.setattr(registry, "finalize", slow)
    assert report(conversion.id, {"status": "done"}).code == "INVALID_STATE"
    assert shown(alice_api, conversion)["status"] == "cancelled"
    assert AIModel.objects.get(id=conversion.result_id).deleted_at is not None


@pytest.mark.django_db(transaction=True)
def test_done_twice_at_once_is_done_once(alice_api, converter, model, local):
    conversion, now = sent(alice_api, local, model), int(time.time())

    def tell(number):
        try:
            return report(conversion.id, {"status": "done"}, at=now - number).data  # none is another's repetition
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(tell, range(4)))
    assert answers == [{"status": "done", "model_id": str(conversion.result_id)}] * 4
    assert AuditEvent.objects.filter(action="conversion.done").count() == 1
    assert AIModel.objects.filter(source="converted", status="ready").count() == 1


def test_one_that_never_ends_has_failed(alice_api, converter, model, local):
    queued, late = order(alice_api, model), sent(alice_api, local, model)
    now = timezone.now()
    assert services.expire(now=now + dt.timedelta(minutes=59)) == 0
    assert services.expire(now=now + dt.timedelta(minutes=61)) == 2
    assert services.expire(now=now + dt.timedelta(minutes=61)) == 0
    for conversion in (queued, late):
        assert shown(alice_api, conversion)["error"] == "the converter did not end it in time"
    assert report(late.id, {"status": "done"}).code == "INVALID_STATE"
    assert AIModel.objects.get(id=late.result_id).deleted_at is not None
    tasks.expire(timestamp=0)


# --- the admin --------------------------------------------------------------------------------------------------------
def test_an_operator_finds_and_cancels(client, make_user, alice_api, converter, model):
    conversion = order(alice_api, model)
    client.force_login(make_user("sam@example.com", is_staff=True, is_superuser=True))
    for path in ("", "?q=alice", "?status__exact=queued", f"{conversion.id}/change/"):
        page = client.get(f"/admin/converter/conversion/{path}")
        assert page.status_code == 200
        assert "KL720" in page.content.decode()
    answer = client.post(
        "/admin/converter/conversion/",
        {"action": "cancel", "confirmed": "yes", "_selected_action": [str(conversion.id)]},
    )
    assert answer.status_code == 302
    assert shown(alice_api, conversion)["status"] == "cancelled"
