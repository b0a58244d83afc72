"""What S3 alone has: signed headers, uploads in parts, a server that is away."""

import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from botocore.exceptions import ClientError

from apps.audit.models import AuditEvent
from apps.model_registry.models import AIModel
from apps.storage import s3
from apps.storage import services as storage
from apps.system import checks
from cloud import startup
from tests.apps.model_registry.kit import DATA, init, ready, upload
from tests.apps.stores import Moto, Store, request, sha256, sha256_base64
from tunnel.contract.reading import parse_setting
from tunnel.contract.settings import BY_NAME, SettingError

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


def test_a_part_that_was_left_out_at_finalize(bucket, small_parts, alice_api, large):
    """Nothing is put together of too few: the upload lives on."""
    begun = init(alice_api, size=len(large), sha256=sha256(large))
    parts = send_parts(begun, large)
    for some in (parts[:2], parts[1:], [*parts, {"number": 4, "etag": '"0"'}]):
        refused = finalize(alice_api, begun, {"parts": some})
        assert (refused.status, refused.code) == (409, "INVALID_STATE")
    assert finalize(alice_api, begun, {"parts": parts}).data["sha256"] == sha256(large)


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


# --- what real servers do ---------------------------------------------------------------------------------------------
def test_others_bytes_and_a_server_that_cannot_list_uploads(bucket, monkeypatch):
    """What is not named as we name things is nobody's orphan; a listing that is not known ends nothing."""
    client = bucket.moto.client()
    for key in ("models/readme.txt", "uploads/", "models/ab/CD"):
        client.put_object(Bucket="models", Key=f"{bucket.prefix}/{key}", Body=b"x")
    name = storage.new_keys()[1]
    client.put_object(Bucket="models", Key=f"{bucket.prefix}/{name}", Body=b"x")
    store, asked = storage.store(), []
    paginator = store._client.get_paginator

    class Unknown:
        def paginate(self, **where):
            asked.append(where)
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "ListMultipartUploads")
            yield

    monkeypatch.setattr(store._client, "get_paginator", lambda n: Unknown() if "upload" in n else paginator(n))
    assert [found.key for found in store.leftovers()] == [name]
    assert asked == [{"Bucket": "models"}]  # without a prefix: MinIO takes one for the whole name of an object


def away(port):
    """A store whose server is nobody."""
    url = f"http://127.0.0.1:{port}"
    return s3.S3Store(bucket="b", endpoint_url=url, access_key_id="k", secret_access_key="s", addressing="path")


class Says(BaseHTTPRequestHandler):
    """An S3 that answers each PUT with what stands next, and any other call with nothing."""

    protocol_version = "HTTP/1.1"  # boto3 waits for "100 Continue"

    def do_PUT(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, code = self.server.answers.pop(0)
        body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode() if code else b""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_DELETE(self):
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_args):
        """Not on the test's page."""


TAKEN = (200, "")


@pytest.mark.parametrize(
    ("right", "wrong", "believed"),
    [
        (TAKEN, (400, "BadDigest"), True),
        (TAKEN, (400, "XAmzContentChecksumMismatch"), True),  # MinIO's
        (TAKEN, TAKEN, False),
        (TAKEN, (400, "InvalidRequest"), False),
        (TAKEN, (400, "RequestTimeout"), False),
        ((400, "BadDigest"), (400, "BadDigest"), False),  # of every checksum
    ],
)
def test_only_who_tells_a_wrong_checksum_is_believed(right, wrong, believed):
    with ThreadingHTTPServer(("127.0.0.1", 0), Says) as server:
        server.answers = [right, wrong]
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        try:
            store = away(server.server_port)
            assert store.verifies_checksums() is believed
            assert store.verifies_checksums() is believed  # it was tried once
        finally:
            server.shutdown()


def test_a_breaker_stands_before_the_server(free_port):
    """One call without an answer, and the next does not ask."""
    store = away(free_port())
    with pytest.raises(s3.StorageError):
        store.discard("models/ab/cd")
    assert repr(store._breaker) == "<Breaker open>"
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        store = away(server.getsockname()[1])
        store._breaker.trip()  # as such a call does
        for _ in range(20):
            with pytest.raises(s3.StorageError):
                store.discard("models/ab/cd")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_bucket_that_is_missing_is_told(bucket, settings, client, db, monkeypatch):
    assert storage.store().problem() == ""
    settings.VISIONA = {**settings.VISIONA, "S3_BUCKET": "none-such"}
    with pytest.raises(startup.StartupError, match=r"there is no bucket named 'none-such' at http://127"):
        startup.check_storage(settings.VISIONA)
    monkeypatch.setattr(checks, "storage_watch", checks.StorageWatch())
    assert client.get("/healthz").json()["checks"]["storage"] == "unknown"  # nobody waits for the first look
    for thread in threading.enumerate():
        if thread.name == "look-at-storage":
            thread.join(30)
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["checks"]["storage"]) == (200, "there is no bucket named 'none-such'")


def test_a_server_that_is_away_keeps_nothing_from_starting(settings, capsys, free_port):
    url = f"http://127.0.0.1:{free_port()}"
    settings.VISIONA = {**settings.VISIONA, "S3_BUCKET": "b", "S3_ENDPOINT_URL": url}
    startup.check_storage(settings.VISIONA)
    said = f"visiona: warning: the storage of models at {url} does not answer; starting without it\n"
    assert capsys.readouterr().err.endswith(said)


@pytest.mark.parametrize("said", ["minio:9000", "10.0.0.1:9000", "minio", "https:/minio"])
def test_an_endpoint_without_a_scheme_is_one_clear_line(said):
    with pytest.raises(SettingError, match=r"VISIONA_S3_ENDPOINT_URL: .* as https://host:9000 is"):
        parse_setting(BY_NAME["S3_ENDPOINT_URL"], said)


@pytest.mark.parametrize(("version", "served"), [("6.2.14", False), ("7.0.0", True), ("7.2.4", True), ("", True)])
def test_the_oldest_redis(version, served):
    class Told:
        def info(self, _section):
            return {"redis_version": version}

    if served:
        startup.check_redis_version(Told())
    else:
        with pytest.raises(startup.StartupError, match=r"Redis 6\.2\.14; 7 or newer is needed"):
            startup.check_redis_version(Told())
