"""The internal routes as HTTP: the secret, the method, the contract, the body."""

import json
import uuid

import pytest
from django.conf import settings

from tests.apps.internal.kit import NODE, credential, event, fact

ROUTES = ["authenticate", "heartbeat", "events"]
SESSION = "0198c000-0000-7000-8000-0000000000aa"
ADMITTED = {"device_id": str(uuid.uuid4()), "user_id": str(uuid.uuid4()), "epoch": 1}
HEARTBEAT = {
    "node": NODE,
    "url": "http://127.0.0.1:1",
    "version": "1",
    "started_at": "2026-01-01T00:00:00+00:00",
    "sessions_count": 0,
    "streams_count": 0,
    "draining": False,
    "sessions": None,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic {secret}", "{secret}", "Bearer {secret}x", "Bearer é"]
)
def test_without_the_secret(anonymous, db, route, given):
    value = given.format(secret=settings.VISIONA["INTERNAL_SECRET"][0])
    answer = anonymous("POST", f"/internal/tunnel/{route}", b"{", authorization=value)
    assert (answer.status, answer.code) == (401, "UNAUTHENTICATED")


@pytest.mark.parametrize("route", ROUTES)
def test_a_login_is_no_secret(alice_api, route):
    assert alice_api("POST", f"/internal/tunnel/{route}", {}).status == 401


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
def test_another_method(daemon, route, method):
    secret = settings.VISIONA["INTERNAL_SECRET"][0]
    answer = daemon.api(method, f"/internal/tunnel/{route}", authorization=f"Bearer {secret}")
    assert (answer.status, answer.code, answer.headers["Allow"]) == (405, "METHOD_NOT_ALLOWED", "POST")


def test_every_secret_of_the_list_is_accepted(daemon, settings):
    settings.VISIONA = {**settings.VISIONA, "INTERNAL_SECRET": ("new-secret", "old-secret")}
    for secret in ("new-secret", "old-secret"):
        assert daemon.post("heartbeat", HEARTBEAT, authorization=f"Bearer {secret}").status == 200


@pytest.mark.parametrize("version,status", [("1", 200), ("0", 200), ("2", 400), ("x", 400), ("-1", 400)])
def test_the_contract_of_now_and_of_one_before(daemon, version, status):
    assert daemon.post("heartbeat", HEARTBEAT, x_visiona_contract=version).status == status


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[]", b"null", b'"x"', b"{}", b'{"node": 1}', b'{"node": "x"}'])
def test_a_body_that_is_no_message(daemon, route, body):
    answer = daemon.post(route, body)
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


def test_a_body_that_is_too_large(daemon, monkeypatch):
    monkeypatch.setattr("apps.proxy.internal.views.MAX_BODY_BYTES", 64)
    answer = daemon.post("heartbeat", json.dumps({"node": "x" * 64}).encode())
    assert (answer.status, answer.code) == (413, "PAYLOAD_TOO_LARGE")


@pytest.mark.parametrize("count", [0, 257])
def test_too_few_or_too_many_credentials(daemon, count):
    asks = [credential("x")] * count
    answer = daemon.post("authenticate", {"node": NODE, "credentials": asks})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")
    assert answer.error["details"] == {"body.credentials": ["Must have 1 to 256 items."]}


@pytest.mark.parametrize(
    "field,value",
    [
        ("token", None),
        ("token", 1),
        ("token", "x" * 5000),
        ("session", "x"),
        ("session", None),
        ("address", 1),
        ("address", "1" * 65),
        ("agent", 1),
        ("features", "keepalive"),
        ("features", [1]),
        ("features", ["x"] * 65),
        ("instance", {}),
        ("serial", []),
        ("request_id", "r" * 65),
    ],
)
def test_a_malformed_credential(daemon, field, value):
    answer = daemon.post("authenticate", {"node": NODE, "credentials": [{**credential("x"), field: value}]})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")
    assert list(answer.error["details"]) == [f"credentials.0.{field}"]


@pytest.mark.parametrize(
    "field,value",
    [
        ("node", "x"),
        ("url", ""),
        ("url", "ftp://x"),
        ("url", "http://a b"),
        ("url", "http://" + "x" * 300),
        ("version", 1),
        ("started_at", "yesterday"),
        ("started_at", "2026-01-01T00:00:00"),
        ("sessions_count", -1),
        ("sessions_count", "1"),
        ("sessions_count", True),
        ("streams_count", 1.5),
        ("draining", 1),
        ("sessions", {}),
        ("sessions", [1]),
    ],
)
def test_a_malformed_heartbeat(daemon, field, value):
    answer = daemon.post("heartbeat", {**HEARTBEAT, field: value})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST")


@pytest.mark.parametrize(
    "field,value",
    [
        ("session", ""),
        ("device_id", "x"),
        ("user_id", 1),
        ("epoch", -1),
        ("epoch", 1 << 63),
        ("connected_at", ""),
        ("features", None),
        ("rtt_ms", "fast"),
        ("bytes_in", None),
    ],
)
def test_a_malformed_session_in_the_full_list(daemon, field, value):
    listed = [{**fact(ADMITTED, SESSION), field: value}]
    answer = daemon.post("heartbeat", {**HEARTBEAT, "sessions": listed})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST"), answer.json


@pytest.mark.parametrize(
    "field,value",
    [
        ("type", "exploded"),
        ("device_id", "x"),
        ("session", "x"),
        ("epoch", "1"),
        ("at", "now"),
        ("reason", "r" * 201),
        ("code", "4401"),
        ("code", 10_000),
        ("bytes_in", -1),
    ],
)
def test_a_malformed_event(daemon, field, value):
    told = [{**event("disconnected", ADMITTED, SESSION), field: value}]
    answer = daemon.post("events", {"node": NODE, "events": told})
    assert (answer.status, answer.code) == (400, "BAD_REQUEST"), answer.json


def test_too_many_events(daemon):
    told = [event("connected", ADMITTED, SESSION)] * 1001
    assert daemon.post("events", {"node": NODE, "events": told}).status == 400
