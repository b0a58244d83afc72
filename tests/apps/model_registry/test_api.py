"""The model routes: who may, what they take, what they answer. The access matrix has the roles."""

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from apps.accounts.models import User
from apps.audit.models import AuditEvent
from apps.model_registry.models import AIModel
from apps.storage import services as storage
from tests.apps.conftest import login_as
from tests.apps.model_registry.kit import DATA, init, init_body, ready

pytestmark = pytest.mark.usefixtures("local")


def names(answer):
    assert answer.status == 200, answer.json
    return sorted(each["name"] for each in answer.data)


def row(owner, name, **more):
    _upload_key, object_key = storage.new_keys()
    given = {"version": "1", "filename": f"{name}.nef", "size": 1, "sha256": "0" * 64, "status": "ready"}
    return AIModel.objects.create(owner=owner, name=name, object_key=object_key, **{**given, **more})


# --- init -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "field, value",
    [
        ("name", ""), ("name", None), ("name", 7), ("name", "a\nb"), ("name", "x" * 201), ("name", "\0"),
        ("version", ""), ("version", "x" * 65), ("version", 1.0), ("version", "1\t"[:1] + "\x7f"),
        ("filename", ""), ("filename", "../../etc/passwd"), ("filename", "a/b"), ("filename", "a\\b"),
        ("filename", ".."), ("filename", "."), ("filename", "x" * 256), ("filename", "a\0b"),
        ("size", 0), ("size", -1), ("size", "10"), ("size", 1.5), ("size", None), ("size", True),
        ("sha256", "abc"), ("sha256", "g" * 64), ("sha256", "0" * 65), ("sha256", 1), ("sha256", None),
        ("chips", "KL720"), ("chips", [1]), ("chips", [""]), ("chips", ["x" * 65]),
        ("chips", [str(number) for number in range(17)]),
        ("chips", None), ("description", "x" * 4001), ("description", None), ("format", ""), ("format", "a b"),
        ("format", "x" * 33), ("faa_object_key", "x" * 513), ("faa_object_key", "a\0b"),
    ],
)  # fmt: skip
def test_init_names_what_is_wrong(alice_api, field, value):
    refused = alice_api("POST", "/api/models/init", init_body(**{field: value}))
    assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
    assert [key.split(".")[0] for key in refused.error["details"]] == [field]
    assert not AIModel.objects.exists()


@pytest.mark.parametrize("field", ["name", "version", "filename", "size", "chips"])
def test_what_init_needs(alice_api, field):
    body = init_body()
    del body[field]
    assert list(alice_api("POST", "/api/models/init", body).error["details"]) == [field]


@pytest.mark.parametrize("size", [(100 << 20) + 1, 10**30])
def test_a_file_over_the_limit(alice_api, size):
    refused = alice_api("POST", "/api/models/init", init_body(size=size))
    assert (refused.status, refused.code) == (413, "PAYLOAD_TOO_LARGE")
    assert not AIModel.objects.exists()


def test_a_file_at_the_limit(alice_api, settings):
    assert init(alice_api, size=100 << 20)["model"]["size"] == 100 << 20
    settings.VISIONA = {**settings.VISIONA, "MODEL_MAX_SIZE_MB": 200}
    assert init(alice_api, name="large", size=200 << 20)["upload"]["method"] == "PUT"


def test_where_to_send_is_where_the_caller_reached_us(alice_api, settings):
    url = init(alice_api)["upload"]["url"]
    assert url.startswith("http://testserver/storage/")
    settings.VISIONA = {**settings.VISIONA, "ENV": "production", "PUBLIC_URL": "https://cloud.example"}
    assert init(alice_api)["upload"]["url"].startswith("https://cloud.example/storage/")


def test_the_format_follows_the_name_of_the_file(alice_api):
    assert init(alice_api, name="a", filename="m.ONNX")["model"]["format"] == "onnx"
    assert init(alice_api, name="b", filename="模型.tar.gz")["model"]["format"] == "gz"
    assert init(alice_api, name="c", filename="model")["model"]["format"] == ""
    assert init(alice_api, name="d", filename="m.nef", format="kneron-2")["model"]["format"] == "kneron-2"


