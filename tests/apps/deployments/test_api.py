"""The deployment routes: who may, what they take, what they answer."""

from __future__ import annotations

import pytest
from django.db import IntegrityError, transaction
from django.test import Client
from django.utils import timezone
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.common.actor import Actor
from apps.deployments import services
from apps.deployments.models import Deployment, DeploymentStatus
from apps.devices.models import Accelerator, Device
from apps.model_registry.models import AIModel
from apps.webhooks.models import WebhookDelivery
from apps.webhooks.services import create_webhook
from tests.apps.model_registry.kit import DATA, init, ready

FIELDS = {
    "id", "model_id", "device_id", "status", "bytes_done", "bytes_total", "error", "created_at", "started_at",
    "finished_at",
}  # fmt: skip
NOBODY = "0198c0de-0000-7000-8000-00000000abcd"


@pytest.fixture
def model(alice, local):
    return ready(alice.pk)


@pytest.fixture
def device(alice):
    return Device.objects.create(owner=alice, name="box")


@pytest.fixture
def deployment(alice, model, device):
    return services.begin_deployment(
        actor=Actor.system("tests"), owner_id=alice.pk, model_id=model.pk, device_id=device.pk, now=timezone.now()
    )


def routes(deployment):
    return [
        ("GET", f"/api/deployments/{deployment.pk}", None),
        ("DELETE", f"/api/deployments/{deployment.pk}", None),
        ("POST", f"/api/models/{deployment.model_id}/deploy", {"device_id": str(deployment.device_id)}),
    ]


# --- who may ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", range(3))
def test_whose_deployment_it_is(deployment, for_nobody_else, alice_api, index):
    method, path, body = routes(deployment)[index]
    for_nobody_else(method, path, body)
    assert alice_api(method, path, body).status == (409 if method == "POST" else 200)


@pytest.mark.parametrize("text", ["x", "0", NOBODY, "%00"])
def test_what_names_nothing(alice_api, deployment, text):
    body = {"device_id": str(deployment.device_id)}
    for method, path, sent in (
        ("GET", f"/api/deployments/{text}", None),
        ("DELETE", f"/api/deployments/{text}", None),
        ("POST", f"/api/models/{text}/deploy", body),
        ("POST", f"/api/models/{text}/deploy", b"no json"),
    ):
        assert alice_api(method, path, sent).code == "NOT_FOUND", path


@pytest.mark.parametrize(
    "method,path", [("GET", "/api/models/{model}/deploy"), ("POST", "/api/deployments"), ("PUT", "/api/deployments/x")]
)
def test_other_methods(model, alice_api, method, path):
    assert alice_api(method, path.format(model=model.pk)).code == "METHOD_NOT_ALLOWED"


def test_lists_show_own_deployments_alone(deployment, alice_api, bob_api, anonymous):
    assert anonymous("GET", "/api/deployments").code == "UNAUTHENTICATED"
    assert [one["id"] for one in alice_api("GET", "/api/deployments").data] == [str(deployment.pk)]
    assert bob_api("GET", "/api/deployments").data == []


# --- beginning --------------------------------------------------------------------------------------------------------
def test_beginning(model, device, alice, alice_api):
    answer = alice_api("POST", f"/api/models/{model.pk}/deploy", {"device_id": str(device.pk)})
    assert answer.status == 201
    shown = answer.data
    assert set(shown) == FIELDS
    assert (shown["model_id"], shown["device_id"]) == (str(model.pk), str(device.pk))
    assert (shown["status"], shown["bytes_done"], shown["bytes_total"]) == ("queued", 0, len(DATA))
    assert shown["error"] is None
    assert alice_api("GET", f"/api/deployments/{shown['id']}").data == shown
    job = ProcrastinateJob.objects.get(task_name="model_registry.deploy")
    assert job.args == {"deployment_id": shown["id"], "run": 0}
    audit = AuditEvent.objects.get(action="deployment.start")
    assert (audit.actor, audit.object_id) == (str(alice.pk), shown["id"])


def test_a_builtin_model_is_everybodys(device, local, alice_api):
    model = ready(None)
    assert alice_api("POST", f"/api/models/{model.pk}/deploy", {"device_id": str(device.pk)}).status == 201


@pytest.mark.parametrize("body", [{}, {"device_id": "x"}, {"device_id": 1}, {"device_id": None}])
def test_a_bad_body(model, alice_api, body):
    answer = alice_api("POST", f"/api/models/{model.pk}/deploy", body)
    assert (answer.status, set(answer.error["details"])) == (400, {"device_id"})


def test_no_such_device(model, device, bob, alice_api):
    device.deleted_at = timezone.now()
    device.save()
    for other in (NOBODY, device.pk, Device.objects.create(owner=bob, name="his").pk):
        answer = alice_api("POST", f"/api/models/{model.pk}/deploy", {"device_id": str(other)})
        assert answer.code == "NOT_FOUND"


def test_a_model_that_is_not_ready(device, local, alice_api):
    begun = init(alice_api)
    answer = alice_api("POST", f"/api/models/{begun['model']['id']}/deploy", {"device_id": str(device.pk)})
    assert (answer.status, answer.code) == (409, "INVALID_STATE")


def test_one_at_a_time_for_a_model_and_a_device(deployment, alice, alice_api):
    path, body = f"/api/models/{deployment.model_id}/deploy", {"device_id": str(deployment.device_id)}
    answer = alice_api("POST", path, body)
    assert (answer.status, answer.code) == (409, "CONFLICT")
    assert answer.error["details"] == {"deployment": [str(deployment.pk)]}
    other = Device.objects.create(owner=alice, name="other")
    assert alice_api("POST", path, {"device_id": str(other.pk)}).status == 201
    assert alice_api("DELETE", f"/api/deployments/{deployment.pk}").status == 200
    assert alice_api("POST", path, body).status == 201


