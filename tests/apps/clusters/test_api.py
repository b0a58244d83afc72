"""The routes of clusters and of who serves them."""

import pytest

from apps.audit.models import AuditEvent
from apps.clusters import services
from apps.clusters.models import Cluster, ClusterMember
from apps.devices.models import Device
from tests.apps.internal.kit import issue

NOBODY = "0198c0de-0000-7000-8000-00000000abcd"


def box(owner, name="box"):
    return Device.objects.create(owner=owner, name=name)


@pytest.fixture
def cluster(alice):
    return Cluster.objects.create(owner=alice, name="Hall")


@pytest.fixture
def member(cluster, alice):
    return ClusterMember.objects.create(cluster=cluster, device=box(alice, "first"), weight=3)


def routes(cluster_id, device_id):
    return [
        ("GET", f"/api/clusters/{cluster_id}", None),
        ("PATCH", f"/api/clusters/{cluster_id}", {"name": "x"}),
        ("PUT", f"/api/clusters/{cluster_id}/members/{device_id}", {"weight": 5}),
        ("DELETE", f"/api/clusters/{cluster_id}/members/{device_id}", None),
        ("DELETE", f"/api/clusters/{cluster_id}", None),
    ]


# --- who may ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("index", range(5))
def test_whose_cluster_it_is(cluster, member, for_nobody_else, alice_api, index):
    method, path, body = routes(cluster.id, member.device_id)[index]
    for_nobody_else(method, path, body)
    cluster.refresh_from_db()
    assert (cluster.name, cluster.members.get().weight) == ("Hall", 3)
    assert alice_api(method, path, body).status == 200


def test_the_list_shows_own_clusters_alone(cluster, alice_api, bob_api, anonymous):
    assert anonymous("GET", "/api/clusters").code == "UNAUTHENTICATED"
    assert anonymous("POST", "/api/clusters", {"name": "x"}).code == "UNAUTHENTICATED"
    assert [one["id"] for one in alice_api("GET", "/api/clusters").data] == [str(cluster.id)]
    assert bob_api("GET", "/api/clusters").data == []


@pytest.mark.parametrize("text", ["x", "0", NOBODY, "%00"])
def test_what_names_no_cluster(alice_api, member, text):
    for method, path, body in routes(text, member.device_id):
        assert alice_api(method, path, body).code == "NOT_FOUND", path


@pytest.mark.parametrize("text", ["x", NOBODY])
def test_what_names_no_device(alice_api, cluster, text):
    for body in ({"weight": 1}, {"weight": 0}, b"no json"):
        assert alice_api("PUT", f"/api/clusters/{cluster.id}/members/{text}", body).code == "NOT_FOUND"
    assert alice_api("DELETE", f"/api/clusters/{cluster.id}/members/{text}").code == "NOT_FOUND"


def test_nobody_takes_in_anothers_device(alice_api, cluster, bob):
    answer = alice_api("PUT", f"/api/clusters/{cluster.id}/members/{box(bob).id}", {"weight": 1})
    assert answer.code == "NOT_FOUND"
    assert ClusterMember.objects.count() == 0


@pytest.mark.parametrize(
    "method,path", [("PUT", "/api/clusters"), ("POST", "/api/clusters/{id}"), ("GET", "/api/clusters/{id}/members/x")]
)
def test_other_methods(cluster, alice_api, method, path):
    assert alice_api(method, path.format(id=cluster.id)).code == "METHOD_NOT_ALLOWED"


# --- clusters ---------------------------------------------------------------------------------------------------------
def test_its_life(alice, alice_api):
    made = alice_api("POST", "/api/clusters", {"name": " Hall "})
    assert made.status == 201
    assert set(made.data) == {"id", "name", "members", "created_at", "updated_at"}
    assert (made.data["name"], made.data["members"]) == ("Hall", [])
    path = f"/api/clusters/{made.data['id']}"
    assert alice_api("GET", path).data == made.data
    assert alice_api("PATCH", path, {"name": "Roof"}).data["name"] == "Roof"
    assert alice_api("GET", "/api/clusters").data[0]["name"] == "Roof"
    device = box(alice, "cam")
    put = alice_api("PUT", f"{path}/members/{device.id}", {"weight": 7})
    shown = {"device_id": str(device.id), "name": "cam", "weight": 7, "link_status": "offline"}
    assert (put.status, put.data) == (200, shown)
    assert alice_api("GET", path).data["members"] == [shown]
    assert alice_api("PUT", f"{path}/members/{device.id}", {"weight": 1}).data["weight"] == 1
    assert alice_api("PATCH", path, {"name": "Roof"}).data["members"][0]["weight"] == 1
    gone = alice_api("DELETE", f"{path}/members/{device.id}")
    assert (gone.status, gone.json) == (200, {"success": True, "data": None})
    assert alice_api("DELETE", f"{path}/members/{device.id}").code == "NOT_FOUND"
    assert alice_api("DELETE", path).json == {"success": True, "data": None}
    assert alice_api("GET", path).code == "NOT_FOUND"
    acts = list(AuditEvent.objects.filter(object_type="cluster").order_by("at", "id").values_list("action", flat=True))
    assert acts == [
        "cluster.create", "cluster.change", "cluster.member.set", "cluster.member.set", "cluster.change",
        "cluster.member.remove", "cluster.delete",
    ]  # fmt: skip
    assert Device.objects.filter(pk=device.pk, deleted_at=None).exists()


def test_a_name_must_be_given_but_not_changed(alice_api, cluster):
    answer = alice_api("POST", "/api/clusters", {})
    assert (answer.status, set(answer.error["details"])) == (400, {"name"})
    assert alice_api("PATCH", f"/api/clusters/{cluster.id}", {}).data["name"] == "Hall"
    assert AuditEvent.objects.filter(action="cluster.change").count() == 0


