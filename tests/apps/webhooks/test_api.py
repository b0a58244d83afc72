"""The webhook routes: what they take, answer and refuse."""

import json
import re
import uuid

import pytest
from django.utils import timezone
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apps.audit.models import AuditEvent
from apps.common.outbound import Policy, check_url
from apps.common.sealing import unseal
from apps.webhooks import services, tasks
from apps.webhooks.api.serializers import UrlField
from apps.webhooks.models import DeliveryStatus, Event, Webhook, WebhookDelivery
from apps.webhooks.services import SEALED_FOR
from tests.apps.conftest import login_as
from tests.apps.webhooks.kit import SECRET, jobs, make

BODY = {"url": "https://hook.example.com/in?token=t0p", "events": ["device.online", "device.offline"]}


def create(api, **changes):
    return api("POST", "/api/webhooks", {**BODY, **changes})


def test_creating_shows_the_secret_once(alice, alice_api):
    answer = create(alice_api)
    assert answer.status == 201
    assert set(answer.data) == {"id", "url", "events", "secret"}
    assert (answer.data["url"], answer.data["events"]) == (BODY["url"], BODY["events"])
    secret = answer.data["secret"]
    assert secret.startswith("whsec_")
    assert len(secret) == 70
    row = Webhook.objects.get()
    assert (str(row.id), row.owner, row.enabled) == (answer.data["id"], alice, True)
    assert secret not in str(Webhook.objects.values())
    assert unseal(row.secret_sealed, purpose=SEALED_FOR) == secret
    for path in ("/api/webhooks", f"/api/webhooks/{row.id}"):
        shown = str(alice_api("GET", path).json)
        assert secret not in shown
        assert row.secret_sealed not in shown
    audit = AuditEvent.objects.get(action="webhook.create")
    assert (audit.actor, audit.object_id) == (str(alice.pk), str(row.id))
    assert audit.detail == {"to": "https://hook.example.com", "events": BODY["events"]}


def test_events_count_once_in_their_order(alice_api):
    answer = create(alice_api, events=["device.paired", "device.online", "device.paired"])
    assert answer.data["events"] == ["device.online", "device.paired"]


def test_every_event_can_be_asked_for(alice_api):
    assert create(alice_api, events=list(Event.values)).data["events"] == [
        "device.online", "device.offline", "device.paired", "device.unpaired", "deployment.finished",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "change,field",
    [
        ({"url": ""}, "url"),
        ({"url": None}, "url"),
        ({"url": 5}, "url"),
        ({"url": "https://example.com/" + "x" * 2048}, "url"),
        ({"url": "ftp://example.com/"}, "url"),
        ({"url": "https://user:pw@example.com/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://[::1]:8443/"}, "url"),
        ({"url": "https://169.254.169.254/latest/meta-data"}, "url"),
        ({"url": "https://localhost/"}, "url"),
        ({"url": "https://example.com:22/"}, "url"),
        ({"events": []}, "events"),
        ({"events": None}, "events"),
        ({"events": "device.online"}, "events"),
        ({"events": ["device.exploded"]}, "events.0"),
        ({"events": ["ping"]}, "events.0"),
        ({"events": [1]}, "events.0"),
        ({"events": ["device.online"] * 33}, "events"),
    ],
)
def test_a_bad_body(alice, alice_api, change, field):
    answer = create(alice_api, **change)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [field]
    existing = make(alice, "device.paired")
    answer = alice_api("PATCH", f"/api/webhooks/{existing.id}", change)
    assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
    assert list(answer.error["details"]) == [field]
    assert Webhook.objects.get().events == ["device.paired"]


def test_both_fields_are_needed(alice_api):
    answer = alice_api("POST", "/api/webhooks", {})
    assert sorted(answer.error["details"]) == ["events", "url"]