def test_a_chip_named_twice_is_one(alice_api):
    assert init(alice_api, chips=["KL720", "KL520", "KL720"])["model"]["chips"] == ["KL720", "KL520"]


# --- the list ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def models(alice, bob):
    row(alice, "a720", chips=["KL720"], description="finds faces")
    row(alice, "a520", chips=["KL520", "KL720"], source="converted")
    row(alice, "pending", status="pending", sha256="")
    row(alice, "gone", deleted_at="2026-01-01T00:00:00Z")
    row(bob, "bobs", chips=["KL720"])
    row(None, "builtin", source="builtin", chips=["KL720"])
    row(None, "builtin-gone", source="builtin", deleted_at="2026-01-01T00:00:00Z")


@pytest.mark.parametrize(
    "query, expected",
    [
        ("", ["a520", "a720", "pending"]),
        ("owner=mine", ["a520", "a720", "pending"]),
        ("owner=builtin", ["builtin"]),
        ("owner=all", ["a520", "a720", "builtin", "pending"]),
        ("chip=KL720", ["a520", "a720"]),
        ("chip=KL72", []),
        ("chip=kl720", []),
        ("owner=all&chip=KL720", ["a520", "a720", "builtin"]),
        ("owner=all&chip=KL720&source=builtin", ["builtin"]),
        ("source=converted", ["a520"]),
        ("source=upload", ["a720", "pending"]),
        ("status=pending", ["pending"]),
        ("status=failed", []),
        ("search=FACES", ["a720"]),
        ("search=a5", ["a520"]),
        ("search=.nef", ["a520", "a720", "pending"]),
        ("search=%25", []),
        ("search=", ["a520", "a720", "pending"]),
    ],
)
def test_filters(models, alice_api, query, expected):
    assert names(alice_api("GET", f"/api/models?{query}")) == expected


@pytest.mark.parametrize(
    "query",
    ["owner=bob", "source=x", "status=x", "limit=0", "limit=201", "ordering=sha256", "x=1", "chip=", "cursor=x"],
)
def test_a_bad_query(alice_api, query):
    refused = alice_api("GET", f"/api/models?{query}")
    assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
    assert list(refused.error["details"]) == [query.partition("=")[0]]


def test_pages_and_orders(alice, alice_api):
    for index in range(5):
        row(alice, f"n{index}", size=10 - index)
    for ordering in ("name", "-name", "size", "-size", "created_at", "-created_at"):
        seen, path, previous = [], f"/api/models?limit=2&ordering={ordering}", None
        while path:
            page = alice_api("GET", path)
            assert page.json["meta"]["total"] == 5
            assert (page.json["meta"]["previous"] is None) == (previous is None)
            seen += [each["name"] for each in page.data]
            previous, path = path, page.json["meta"]["next"]
        falling = ordering in ("-name", "size", "-created_at")
        assert seen == sorted(seen, reverse=falling)
        assert len(seen) == 5


def test_how_many_queries_a_list_takes(alice, alice_api):
    for index in range(60):
        row(alice, f"n{index}", chips=["KL720"])
    alice_api("GET", "/api/models")
    with CaptureQueriesContext(
        connection,
    ) as few:
        alice_api("GET", "/api/models?limit=5&chip=KL720")
    with CaptureQueriesContext(connection) as many:
        alice_api("GET", "/api/models?limit=50&chip=KL720")
    assert (len(few), len(many)) == (3, 3)  # the user, the page, the count


# --- one model --------------------------------------------------------------------------------------------------------
def test_a_built_in_model_is_everybodys_to_read_and_nobodys_to_change(alice_api):
    model = ready(None, "builtin")
    path = f"/api/models/{model.id}"
    assert alice_api("GET", path).data["source"] == "builtin"
    assert alice_api("GET", f"{path}/download").status == 200
    for method, where, body in (("PATCH", path, {"name": "x"}), ("DELETE", path, None)):
        refused = alice_api(method, where, body)
        assert (refused.status, refused.code) == (403, "FORBIDDEN")
    assert alice_api("POST", f"{path}/finalize").code == "FORBIDDEN"


