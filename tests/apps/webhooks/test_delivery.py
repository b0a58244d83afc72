"""How deliveries go out: signed, recorded, tried again, given up."""

import datetime as dt
import json
import threading
import time
import uuid
from contextlib import ExitStack

import pytest
from django.db import connection
from django.utils import timezone

from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.common.sealing import seal, unseal
from apps.webhooks import delivery, services, tasks
from apps.webhooks.models import DeliveryStatus, Webhook, WebhookDelivery
from apps.webhooks.services import SEALED_FOR
from apps.webhooks.signing import LEEWAY_SECONDS, sign, verify
from tests.apps.webhooks.kit import SECRET, jobs, make
from tests.apps.webhooks.receiver import receiving


@pytest.fixture
def receiver(settings):
    settings.VISIONA = {**settings.VISIONA, "WEBHOOK_ALLOW_PRIVATE": True}
    with receiving() as server:
        yield server


@pytest.fixture
def hook(alice, receiver):
    return make(alice, "device.online", url=receiver.url)


def emit(user, count=1):
    for _ in range(count):
        services.emit(owner_id=user.pk, event="device.online", data={"device_id": "d"}, now=timezone.now())
    return WebhookDelivery.objects.latest("created_at")


def attempt(row, number=0, now=None):
    result = delivery.attempt(delivery_id=row.id, number=number, now=now or timezone.now())
    row.refresh_from_db()
    return result


def test_what_arrives(alice, hook, receiver):
    row = emit(alice)
    now = timezone.now()
    assert attempt(row, now=now) == "delivered"
    path, headers, body = receiver.got[0]
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert (headers["X-VisionA-Event"], headers["X-VisionA-Delivery"]) == ("device.online", str(row.id))
    told = json.loads(body)
    assert list(told) == ["id", "event", "created_at", "data"]
    assert told["id"] == str(row.event_id)
    assert verify(headers["X-VisionA-Signature"], [SECRET], body, int(now.timestamp()))
    assert headers["X-VisionA-Signature"].startswith(f"t={int(now.timestamp())},v1=")
    assert "Authorization" not in headers
    assert (row.status, row.attempts, row.response_status, row.error) == ("delivered", 1, 200, "")
    assert (row.delivered_at, row.next_attempt_at) == (now, None)
    assert len(jobs()) == 1


def test_the_task_does_it(alice, hook, receiver):
    row = emit(alice)
    tasks.deliver(delivery_id=str(row.id), attempt=0)
    row.refresh_from_db()
    assert row.status == "delivered"


@pytest.mark.parametrize("status", [201, 204, 299])
def test_any_2xx_is_a_success(alice, hook, receiver, status):
    receiver.answer = status
    assert attempt(emit(alice)) == "delivered"


@pytest.mark.parametrize("status", [301, 302, 307, 400, 404, 410, 429, 500, 503])
def test_all_else_is_tried_again(alice, hook, receiver, status):
    receiver.answer, receiver.headers = status, {"Location": receiver.url}
    row = emit(alice)
    now = timezone.now()
    assert attempt(row, now=now) == "retry"
    assert len(receiver.got) == 1
    assert (row.status, row.attempts, row.response_status) == ("pending", 1, status)
    assert dt.timedelta(seconds=8) <= row.next_attempt_at - now <= dt.timedelta(seconds=12)
    assert jobs()[-1] == {"delivery_id": str(row.id), "attempt": 1}
    receiver.answer = 200
    assert attempt(row, 1) == "delivered"
    assert receiver.got[0][2] == receiver.got[1][2]


def test_nobody_there(alice, hook, free_port):
    Webhook.objects.update(url=f"http://127.0.0.1:{free_port()}/")
    row = emit(alice)
    assert attempt(row) == "retry"
    assert (row.response_status, row.error) == (None, "connection refused")


def test_a_private_address_is_refused_when_it_is_called(alice, hook, receiver, settings):
    settings.VISIONA = {**settings.VISIONA, "WEBHOOK_ALLOW_PRIVATE": False}
    row = emit(alice)
    assert attempt(row) == "retry"
    assert row.error == "Its address is private or reserved."
    assert receiver.got == []


def test_the_attempts_last_a_day(alice, hook, receiver):
    receiver.answer = 500
    row = emit(alice)
    now = began = timezone.now()
    results = []
    for number in range(delivery.ATTEMPTS):
        results.append(attempt(row, number, now))
        now = row.next_attempt_at or now
    assert results == ["retry"] * 10 + ["failed"]
    assert dt.timedelta(hours=20) < now - began < dt.timedelta(hours=31)
    assert (row.status, row.next_attempt_at, len(receiver.got)) == ("failed", None, 11)
    assert attempt(row, 11) == "done"