def test_plain_http_is_for_development(alice_api, settings):
    url = "http://hook.example.com/"
    assert create(alice_api, url=url).status == 201
    settings.VISIONA = {**settings.VISIONA, "ENV": "production"}
    answer = create(alice_api, url=url)
    assert answer.error["details"] == {"url": ["It must start with https://."]}


def test_private_addresses_where_they_are_allowed(alice_api, settings):
    settings.VISIONA = {**settings.VISIONA, "WEBHOOK_ALLOW_PRIVATE": True}
    assert create(alice_api, url="http://10.0.0.7:8080/").status == 201
    assert create(alice_api, url="http://169.254.169.254/").status == 400
    settings.VISIONA |= {"WEBHOOK_ALLOW_PRIVATE": False, "WEBHOOK_PRIVATE_NETWORKS": ("10.1.0.0/16",)}
    assert create(alice_api, url="https://10.1.0.1/").status == 201
    assert create(alice_api, url="https://10.2.0.1/").status == 400


def test_there_may_be_so_many(alice, alice_api, bob, settings):
    settings.VISIONA = {**settings.VISIONA, "QUOTA_WEBHOOKS": 2}
    make(bob, "device.online")
    assert [create(alice_api).status for _ in range(3)] == [201, 201, 409]
    assert create(alice_api).code == "QUOTA_EXCEEDED"


def test_the_list_is_ones_own_and_costs_two_queries(alice, alice_api, bob, django_assert_num_queries):
    make(bob, "device.online")
    made = [make(alice, "device.online") for _ in range(5)]
    with django_assert_num_queries(2):  # who asks, and the page
        answer = alice_api("GET", "/api/webhooks")
    assert [row["id"] for row in answer.data] == [str(row.id) for row in reversed(made)]
    assert answer.json["meta"]["total"] == 5
    assert set(answer.data[0]) == {
        "id", "url", "events", "enabled", "disabled_reason", "failing_since", "created_at", "updated_at",
    }  # fmt: skip
    page = alice_api("GET", "/api/webhooks?limit=2&ordering=created_at")
    assert [row["id"] for row in page.data] == [str(row.id) for row in made[:2]]
    assert page.json["meta"]["next"].startswith("http")


@pytest.mark.parametrize("query", ["?x=1", "?limit=0", "?ordering=url", "?cursor=zz", "?limit=201"])
def test_a_bad_query(alice, alice_api, query):
    hook = make(alice, "device.online")
    for path in ("/api/webhooks", f"/api/webhooks/{hook.id}/deliveries"):
        assert alice_api("GET", path + query).code == "VALIDATION_ERROR"


def test_changing(alice, alice_api):
    hook = make(alice, "device.online", enabled=False, disabled_reason="failing", failing_since=timezone.now())
    path = f"/api/webhooks/{hook.id}"
    answer = alice_api("PATCH", path, {"url": "https://new.example.com/", "events": ["device.paired"], "enabled": True})
    assert answer.status == 200
    shown = answer.data
    assert (shown["url"], shown["events"], shown["enabled"]) == ("https://new.example.com/", ["device.paired"], True)
    assert (shown["disabled_reason"], shown["failing_since"]) == ("", None)
    assert alice_api("PATCH", path, {}).data == alice_api("GET", path).data == shown
    assert alice_api("PATCH", path, {"enabled": "no"}).error["details"].keys() == {"enabled"}
    assert [row.detail["fields"] for row in AuditEvent.objects.filter(action="webhook.change")] == [
        ["enabled", "events", "url"]
    ]


def test_deleting(alice, alice_api):
    hook = make(alice, "device.online")
    services.emit(owner_id=alice.pk, event="device.online", data={}, now=timezone.now())
    answer = alice_api("DELETE", f"/api/webhooks/{hook.id}")
    assert (answer.status, answer.data) == (200, None)
    assert (Webhook.objects.count(), WebhookDelivery.objects.count()) == (0, 0)
    assert alice_api("DELETE", f"/api/webhooks/{hook.id}").status == 404
    assert AuditEvent.objects.filter(action="webhook.delete").count() == 1


