"""Who may report on a conversion, and what a report may say."""

import io
import time
import uuid

import pytest
from django.test import Client

from apps.model_registry import services as registry
from apps.webhooks.signing import sign, verify
from tests.apps.converter.kit import SECRET, report
from tests.apps.converter.steps import MADE, order, shown, submit
from tests.apps.model_registry.kit import DATA


def test_forged_old_and_repeated_reports(alice_api, converter, model, settings):
    conversion = order(alice_api, model)
    body, now = {"status": "failed", "error": "x"}, int(time.time())
    for answer in (
        report(conversion.id, body, secret="another"),
        report(conversion.id, body, at=now - 301),
        report(conversion.id, body, at=now + 400),
        alice_api("POST", f"/api/conversions/{conversion.id}/callback", body),
        alice_api("POST", f"/api/conversions/{conversion.id}/callback"),
    ):
        assert (answer.status, answer.code) == (403, "SIGNATURE_INVALID")
    assert shown(alice_api, conversion)["status"] == "queued"
    assert report(conversion.id, {"status": "running"}, at=now).status == 200
    repeated = report(conversion.id, {"status": "running"}, at=now)
    assert (repeated.status, repeated.code) == (403, "SIGNATURE_INVALID")
    assert report(conversion.id, {"status": "running"}, at=now - 1).status == 200


def test_a_repeated_report_is_known_however_its_signature_is_spelt(alice_api, converter, model):
    conversion, raw, now = order(alice_api, model), b'{"status": "running"}', int(time.time())
    signature = sign([SECRET], raw, now)
    path = f"/api/conversions/{conversion.id}/callback"
    assert alice_api("POST", path, raw, x_visiona_signature=signature).status == 200
    for spelt in (signature, signature.replace(",", " , "), signature + ",v1=00", signature + ",a=b", "," + signature):
        answer = alice_api("POST", path, raw, x_visiona_signature=spelt)
        assert (answer.status, answer.code) == (403, "SIGNATURE_INVALID")


def test_a_report_that_names_its_conversion_is_of_no_other(alice_api, converter, model):
    one, two = order(alice_api, model), order(alice_api, model)
    now = int(time.time())
    body = {"id": str(one.id), "status": "failed", "error": "x"}
    answer = report(two.id, body, at=now)
    assert (answer.status, answer.code) == (403, "SIGNATURE_INVALID")
    assert shown(alice_api, two)["status"] == "queued"
    assert report(one.id, {"id": str(one.id), "status": "running"}, at=now).status == 200
    assert report(two.id, {"id": str(two.id), "status": "running"}, at=now).status == 200


def test_the_secret_can_be_changed_without_a_stop(alice_api, converter, model, settings):
    settings.VISIONA = {**settings.VISIONA, "CONVERTER_SECRET": ("new", SECRET)}
    conversion = order(alice_api, model)
    submit(conversion)
    _, headers, body = converter.got[0]
    assert verify(headers["X-VisionA-Signature"], ["new"], body, int(time.time()))
    assert report(conversion.id, {"status": "running"}).status == 200
    assert report(conversion.id, {"status": "running"}, secret="new").status == 200


def test_without_a_converter_nobody_reports(alice_api, converter, model, settings):
    conversion = order(alice_api, model)
    settings.VISIONA = {**settings.VISIONA, "CONVERTER_URL": "", "CONVERTER_SECRET": ()}
    assert report(conversion.id, {"status": "done"}).code == "SIGNATURE_INVALID"


@pytest.mark.parametrize(
    "body,fields",
    [
        ({}, ["status"]),
        ({"status": "finished"}, ["status"]),
        ({"status": "converted"}, ["filename", "size"]),
        ({**MADE, "size": 0}, ["size"]),
        ({**MADE, "size": "5"}, ["size"]),
        ({**MADE, "filename": "a/b"}, ["filename"]),
        ({**MADE, "sha256": "x"}, ["sha256"]),
        ({**MADE, "format": "a b"}, ["format"]),
        ({"status": "running", "bytes_done": -1}, ["bytes_done"]),
        ({"status": "failed", "error": "x" * 501}, ["error"]),
        ({"status": "done", "parts": [{"number": 0, "etag": "x"}]}, ["parts.0.number"]),
        ([], ["non_field_errors"]),
    ],
)
def test_a_bad_report(alice_api, converter, model, body, fields):
    conversion = order(alice_api, model)
    answer = report(conversion.id, body)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert sorted(answer.error["details"]) == fields


def test_a_report_of_nothing(converter, db):
    assert report(uuid.uuid4(), {"status": "running"}).status == 404
    assert report("x", {"status": "running"}).status == 404


def test_a_result_that_is_too_large(alice_api, converter, model):
    conversion = order(alice_api, model)
    answer = report(conversion.id, {**MADE, "size": registry.max_size() + 1})
    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


class Unread(io.BytesIO):
    """A body of which nobody may ask a byte."""

    def read(self, *_size):
        raise AssertionError("the body was asked for")


def test_a_report_that_is_announced_too_large_is_413_unread(db):
    answer = Client().generic(
        "POST",
        f"/api/conversions/{uuid.uuid4()}/callback",
        **{"CONTENT_TYPE": "application/json", "CONTENT_LENGTH": str((1 << 20) + 1), "wsgi.input": Unread()},
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


def test_progress_goes_forward_alone(alice_api, converter, model):
    conversion = order(alice_api, model)
    for told, seen in ((10, 10), (5, 10), (10**12, len(DATA))):
        report(conversion.id, {"status": "running", "bytes_done": told})
        assert shown(alice_api, conversion)["bytes_done"] == seen
