"""Uploads on a server of S3 that is none of Python's: versitygw, built once as a Go module."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import boto3
import pytest

from apps.storage import s3
from apps.storage import services as storage
from tests.apps.model_registry.kit import DATA, init
from tests.apps.stores import BUCKET, Store, request, sha256
from tests.interop.go_build import install

pytestmark = pytest.mark.timeout(500)
VERSION = "v1.8.0"
KEY, SECRET = "key", "secretsecret"
MIB = 1 << 20


@pytest.fixture(scope="module")
def versity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with our bucket."""
    program = install("github.com/versity/versitygw/cmd/versitygw", VERSION)
    folder = tmp_path_factory.mktemp("versity")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(program), "--port", f"127.0.0.1:{port}", "posix", str(folder)],
        env={**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        url = f"http://127.0.0.1:{port}"
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.kill()
        server.wait(10)


def client(url: str) -> Any:
    return boto3.session.Session().client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
    )


@pytest.fixture
def server(versity, settings, tmp_path):
    """A place of the test's own on it."""
    values = {
        "S3_BUCKET": BUCKET, "S3_ENDPOINT_URL": versity, "S3_ACCESS_KEY_ID": KEY, "S3_SECRET_ACCESS_KEY": SECRET,
        "S3_ADDRESSING": "path", "S3_PREFIX": tmp_path.name,
    }  # fmt: skip
    settings.VISIONA = {**settings.VISIONA, **values}
    return Store("s3", tmp_path)


def finalize(api, begun, body=None):
    return api("POST", f"/api/models/{begun['model']['id']}/finalize", body)


def test_an_upload_whose_checksum_the_server_verified(server, alice_api, monkeypatch):
    """It refuses other bytes itself, so that none is read back; without a promised checksum they are."""
    read = []
    monkeypatch.setattr(
        s3, "_pieces", lambda body, length, pieces=s3._pieces: read.append(length) or pieces(body, length)
    )
    begun = init(alice_api, sha256=sha256(DATA))
    assert server.send(begun["upload"], DATA[::-1]).status == 400
    assert finalize(alice_api, begun).code == "INVALID_STATE"
    assert server.send(begun["upload"], DATA).status == 200
    done = finalize(alice_api, begun)
    assert (done.status, done.data["status"], done.data["sha256"]) == (200, "ready", sha256(DATA))
    assert read == []
    assert storage.store().verifies_checksums()
    other = init(alice_api, name="other")
    server.send(other["upload"], DATA)
    assert finalize(alice_api, other).data["sha256"] == sha256(DATA)
    assert read == [len(DATA)]
    url = alice_api("GET", f"/api/models/{begun['model']['id']}/download").data["url"]
    part = request("GET", url, headers={"Range": "bytes=5-14"})
    assert (part.status, part.body) == (206, DATA[5:15])
    assert len(server.keys()) == 2


def test_parts_of_which_one_was_left_out(server, alice_api, monkeypatch):
    monkeypatch.setattr(s3, "MULTIPART_ABOVE", 6 * MIB)
    monkeypatch.setattr(s3, "PART_LEAST", 5 * MIB)
    data = os.urandom(MIB) * 6 + b"tail"
    begun = init(alice_api, size=len(data), sha256=sha256(data))
    sending, parts = begun["upload"], []
    for part in sending["parts"]:
        start = (part["number"] - 1) * sending["part_size"]
        sent = request("PUT", part["url"], data[start : start + sending["part_size"]])
        parts.append({"number": part["number"], "etag": sent.headers["etag"]})
    assert finalize(alice_api, begun, {"parts": parts[:1]}).code == "INVALID_STATE"
    assert len(server.keys()) == 1  # the upload lives on
    done = finalize(alice_api, begun, {"parts": parts})
    assert (done.status, done.data["sha256"]) == (200, sha256(data))
    abandoned = init(alice_api, name="given up", size=len(data))
    assert len(server.keys()) == 2
    alice_api("DELETE", f"/api/models/{abandoned['model']['id']}")
    assert len(server.keys()) == 1


def test_a_bucket_that_is_not_there(server, settings):
    settings.VISIONA = {**settings.VISIONA, "S3_BUCKET": "none-such"}
    assert storage.store().problem() == "there is no bucket named 'none-such'"
    settings.VISIONA = {**settings.VISIONA, "S3_SECRET_ACCESS_KEY": "another"}
    assert storage.store().problem() == "the server refuses the credentials (SignatureDoesNotMatch)"
