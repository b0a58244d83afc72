"""What each list costs PostgreSQL (data.md: "A list endpoint has a pinned query count"): no more for many rows."""

import uuid
from collections.abc import Iterator

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from drf_spectacular.generators import SchemaGenerator

from apps.accounts import sessions
from apps.accounts.models import Passkey, SecondFactor, User, UserIdentity
from apps.clusters.models import Cluster, ClusterMember
from apps.common.actor import Actor
from apps.common.ids import uuid7
from apps.converter.models import Conversion
from apps.deployments.models import Deployment
from apps.devices.models import Accelerator, Device, DeviceEvent
from apps.model_registry.models import AIModel
from apps.pairing import services as pairing
from apps.webhooks.models import Webhook, WebhookDelivery
from tests.apps.conftest import Api, login_as

COSTS = {
    "/api/audit": 2,
    "/api/auth/identities": 2,
    "/api/auth/passkeys": 2,
    "/api/auth/sessions": 1,
    "/api/clusters": 3,
    "/api/conversions": 2,
    "/api/deployments": 2,
    "/api/devices": 2,
    "/api/devices/{id}/accelerators": 3,
    "/api/devices/{id}/events": 3,
    "/api/models": 2,
    "/api/pairing/status": 2,
    "/api/pairing/tokens": 2,
    "/api/webhooks": 2,
    "/api/webhooks/{id}/deliveries": 3,
}
"""Statements for one page that holds all there is, the look at who asks among them."""


def fill(owner: User, count: int) -> dict[str, str]:
    """`count` more rows in each list of the owner's; path parameters of the lists within one thing."""
    now = timezone.now()
    device, _ = Device.objects.get_or_create(owner=owner, name="first")
    hook = {"owner": owner, "events": ["device.online"], "secret_sealed": "x"}
    webhook, _ = Webhook.objects.get_or_create(**hook, url="https://first.example.com/")
    for _ in range(count):
        name = uuid7().hex
        other = Device.objects.create(owner=owner, name=name, serial=name)
        model = AIModel.objects.create(
            owner=owner, name=name, version="1", filename="f", size=1, object_key=name, status="ready", sha256="0" * 64
        )
        UserIdentity.objects.create(user=owner, issuer="https://id.example", subject=name)
        factor, _made = SecondFactor.objects.get_or_create(user=owner)
        Passkey.objects.create(factor=factor, name=name, credential_id=name.encode(), attested=b"")
        Accelerator.objects.create(device=device, serial=name, seen_at=now)
        DeviceEvent.objects.create(device_id=device.pk, action="paired", at=now)
        ClusterMember.objects.create(cluster=Cluster.objects.create(owner=owner, name=name), device=other)
        Conversion.objects.create(owner=owner, model=model, chip="KL720", status="done", result=model)
        Deployment.objects.create(owner=owner, model=model, device=other, bytes_total=1, moved_at=now, status="done")
        Webhook.objects.create(**hook, url="https://example.com/")
        WebhookDelivery.objects.create(webhook=webhook, event_id=uuid.uuid4(), event="device.online", body="{}")
        actor = Actor(str(owner.pk), owner.email)  # whose act stands in the trail
        pairing.issue_token(actor=actor, owner_id=owner.pk, name=name, ttl_minutes=5, now=now)
        sessions.create(user_id=owner.pk, address="192.0.2.1", agent="tests", now=now)
    return {"/api/devices/{id}": str(device.pk), "/api/webhooks/{id}": str(webhook.pk)}


def statements(api: Api, path: str) -> tuple[int, int]:
    """How many it takes, and how many rows it brings."""
    api("GET", path)  # what is looked up once and kept
    with CaptureQueriesContext(connection) as took:
        answer = api("GET", path)
    rows = answer.data["devices"] if isinstance(answer.data, dict) else answer.data
    return len(took), len(rows)


def lists() -> Iterator[str]:
    """The routes that answer pages, by their own schema."""
    for path, methods in SchemaGenerator().get_schema(request=None, public=True)["paths"].items():
        if any(each["name"] == "limit" for each in methods.get("get", {}).get("parameters", ())):
            yield path


def test_each_list_has_its_cost_here() -> None:
    assert set(lists()) | {"/api/pairing/status"} == set(COSTS)


@pytest.mark.parametrize("template", sorted(COSTS))
def test_many_rows_cost_as_much_as_few(alice: User, template: str) -> None:
    api = login_as(alice)
    ids = fill(alice, 2)
    path = next((template.replace(of, of.replace("{id}", one)) for of, one in ids.items() if of in template), template)
    few, some = statements(api, path)
    fill(alice, 6)
    many, all_of_them = statements(api, path)
    assert all_of_them >= some + 6
    assert (few, many) == (COSTS[template], COSTS[template])