def test_a_new_secret(alice, alice_api):
    hook = make(alice, "device.online")
    answer = alice_api("POST", f"/api/webhooks/{hook.id}/secret")
    assert answer.status == 200
    assert set(answer.data) == {"id", "url", "events", "secret"}
    row = Webhook.objects.get()
    assert unseal(row.secret_sealed, purpose=SEALED_FOR) == answer.data["secret"] != SECRET
    assert unseal(row.old_secret_sealed, purpose=SEALED_FOR) == SECRET
    assert answer.data["secret"] not in str(list(AuditEvent.objects.values()))


def test_the_log(alice, alice_api, bob, django_assert_num_queries):
    hook, other = make(alice, "device.online"), make(alice, "device.paired")
    for name in ("device.online", "device.online", "device.paired"):
        services.emit(owner_id=alice.pk, event=name, data={"n": 1}, now=timezone.now())
    path = f"/api/webhooks/{hook.id}/deliveries"
    with django_assert_num_queries(3):
        answer = alice_api("GET", path)
    assert answer.json["meta"]["total"] == 2
    row = WebhookDelivery.objects.filter(webhook=hook).latest("created_at")
    shown = answer.data[0]
    assert (shown["id"], shown["event_id"]) == (str(row.id), str(row.event_id))
    assert (shown["event"], shown["status"], shown["attempts"]) == ("device.online", "pending", 0)
    assert set(shown) == {
        "id", "event", "event_id", "status", "attempts", "response_status", "error", "next_attempt_at",
        "delivered_at", "created_at",
    }  # fmt: skip
    assert alice_api("GET", path + "?status=delivered").data == []
    assert len(alice_api("GET", path + "?event=device.online&status=pending&limit=1").data) == 1
    assert alice_api("GET", path + "?status=lost").code == "VALIDATION_ERROR"
    assert len(alice_api("GET", f"/api/webhooks/{other.id}/deliveries").data) == 1
    assert login_as(bob)("GET", path).status == 404


def test_a_ping(alice, alice_api):
    hook = make(alice, "device.online")
    answer = alice_api("POST", f"/api/webhooks/{hook.id}/ping")
    assert (answer.status, answer.data["event"], answer.data["status"]) == (201, "ping", "pending")
    body = json.loads(WebhookDelivery.objects.get().body)
    assert (body["event"], body["data"]) == ("ping", {"webhook_id": str(hook.id)})
    assert jobs() == [{"delivery_id": answer.data["id"], "attempt": 0}]
    pings = [alice_api("POST", f"/api/webhooks/{hook.id}/ping") for _ in range(10)]
    statuses = [answer.status for answer in pings]
    assert statuses == [201] * 9 + [429]
    last = pings[-1].headers
    assert (last["RateLimit-Limit"], last["RateLimit-Remaining"], last["RateLimit-Reset"]) == ("10", "0", "60")
    assert last["Retry-After"] == "60"
    trail = AuditEvent.objects.filter(action="webhook.ping").order_by("id")
    assert [row.detail["delivery"] for row in trail] == [one.data["id"] for one in (answer, *pings[:9])]
    assert {(row.actor, row.object_id, row.detail["to"]) for row in trail} == {
        (str(alice.pk), str(hook.id), hook.origin)
    }


def test_a_disabled_one_is_not_pinged(alice, alice_api):
    hook = make(alice, "device.online", enabled=False)
    assert alice_api("POST", f"/api/webhooks/{hook.id}/ping").code == "INVALID_STATE"


