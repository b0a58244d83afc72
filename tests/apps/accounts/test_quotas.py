"""How much of each thing a user may have: beyond it refused, told by `me`, and never passed by two at once."""

from __future__ import annotations

import threading
import uuid
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from apps.accounts import quotas
from apps.accounts.models import User
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.model_registry.models import AIModel
from apps.pairing.models import PairingToken
from tests.apps.conftest import Api
from tests.apps.stores import local as local

SMALL = {"DEVICES": 2, "PAIRING_TOKENS": 3, "MODELS": 2, "MODEL_MB": 3, "WEBHOOKS": 1}
MB = 1 << 20
WEBHOOK = {"url": "https://example.com/", "events": ["device.online"]}


@pytest.fixture
def small(settings: Any) -> Any:
    settings.VISIONA = {**settings.VISIONA, **{f"QUOTA_{name}": limit for name, limit in SMALL.items()}}
    return settings


def model(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "version": "1", "filename": "m.nef", "size": size, "chips": ["KL720"]}


def add(api: Api, what: str) -> Any:
    if what == "devices":
        return api("POST", "/api/devices", {"serial": uuid.uuid4().hex})
    if what == "pairing_tokens":
        return api("POST", "/api/pairing/token", {})
    if what == "webhooks":
        return api("POST", "/api/webhooks", WEBHOOK)
    return api("POST", "/api/models/init", model(uuid.uuid4().hex, MB if what == "models" else 2 * MB))


@pytest.mark.parametrize(
    ("what", "limit", "fit", "status"),
    [
        ("devices", 2, 2, 409),
        ("pairing_tokens", 3, 3, 429),
        ("models", 2, 2, 409),
        ("model_bytes", 3 * MB, 1, 409),
        ("webhooks", 1, 1, 409),
    ],
)
def test_one_has_no_more_than_one_may(
    small: Any, local: Any, alice_api: Api, bob_api: Api, what: str, limit: int, fit: int, status: int
) -> None:
    assert [add(alice_api, what).status for _ in range(fit)] == [201] * fit
    used = 2 * MB if what == "model_bytes" else fit
    assert alice_api("GET", "/api/auth/me").data["quotas"][what] == {"used": used, "limit": limit}
    refused = add(alice_api, what)
    assert (refused.status, refused.code) == (status, "QUOTA_EXCEEDED")
    assert refused.error["details"] == {"quota": [what], "limit": [str(limit)], "used": [str(used)]}
    assert ("Retry-After" in refused.headers) is (status == 429)
    assert add(bob_api, what).status == 201


def test_what_is_gone_or_used_up_makes_room(small: Any, local: Any, alice: User, alice_api: Api) -> None:
    for what in ("devices", "devices", "pairing_tokens", "pairing_tokens", "pairing_tokens", "models", "models"):
        assert add(alice_api, what).status == 201
    Device.objects.filter(owner=alice).update(deleted_at=timezone.now())
    AIModel.objects.filter(owner=alice).update(deleted_at=timezone.now())
    ids = list(PairingToken.objects.filter(owner=alice).values_list("pk", flat=True))
    PairingToken.objects.filter(pk=ids[0]).update(status="consumed")
    PairingToken.objects.filter(pk=ids[1]).update(expires_at=timezone.now())
    used = {name: each["used"] for name, each in alice_api("GET", "/api/auth/me").data["quotas"].items()}
    assert used == {"devices": 0, "pairing_tokens": 1, "models": 0, "model_bytes": 0, "webhooks": 0}


def test_an_upload_that_begins_anew_counts_once(small: Any, local: Any, alice_api: Api) -> None:
    for size in (3 * MB, 2 * MB, 3 * MB):
        assert alice_api("POST", "/api/models/init", model("m", size)).status == 201
    assert alice_api("POST", "/api/models/init", model("m", 3 * MB + 1)).code == "QUOTA_EXCEEDED"


def test_in_production_it_is_less_until_the_e_mail_is_confirmed(settings: Any, alice: User) -> None:
    limits = {name: each.limit for name, each in quotas.standing(alice.pk).items()}
    assert limits == {
        "devices": 1000, "pairing_tokens": 100, "models": 500, "model_bytes": 20 << 30, "webhooks": 20,
    }  # fmt: skip
    settings.VISIONA = {**settings.VISIONA, "ENV": "production"}
    early = quotas.standing(alice.pk)
    assert {name: each.limit for name, each in early.items()} == {
        "devices": 10, "pairing_tokens": 20, "models": 10, "model_bytes": 1 << 30, "webhooks": 2,
    }  # fmt: skip
    with pytest.raises(DomainError, match="Until its e-mail is confirmed"):
        quotas.check(alice.pk, webhooks=3)
    settings.VISIONA |= {"QUOTA_UNCONFIRMED_WEBHOOKS": 0, "QUOTA_DEVICES": 5}
    stands = quotas.standing(alice.pk)
    assert (stands["webhooks"].limit, stands["devices"].limit) == (20, 5), "never more than confirmed"
    alice.email_verified_at = timezone.now()
    alice.save()
    assert quotas.standing(alice.pk)["models"].limit == 500


def test_zero_is_no_limit_and_costs_no_query(
    settings: Any, alice: User, alice_api: Api, django_assert_num_queries: Any
) -> None:
    settings.VISIONA = {**settings.VISIONA, "QUOTA_DEVICES": 0}
    with django_assert_num_queries(0):
        quotas.check(alice.pk, devices=10**9)
    assert quotas.standing(alice.pk)["devices"].left is None
    assert alice_api("GET", "/api/auth/me").data["quotas"]["devices"] == {"used": 0, "limit": None}


def test_what_it_costs(alice: User, alice_api: Api, django_assert_num_queries: Any) -> None:
    for _ in range(3):
        add(alice_api, "devices")
    with django_assert_num_queries(2):  # the lock, and the count of all that is asked about
        quotas.check(alice.pk, models=1, model_bytes=5)
    with django_assert_num_queries(2):  # who asks, and all quotas
        alice_api("GET", "/api/auth/me")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("what", ["devices", "pairing_tokens", "webhooks", "models"])
def test_many_at_once_do_not_pass_it(small: Any, local: Any, alice_api: Api, what: str) -> None:
    together = threading.Barrier(6)
    answers: list[int] = []

    def run() -> None:
        try:
            together.wait(20)
            answers.append(add(Api(alice_api.token), what).status)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    limit = SMALL[what.upper()]
    assert (len(answers), answers.count(201)) == (6, limit)
