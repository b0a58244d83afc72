"""What S3 alone has: signed headers, uploads in parts, a server that is away."""

import os
from urllib.parse import parse_qs, urlsplit

import pytest

from apps.audit.models import AuditEvent
from apps.model_registry.models import AIModel
from apps.storage import s3
from apps.storage import services as storage
from tests.apps.model_registry.kit import DATA, init, ready, upload
from tests.apps.stores import Moto, Store, request, sha256, sha256_base64

MIB = 1 << 20


@pytest.fixture
def bucket(moto, settings, tmp_path):
    """A place of the test's own in the run's bucket."""
    prefix = f"{tmp_path.name}/inner"
    settings.VISIONA = {**settings.VISIONA, **moto.settings(prefix)}
    return Store("s3", tmp_path, moto, prefix)


def query(url):
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def test_size_and_checksum_are_signed(bucket, alice_api):
    sending = init(alice_api, sha256=sha256(DATA))["upload"]
    signed = query(sending["url"])
    assert signed["X-Amz-Algorithm"] == "AWS4-HMAC-SHA256"
    assert set(signed["X-Amz-SignedHeaders"].split(";")) == {
        "content-length", "content-type", "host", "x-amz-checksum-sha256",
    }  # fmt: skip
    assert 3590 <= int(signed["X-Amz-Expires"]) <= 3600
    assert sending["headers"] == {
        "Content-Type": "application/octet-stream", "x-amz-checksum-sha256": sha256_base64(DATA),
    }  # fmt: skip
    assert urlsplit(sending["url"]).path.startswith(f"/models/{bucket.prefix}/uploads/")
    assert "x-amz-checksum-sha256" not in init(alice_api, name="other")["upload"]["headers"]


def test_browsers_reach_it_elsewhere(bucket, alice_api, settings):
    settings.VISIONA = {**settings.VISIONA, "S3_PUBLIC_ENDPOINT_URL": "https://files.example"}
    assert init(alice_api)["upload"]["url"].startswith(f"https://files.example/models/{bucket.prefix}/")


# --- parts ------------------------------------------------------------------------------------------------------------
@pytest.fixture
def small_parts(monkeypatch, settings):
    """S3 itself takes no part but the last below 5 MiB."""
    monkeypatch.setattr(s3, "MULTIPART_ABOVE", 6 * MIB)
    monkeypatch.setattr(s3, "PART_LEAST", 5 * MIB)


@pytest.fixture(scope="module")
def large():
    return os.urandom(MIB) * 11 + b"tail"


def send_parts(begun, data):
    """The answers' ETags, as finalize wants them."""
    sending, parts = begun["upload"], []
    for part in sending["parts"]:
        start = (part["number"] - 1) * sending["part_size"]
        sent = request("PUT", part["url"], data[start : start + sending["part_size"]])
        assert sent.status == 200
        parts.append({"number": part["number"], "etag": sent.headers["etag"]})
    return parts


def finalize(api, begun, body=None):
    return api("POST", f"/api/models/{begun['model']['id']}/finalize", body)


def test_a_large_file_goes_in_parts(bucket, small_parts, alice_api, large):
    begun = init(alice_api, size=len(large), sha256=sha256(large))
    sending = begun["upload"]
    assert set(sending) == {"part_size", "parts", "expires_at"}
    assert [part["number"] for part in sending["parts"]] == [1, 2, 3]
    assert "content-length" in query(sending["parts"][0]["url"])["X-Amz-SignedHeaders"]
    parts = send_parts(begun, large)
    done = finalize(alice_api, begun, {"parts": list(reversed(parts))})
    assert done.status == 200, done.json
    assert (done.data["status"], done.data["sha256"], done.data["size"]) == ("ready", sha256(large), len(large))
    for again in ({"parts": parts}, None):
        assert finalize(alice_api, begun, again).data == done.data
    model = AIModel.objects.get()
    assert bucket.keys() == {model.object_key}
    with storage.open_range(key=model.object_key, start=len(large) - 6, length=6) as pieces:
        assert b"".join(pieces) == large[-6:]
    assert AuditEvent.objects.filter(action="model.finalize").count() == 1