def test_redelivering(alice, alice_api):
    hook, other = make(alice, "device.online"), make(alice, "device.paired")
    services.emit(owner_id=alice.pk, event="device.online", data={}, now=timezone.now())
    row = WebhookDelivery.objects.get()
    path, body = f"/api/webhooks/{hook.id}/redeliver", {"delivery_id": str(row.id)}
    assert alice_api("POST", path, body).code == "INVALID_STATE"
    WebhookDelivery.objects.update(status=DeliveryStatus.FAILED, attempts=11, next_attempt_at=None)
    answer = alice_api("POST", path, body)
    assert answer.status == 200
    assert (answer.data["status"], answer.data["event_id"]) == ("pending", str(row.event_id))
    assert jobs()[-1] == {"delivery_id": str(row.id), "attempt": 11}
    trail = AuditEvent.objects.get(action="webhook.redeliver")
    assert (trail.actor, trail.object_id) == (str(alice.pk), str(hook.id))
    assert trail.detail == {"to": hook.origin, "delivery": str(row.id), "event": "device.online"}
    assert alice_api("POST", f"/api/webhooks/{other.id}/redeliver", body).status == 404
    assert alice_api("POST", path, {"delivery_id": str(uuid.uuid4())}).status == 404
    assert list(alice_api("POST", path, {"delivery_id": "x"}).error["details"]) == ["delivery_id"]
    Webhook.objects.update(enabled=False)
    assert alice_api("POST", path, body).code == "INVALID_STATE"
    assert AuditEvent.objects.filter(action="webhook.redeliver").count() == 1


def test_the_end_of_an_account(alice, bob):
    make(alice, "device.online")
    make(bob, "device.online")
    services.emit(owner_id=alice.pk, event="device.online", data={}, now=timezone.now())
    tasks.delete_all(user_id=str(alice.pk))
    assert Webhook.objects.get().owner == bob
    assert WebhookDelivery.objects.count() == 0


@pytest.fixture
def staff(client, make_user):
    sam = make_user("sam@example.com", is_staff=True, is_superuser=True)
    client.force_login(sam)
    return client


def test_the_admin_shows_no_secret_and_no_token_in_a_url(staff, alice):
    hook = make(alice, "device.online", url=BODY["url"])
    services.emit(owner_id=alice.pk, event="device.online", data={}, now=timezone.now())
    row = WebhookDelivery.objects.get()
    for path in (
        "webhook/", f"webhook/{hook.id}/change/", "webhook/?q=alice", "webhook/?enabled__exact=1",
        "webhookdelivery/", f"webhookdelivery/{row.id}/change/", "webhookdelivery/?status__exact=pending&q=alice",
    ):  # fmt: skip
        page = staff.get(f"/admin/webhooks/{path}")
        assert page.status_code == 200, path
        text = page.content.decode()
        assert "hook.example.com" in text
        for secret in (SECRET, hook.secret_sealed, "t0p"):
            assert secret not in text, path


def test_an_operator_switches_one_off_and_on(staff, alice):
    hook = make(alice, "device.online")
    for name, on in (("disable", False), ("enable", True)):
        answer = staff.post("/admin/webhooks/webhook/", {"action": name, "_selected_action": [str(hook.id)]})
        assert answer.status_code == 302
        hook.refresh_from_db()
        assert hook.enabled is on
    assert AuditEvent.objects.filter(action="webhook.change", actor_label="sam@example.com").count() == 2


@given(st.from_regex(UrlField.schema_pattern, fullmatch=True))
@settings(max_examples=200, deadline=None)
def test_what_the_schema_takes_for_a_url_is_one(url):
    host = url.removeprefix("https://")
    assume(len(url) <= 2048 and len(re.split(r"[:/?]", host)[0]) <= 253)
    assume(not re.match(r"[^/?:]*\.(localhost|local|internal|localdomain|home\.arpa)([:/?]|$)", host, re.IGNORECASE))
    check_url(url, Policy())


@pytest.mark.parametrize(
    "url", ["https://127.0.0.1/", "https://localhost/", "https://u@example.com/", "https://example.com:22/", "x",
            "https://example.com/#a", "https://example.com:65536/", "https://example.com/ a"],
)  # fmt: skip
def test_what_the_schema_takes_for_none(url):
    assert not re.search(UrlField.schema_pattern, url)