def test_change(alice, alice_api):
    model = row(alice, "a")
    path = f"/api/models/{model.id}"
    changes = {
        "name": "b", "version": "2", "description": "d", "format": "onnx", "chips": ["KL630"], "faa_object_key": "k",
    }  # fmt: skip
    shown = alice_api("PATCH", path, changes).data
    assert {name: shown[name] for name in changes} == changes
    assert shown["created_at"] == alice_api("GET", path).data["created_at"]
    assert AuditEvent.objects.get(action="model.change").detail == {"fields": sorted(changes)}
    assert alice_api("PATCH", path, {}).data["name"] == "b"
    assert AuditEvent.objects.filter(action="model.change").count() == 1


@pytest.mark.parametrize("field, value", [("name", ""), ("version", 2), ("chips", "x"), ("description", 1)])
def test_a_bad_change(alice, alice_api, field, value):
    model = row(alice, "a")
    assert list(alice_api("PATCH", f"/api/models/{model.id}", {field: value}).error["details"]) == [field]


def test_what_cannot_be_changed_is_passed_over(alice, alice_api):
    model = row(alice, "a")
    shown = alice_api("PATCH", f"/api/models/{model.id}", {"size": 7, "status": "failed", "object_key": "x"}).data
    assert (shown["size"], shown["status"]) == (1, "ready")


def test_a_change_to_a_name_that_is_taken(alice, alice_api):
    row(alice, "a")
    other = row(alice, "b")
    refused = alice_api("PATCH", f"/api/models/{other.id}", {"name": "a"})
    assert (refused.status, refused.code) == (409, "CONFLICT")
    assert AIModel.objects.get(id=other.id).name == "b"


def test_delete(alice, alice_api):
    model = ready(alice.pk)
    path = f"/api/models/{model.id}"
    deleted = alice_api("DELETE", path)
    assert (deleted.status, deleted.data) == (200, None)
    for method, where in (("GET", path), ("DELETE", path), ("GET", f"{path}/download"), ("POST", f"{path}/finalize")):
        assert alice_api(method, where).code == "NOT_FOUND"
    assert alice_api("GET", "/api/models").data == []
    assert init(alice_api, name="n")["model"]["id"] != str(model.id)


def test_a_download_of_what_is_not_ready(alice_api):
    begun = init(alice_api)
    assert alice_api("GET", f"/api/models/{begun['model']['id']}/download").code == "INVALID_STATE"


def test_ids_that_are_none(alice_api):
    for path in ("/api/models/x", "/api/models/x/finalize", "/api/models/../x"):
        assert alice_api("GET", path).status in (404, 405)
    assert alice_api("GET", "/api/models/init").status == 405


@pytest.mark.parametrize("body", [{"parts": "x"}, {"parts": [{}]}, {"parts": [{"number": 0, "etag": "x"}]}, []])
def test_a_bad_finalize(alice_api, body):
    begun = init(alice_api)
    refused = alice_api("POST", f"/api/models/{begun['model']['id']}/finalize", body)
    assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")


def test_no_secret_in_the_admin(alice, client):
    staff = User.objects.create_superuser("staff@example.com", "x" * 12)
    model = ready(alice.pk, data=DATA)
    AIModel.objects.filter(id=model.id).update(upload_id="secret-upload-id")
    client.force_login(staff)
    listed = client.get("/admin/model_registry/aimodel/?q=n").content.decode()
    assert "alice@example.com" in listed
    page = client.get(f"/admin/model_registry/aimodel/{model.id}/change/").content.decode()
    assert model.sha256 in page
    assert "secret-upload-id" not in page + listed
    assert client.post(f"/admin/model_registry/aimodel/{model.id}/change/", {"name": "x"}).status_code == 403
    assert client.get("/admin/model_registry/aimodel/add/").status_code == 403


def test_a_disabled_owner_gets_nothing_signed(alice):
    api, model = login_as(alice), ready(alice.pk)
    User.objects.filter(pk=alice.pk).update(is_active=False)
    assert api("GET", f"/api/models/{model.id}/download").status == 401
    assert api("POST", "/api/models/init", init_body()).status == 401