# --- cancelling -------------------------------------------------------------------------------------------------------
def test_cancelling(deployment, alice, alice_api):
    create_webhook(
        actor=Actor.system("tests"), owner_id=alice.pk, url="https://example.com/hook",
        events=["deployment.finished"], now=timezone.now(),
    )  # fmt: skip
    path = f"/api/deployments/{deployment.pk}"
    for _ in range(2):
        answer = alice_api("DELETE", path)
        assert (answer.status, answer.json) == (200, {"success": True, "data": None})
    shown = alice_api("GET", path).data
    assert (shown["status"], shown["error"]) == ("cancelled", None)
    assert shown["finished_at"] is not None
    assert AuditEvent.objects.filter(action="deployment.cancel").count() == 1
    told = WebhookDelivery.objects.get()
    assert told.event == "deployment.finished"
    assert services.claim_deployment(deployment_id=deployment.pk, run=0, now=timezone.now()) is None


@pytest.mark.parametrize("status", [DeploymentStatus.DONE, DeploymentStatus.FAILED])
def test_what_is_over_is_not_cancelled(deployment, alice_api, status):
    Deployment.objects.update(status=status)
    answer = alice_api("DELETE", f"/api/deployments/{deployment.pk}")
    assert (answer.status, answer.code) == (409, "INVALID_STATE")
    assert Deployment.objects.get().status == status


# --- lists ------------------------------------------------------------------------------------------------------------
def test_filters(deployment, alice, alice_api):
    other = Device.objects.create(owner=alice, name="other")
    second = Deployment.objects.create(
        owner=alice, model=deployment.model, device=other, bytes_total=1, status="done", moved_at=timezone.now()
    )

    def found(query):
        return {one["id"] for one in alice_api("GET", f"/api/deployments?{query}").data}

    assert found(f"device_id={other.pk}") == {str(second.pk)}
    assert found(f"model_id={deployment.model_id}") == {str(second.pk), str(deployment.pk)}
    assert found("status=queued") == {str(deployment.pk)}
    assert found(f"status=done&device_id={deployment.device_id}") == set()


@pytest.mark.parametrize(
    "query,field", [("status=lost", "status"), ("device_id=x", "device_id"), ("model_id=", "model_id"), ("x=1", "x")]
)
def test_a_bad_query(alice_api, query, field):
    answer = alice_api("GET", f"/api/deployments?{query}")
    assert (answer.status, set(answer.error["details"])) == (400, {field})


def test_a_page_costs_two_queries(alice, alice_api, model, django_assert_num_queries):
    for index in range(20):
        device = Device.objects.create(owner=alice, name=str(index))
        Deployment.objects.create(owner=alice, model=model, device=device, bytes_total=1, moved_at=timezone.now())
    with django_assert_num_queries(2):
        assert len(alice_api("GET", "/api/deployments").data) == 20


# --- the table --------------------------------------------------------------------------------------------------------
def test_constraints(deployment):
    def refuses(**facts):
        with pytest.raises(IntegrityError), transaction.atomic():
            Deployment.objects.update(**facts)

    refuses(status="lost")
    refuses(bytes_done=deployment.bytes_total + 1)
    refuses(bytes_done=-1)
    with pytest.raises(IntegrityError), transaction.atomic():
        Deployment.objects.create(
            owner=deployment.owner, model=deployment.model, device=deployment.device, bytes_total=1,
            moved_at=timezone.now(),
        )  # fmt: skip


def test_the_admin_shows_them_and_changes_nothing(deployment):
    User.objects.create_superuser("root@example.com", "correct horse battery")
    client = Client()
    assert client.login(username="root@example.com", password="correct horse battery")
    assert "queued" in client.get("/admin/deployments/deployment/").content.decode().lower()
    page = client.get(f"/admin/deployments/deployment/{deployment.pk}/change/")
    assert page.status_code == 200
    assert f"{deployment.created_at:%Y-%m-%d %H:%M:%S} queued" in page.content.decode()  # its title: no ids
    assert client.get("/admin/deployments/deployment/add/").status_code == 403


# --- chips ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("chips", "chip", "scanned", "status"),
    [
        (["KL720"], "KL720", (), 201),
        (["KL720"], "kl720", (), 201),
        (["KL720"], "", (), 201),
        ([], "KL520", (), 201),
        (["KL720"], "KL520", ("KL720",), 201),
        (["KL720"], "KL520", (), 409),
        (["KL720", "KL730"], "", ("KL520", ""), 409),
    ],
)
def test_a_model_is_for_the_chips_that_it_names(alice_api, model, device, chips, chip, scanned, status):
    AIModel.objects.filter(pk=model.pk).update(chips=chips)
    Device.objects.filter(pk=device.pk).update(chip=chip)
    for number, found in enumerate(scanned):
        Accelerator.objects.create(device=device, serial=f"A{number}", chip=found, seen_at=timezone.now())
    answer = alice_api("POST", f"/api/models/{model.pk}/deploy", {"device_id": str(device.pk)})
    assert answer.status == status
    if status == 409:
        assert answer.code == "INVALID_STATE"
        assert answer.json["error"]["details"]["chips"] == chips
        forced = alice_api("POST", f"/api/models/{model.pk}/deploy", {"device_id": str(device.pk), "force": True})
        assert forced.status == 201