@pytest.mark.parametrize("body", [{"name": ""}, {"name": "  "}, {"name": 1}, {"name": "x" * 201}, {"name": "\0"}])
def test_a_bad_name(alice_api, cluster, body):
    for method, path in (("POST", "/api/clusters"), ("PATCH", f"/api/clusters/{cluster.id}")):
        answer = alice_api(method, path, body)
        assert (answer.status, answer.code) == (400, "VALIDATION_ERROR")
        assert set(answer.error["details"]) == {"name"}


def test_a_name_is_taken_once_by_each_owner(cluster, alice_api, bob_api):
    answer = alice_api("POST", "/api/clusters", {"name": "Hall"})
    assert (answer.status, answer.code, set(answer.error["details"])) == (409, "CONFLICT", {"name"})
    other = alice_api("POST", "/api/clusters", {"name": "Roof"}).data["id"]
    assert alice_api("PATCH", f"/api/clusters/{other}", {"name": "Hall"}).code == "CONFLICT"
    assert bob_api("POST", "/api/clusters", {"name": "Hall"}).status == 201


@pytest.mark.parametrize("body", [{"weight": 0}, {"weight": 101}, {"weight": "5"}, {"weight": 1.5}, {"weight": None}])
def test_a_bad_weight(cluster, member, alice_api, body):
    answer = alice_api("PUT", f"/api/clusters/{cluster.id}/members/{member.device_id}", body)
    assert (answer.status, set(answer.error["details"])) == (400, {"weight"})


@pytest.mark.parametrize("weight", [1, 100])
def test_weights_at_the_edges(cluster, member, alice_api, weight):
    path = f"/api/clusters/{cluster.id}/members/{member.device_id}"
    assert alice_api("PUT", path, {"weight": weight}).data["weight"] == weight


def test_a_weight_left_out_is_one(cluster, alice, alice_api):
    assert alice_api("PUT", f"/api/clusters/{cluster.id}/members/{box(alice).id}", {}).data["weight"] == 1


def test_how_many_may_serve_a_cluster(cluster, member, alice, alice_api, monkeypatch):
    monkeypatch.setattr(services, "MAX_MEMBERS", 1)
    answer = alice_api("PUT", f"/api/clusters/{cluster.id}/members/{box(alice).id}", {"weight": 1})
    assert answer.code == "CONFLICT"
    assert ClusterMember.objects.count() == 1
    assert alice_api("PUT", f"/api/clusters/{cluster.id}/members/{member.device_id}", {"weight": 9}).status == 200


def test_an_unpaired_device_serves_no_more(cluster, member, alice_api):
    assert alice_api("DELETE", f"/api/devices/{member.device_id}").status == 200
    assert alice_api("GET", f"/api/clusters/{cluster.id}").data["members"] == []
    path = f"/api/clusters/{cluster.id}/members/{member.device_id}"
    assert alice_api("PUT", path, {"weight": 1}).code == "NOT_FOUND"
    assert alice_api("DELETE", path).code == "NOT_FOUND"


def test_the_link_of_a_member_is_the_registrys_word(daemon, cluster, alice, alice_api):
    online = daemon.ask(issue(alice))["device_id"]
    assert (
        alice_api("PUT", f"/api/clusters/{cluster.id}/members/{online}", {"weight": 2}).data["link_status"] == "online"
    )
    assert alice_api("GET", f"/api/clusters/{cluster.id}").data["members"][0]["link_status"] == "online"


# --- lists ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "query,field",
    [("limit=0", "limit"), ("ordering=owner", "ordering"), ("chip=x", "chip"), ("search=" + "x" * 201, "search")],
)
def test_a_bad_query(alice_api, query, field):
    answer = alice_api("GET", f"/api/clusters?{query}")
    assert (answer.status, set(answer.error["details"])) == (400, {field})


def test_search_and_pages(alice, alice_api):
    for index in range(5):
        Cluster.objects.create(owner=alice, name=f"Floor {index}")
    Cluster.objects.create(owner=alice, name="Roof_1")
    assert [one["name"] for one in alice_api("GET", "/api/clusters?search=_").data] == ["Roof_1"]
    first = alice_api("GET", "/api/clusters?search=floor&limit=3&ordering=name")
    assert first.json["meta"]["total"] == 5
    second = alice_api("GET", first.json["meta"]["next"])
    assert [one["name"] for one in first.data + second.data] == [f"Floor {index}" for index in range(5)]


def test_a_page_costs_three_queries(alice, alice_api, django_assert_num_queries):
    for index in range(20):
        cluster = Cluster.objects.create(owner=alice, name=str(index))
        for _ in range(3):
            ClusterMember.objects.create(cluster=cluster, device=box(alice))
    with django_assert_num_queries(3):  # the user, the clusters, their members
        assert len(alice_api("GET", "/api/clusters").data) == 20


def test_devices_by_cluster(cluster, member, alice, alice_api, bob, bob_api):
    box(alice, "other")
    found = alice_api("GET", f"/api/devices?cluster={cluster.id}").data
    assert [one["id"] for one in found] == [str(member.device_id)]
    assert alice_api("GET", f"/api/devices?cluster={NOBODY}").data == []
    assert bob_api("GET", f"/api/devices?cluster={cluster.id}").data == []
    ClusterMember.objects.create(cluster=Cluster.objects.create(owner=bob, name="his"), device=member.device)
    his = Cluster.objects.get(owner=bob)
    assert alice_api("GET", f"/api/devices?cluster={his.id}").data == []
    answer = alice_api("GET", "/api/devices?cluster=hall")
    assert set(answer.error["details"]) == {"cluster"}