def test_a_finalize_that_was_killed_after_the_parts_were_put_together(bucket, small_parts, alice_api, large):
    begun = init(alice_api, size=len(large))
    parts = send_parts(begun, large)
    model = AIModel.objects.get()
    bucket.moto.client().complete_multipart_upload(
        Bucket="models", Key=f"{bucket.prefix}/{model.object_key}", UploadId=model.upload_id,
        MultipartUpload={"Parts": [{"PartNumber": part["number"], "ETag": part["etag"]} for part in parts]},
    )  # fmt: skip
    assert finalize(alice_api, begun, {"parts": parts}).status == 200


def test_parts_that_are_wrong(bucket, small_parts, alice_api, large):
    begun = init(alice_api, size=len(large))
    parts = send_parts(begun, large)
    for body in (None, {}, {"parts": []}, {"parts": [parts[0], parts[0]]}):
        refused = finalize(alice_api, begun, body)
        assert (refused.status, refused.code) == (400, "VALIDATION_ERROR")
        assert list(refused.error["details"]) == ["parts"]
    for bad in ([*parts[:2], {"number": 3, "etag": '"0"'}], [*parts, {"number": 4, "etag": '"0"'}]):
        assert finalize(alice_api, begun, {"parts": bad}).code == "INVALID_STATE"
    assert AIModel.objects.get().status == "pending"
    assert finalize(alice_api, begun, {"parts": parts}).status == 200


def test_parts_of_something_else(bucket, small_parts, alice_api, large):
    begun = init(alice_api, size=len(large), sha256=sha256(b"other"))
    parts = send_parts(begun, large)
    assert finalize(alice_api, begun, {"parts": parts}).code == "INVALID_STATE"
    assert bucket.keys() == set()  # of no use any more: its parts are gone
    assert AIModel.objects.get().status == "pending"


def test_an_upload_in_parts_that_is_given_up(bucket, small_parts, alice_api, large):
    begun = init(alice_api, size=len(large))
    send_parts(begun, large)
    assert len(bucket.keys()) == 1
    alice_api("DELETE", f"/api/models/{begun['model']['id']}")
    assert bucket.keys() == set()


# --- away -------------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_moto(settings):
    """A server that the test may stop."""
    server = Moto()
    server.start()
    settings.VISIONA = {**settings.VISIONA, **server.settings("own")}
    yield server
    server.close()


def test_a_server_that_is_away(own_moto, small_parts, alice, alice_api, tmp_path):
    store = Store("s3", tmp_path, own_moto, "own")
    shown = upload(alice_api, store)
    pending = init(alice_api, name="pending")
    store.send(pending["upload"], DATA)
    own_moto.stop()
    refusals = [
        finalize(alice_api, pending),
        alice_api("POST", "/api/models/init", {
            "name": "large", "version": "1", "filename": "a.b", "size": 20 * MIB, "chips": [],
        }),
    ]  # fmt: skip
    for refused in refusals:
        assert (refused.status, refused.code) == (503, "DATABASE_UNAVAILABLE")
        assert refused.error["details"] == {"part": ["storage"]}
        assert refused.headers["Retry-After"] == "5"
        assert "127.0.0.1" not in str(refused.json)
    with pytest.raises(s3.StorageError):
        ready(alice.pk, name="other")
    with pytest.raises(s3.StorageError), storage.open_range(key="models/ab/cd", start=0, length=1):
        pass
    assert dict(AIModel.objects.values_list("name", "status")) == {"yolo": "ready", "pending": "pending"}
    # What needs no bytes goes on.
    assert alice_api("GET", f"/api/models/{shown['id']}/download").status == 200
    assert alice_api("DELETE", f"/api/models/{pending['model']['id']}").status == 200
    assert alice_api("GET", "/api/models").status == 200


def test_nothing_but_its_code_of_what_s3_says(bucket, alice_api, settings, monkeypatch):
    settings.VISIONA = {**settings.VISIONA, "S3_BUCKET": "no-such-bucket-here"}
    begun = init(alice_api)
    refused = finalize(alice_api, begun)
    assert refused.status in (409, 503)
    assert "bucket" not in str(refused.json).lower()
    assert repr(storage.store()) == f"<S3Store no-such-bucket-here/{bucket.prefix}/>"