def test_the_waits_grow_and_differ():
    assert [round(sum(delivery.delay_seconds(n) for _ in range(400)) / 400, -1) // 10 for n in (1, 2, 3)] == [1, 3, 9]
    assert len({delivery.delay_seconds(3) for _ in range(20)}) > 10
    assert max(delivery.delay_seconds(n) for n in range(1, 40)) <= 8 * 3600 * 1.2


def test_asked_for_again_it_has_all_its_attempts(alice, hook, receiver):
    row = emit(alice)
    WebhookDelivery.objects.update(status=DeliveryStatus.FAILED, attempts=11)
    now = timezone.now()
    services.redeliver(actor=Actor.system("tests"), owner_id=alice.pk, webhook_id=hook.id, delivery_id=row.id, now=now)
    receiver.answer = 500
    assert attempt(row, 11, now) == "retry"
    assert row.next_attempt_at - now <= dt.timedelta(seconds=12)


def test_a_job_that_is_done_again_sends_nothing_twice(alice, hook, receiver):
    row = emit(alice)
    assert [attempt(row), attempt(row), attempt(row, 1)] == ["delivered", "done", "done"]
    assert len(receiver.got) == 1


def test_a_job_whose_outcome_was_not_recorded_sends_again(alice, hook, receiver, monkeypatch):
    row = emit(alice)

    def die(*_args, **_more):
        raise RuntimeError("killed")

    with monkeypatch.context() as broken:
        broken.setattr(delivery, "_record", die)
        with pytest.raises(RuntimeError):
            attempt(row)
    assert attempt(row) == "delivered"
    assert len(receiver.got) == 2
    assert receiver.got[0][2] == receiver.got[1][2]


def test_a_webhook_that_was_disabled_meanwhile(alice, hook, receiver):
    row = emit(alice)
    Webhook.objects.update(enabled=False)
    assert attempt(row) == "failed"
    assert (row.error, row.attempts, receiver.got) == ("the webhook is disabled", 0, [])


def test_an_owner_who_was_disabled_meanwhile(alice, hook, receiver):
    row = emit(alice)
    alice.is_active = False
    alice.save()
    assert attempt(row) == "failed"
    assert receiver.got == []


def test_a_webhook_that_was_deleted_meanwhile(alice, hook):
    row = emit(alice)
    hook.delete()
    assert delivery.attempt(delivery_id=row.id, number=0, now=timezone.now()) == "done"


def test_one_that_fails_for_days_is_disabled_and_the_trail_says_so(alice, hook, receiver):
    receiver.answer = 500
    now = timezone.now()
    first, later = emit(alice), None
    attempt(first, now=now)
    hook.refresh_from_db()
    assert (hook.failing_since, hook.enabled) == (now, True)
    later = emit(alice)
    attempt(later, now=now + dt.timedelta(days=2))
    hook.refresh_from_db()
    assert hook.enabled
    attempt(later, 1, now=now + dt.timedelta(days=3))
    hook.refresh_from_db()
    assert hook.enabled  # this delivery is tried for a day, as any other
    WebhookDelivery.objects.filter(id=later.id).update(attempts=delivery.ATTEMPTS - 1)
    attempt(later, delivery.ATTEMPTS - 1, now=now + dt.timedelta(days=3))
    hook.refresh_from_db()
    assert (hook.enabled, hook.disabled_reason) == (False, "failing")
    row = AuditEvent.objects.get(action="webhook.disabled")
    assert (row.actor, row.object_id, row.detail["last"]) == (str(alice.pk), str(hook.id), "500")
    assert services.emit(owner_id=alice.pk, event="device.online", data={}, now=now) == 0


def test_a_success_is_forgiving(alice, hook, receiver):
    receiver.answer = 500
    attempt(emit(alice))
    receiver.answer = 200
    attempt(emit(alice))
    hook.refresh_from_db()
    assert hook.failing_since is None


# --- places -----------------------------------------------------------------------------------------------------------
@pytest.mark.django_db(transaction=True)
def test_a_slow_receiver_has_two_places_and_what_waits_goes_on(alice, hook, receiver):
    emit(alice, 3)
    rows = list(WebhookDelivery.objects.order_by("created_at"))
    receiver.hold.clear()
    slow = [threading.Thread(target=run, args=(row.id,)) for row in rows[:2]]
    for thread in slow:
        thread.start()
    deadline = time.monotonic() + 30
    while len(receiver.got) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert attempt(rows[2]) == delivery.BUSY
    assert rows[2].attempts == 0
    before = len(jobs())
    receiver.hold.set()
    for thread in slow:
        thread.join()
    assert jobs()[before:] == [{"delivery_id": str(rows[2].id), "attempt": 0}]
    assert attempt(rows[2]) == "delivered"


def test_slow_receivers_of_one_owner_leave_a_place_for_another(alice, bob, hook, receiver):
    def row(webhook):
        return WebhookDelivery(webhook=webhook, event_id=uuid.uuid4(), event="device.online", body="{}")

    with ExitStack() as held:
        other = make(alice, "device.online", url=receiver.url)
        slow = [row(each) for each in (hook, other) for _ in range(2)]
        free = [held.enter_context(delivery._place(each, str(alice.pk))) for each in slow]
        assert free == [True, True, True, False]
        assert held.enter_context(delivery._place(row(make(bob, "device.online", url=receiver.url)), str(bob.pk)))
    assert delivery._places.taken == 0
    delivery._waiting.clear()


def run(delivery_id):
    try:
        delivery.attempt(delivery_id=delivery_id, number=0, now=timezone.now())
    finally:
        connection.close()


def test_the_sweep_finds_what_is_overdue(alice, bob, hook, receiver):
    emit(alice, 3)
    now = timezone.now()
    assert delivery.sweep(now=now) == 0
    assert delivery.sweep(now=now + dt.timedelta(minutes=2)) == 2
    assert len(jobs()) == 5
    tasks.sweep(timestamp=0)


# --- upkeep -----------------------------------------------------------------------------------------------------------
def test_the_log_is_kept_for_thirty_days(alice, hook, monkeypatch):
    monkeypatch.setattr(delivery, "_REMOVED", 2)
    emit(alice, 5)
    kept = emit(alice)
    old = timezone.now() - dt.timedelta(days=31)
    WebhookDelivery.objects.exclude(id=kept.id).update(created_at=old)
    assert delivery.remove_old(now=timezone.now()) == 5
    assert WebhookDelivery.objects.get() == kept
    tasks.upkeep(timestamp=0)


# --- secrets ----------------------------------------------------------------------------------------------------------
def test_both_secrets_sign_for_a_day(alice, hook, receiver):
    now = timezone.now()
    new = services.rotate_secret(actor=services.Actor.system(), owner_id=alice.pk, webhook_id=hook.id, now=now).secret
    attempt(emit(alice), now=now)
    _, headers, body = receiver.got[0]
    at = int(now.timestamp())
    assert headers["X-VisionA-Signature"].count("v1=") == 2
    assert verify(headers["X-VisionA-Signature"], [SECRET], body, at)
    assert verify(headers["X-VisionA-Signature"], [new], body, at)
    later = now + dt.timedelta(hours=25)
    attempt(emit(alice), now=later)
    _, headers, body = receiver.got[1]
    assert headers["X-VisionA-Signature"].count("v1=") == 1
    assert verify(headers["X-VisionA-Signature"], [new], body, int(later.timestamp()))
    delivery.reseal_secrets(now=later)
    assert Webhook.objects.get().old_secret_sealed == ""


def test_the_key_that_seals_can_be_changed_without_a_stop(alice, hook, receiver, settings):
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another key of at least thirty-two characters", [old]
    assert attempt(emit(alice)) == "delivered"
    assert delivery.reseal_secrets(now=timezone.now()) == 1
    assert delivery.reseal_secrets(now=timezone.now()) == 0
    settings.SECRET_KEY_FALLBACKS = []
    assert attempt(emit(alice)) == "delivered"
    assert unseal(Webhook.objects.get().secret_sealed, purpose=SEALED_FOR) == SECRET


def test_a_key_that_left_too_early(alice, hook, receiver, settings):
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another key of at least thirty-two characters", []
    row = emit(alice)
    assert attempt(row) == "retry"
    assert "VISIONA_SECRET_KEY" in row.error
    assert delivery.reseal_secrets(now=timezone.now()) == 0


def test_what_is_sealed_for_one_purpose_opens_for_no_other():
    sealed = seal("x", purpose="a")
    assert unseal(sealed, purpose="a") == "x"
    with pytest.raises(ValueError):
        unseal(sealed, purpose="b")


# --- signatures -------------------------------------------------------------------------------------------------------
def test_the_signature_is_what_the_document_says():
    """HMAC-SHA256 of "1700000000.{}" with the key "s", made by openssl."""
    assert sign(["s"], b"{}", 1700000000) == (
        "t=1700000000,v1=" + "e9232c9945da8456c2dea6b39da7786c07b00bca7a64d5dd1283674713a7b72a"
    )


@pytest.mark.parametrize(
    "header",
    [
        "", "t=1000", "v1=00", "t=1000,v1=", "t=1000,v1=zz", "t=x,v1=00", "t=-1000,v1=00", "t=1000,t=1000,v1=00",
        "t=1000,v0=00", "t=1000," + "v1=00," * 500, "t=99999999999999999999,v1=00", "t=1000,v1=é",
    ],
)  # fmt: skip
def test_signatures_that_are_none(header):
    assert not verify(header, ["s"], b"{}", 1000)


def test_a_signature_holds_for_its_body_secret_and_time():
    header = sign(["s"], b"{}", 1000)
    assert verify(header, ["other", "s"], b"{}", 1000)
    assert verify(header, ["s"], b"{}", 1000 + LEEWAY_SECONDS)
    assert verify(header, ["s"], b"{}", 1000 - LEEWAY_SECONDS)
    assert not verify(header, ["s"], b"{}", 1001 + LEEWAY_SECONDS)
    assert not verify(header, ["s"], b"{}", 999 - LEEWAY_SECONDS)
    assert not verify(header, ["other"], b"{}", 1000)
    assert not verify(header, ["s"], b"{} ", 1000)
    assert not verify(header.replace("t=1000", "t=1001"), ["s"], b"{}", 1000)
    assert not verify(header, [], b"{}", 1000)
