"""Uploads on servers of S3 that are none of Python's: rclone's and versitygw, built once as Go modules.

Of both only what is needed, by a `main` of our own (tests/interop/s3): a third of the processor time to build.
"""

import datetime as dt
import os
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from django.utils import timezone

from apps.model_registry import upkeep
from apps.storage import s3
from apps.storage import services as storage
from cloud.startup import StartupError, check_storage
from tests.apps.model_registry.kit import DATA, init
from tests.apps.stores import BUCKET, Store, request, sha256
from tests.interop.go_build import PLAIN, build
from tests.ports import free_port
from tests.tls import Authority, make_authority

pytestmark = pytest.mark.timeout(1000)
FOLDER = Path(__file__).resolve().parents[2] / "interop" / "s3"
KEY, SECRET = "key", "secretsecret"
MIB = 1 << 20


@contextmanager
def serving(name: str, folder: Path, authority: Authority | None = None) -> Iterator[str]:
    """The URL of a server of our own with our bucket; by TLS with an authority's certificate."""
    program = str(build(FOLDER / name, flags=PLAIN))
    port = free_port()
    (folder / BUCKET).mkdir(parents=True)
    where = f"127.0.0.1:{port}"
    argv = {
        "versitygw": [program, where, str(folder)],
        "rclone": [program, "serve", "s3", "--addr", where, "--auth-key", f"{KEY},{SECRET}", "--config", os.devnull,
                   str(folder)],
    }[name]  # fmt: skip
    if authority is not None:
        leaf = str(authority.file.with_name("leaf.pem"))
        argv += ["--cert", leaf, "--key", leaf]
    server = subprocess.Popen(
        argv, env={**os.environ, "ROOT_ACCESS_KEY": KEY, "ROOT_SECRET_KEY": SECRET},
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        url = f"{'http' if authority is None else 'https'}://{where}"
        deadline = time.monotonic() + 60
        while not has_our_bucket(url, authority):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait(10)


def has_our_bucket(url: str, authority: Authority | None) -> bool:
    """Whether the one that answers there is the one that was started: by our key it has our bucket."""
    client = boto3.session.Session().client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        verify=authority and str(authority.file),
        config=Config(connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1},
                      s3={"addressing_style": "path"}),
    )  # fmt: skip
    with suppress(BotoCoreError, ClientError):
        client.head_bucket(Bucket=BUCKET)
        return True
    return False


@pytest.fixture(scope="module", params=["rclone", pytest.param("versitygw", marks=pytest.mark.nightly)])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of each of them in turn."""
    with serving(request.param, tmp_path_factory.mktemp(request.param)) as url:
        yield url


def named(url: str, prefix: str) -> dict[str, str]:
    """The settings that lead there."""
    return {
        "S3_BUCKET": BUCKET, "S3_ENDPOINT_URL": url, "S3_ACCESS_KEY_ID": KEY, "S3_SECRET_ACCESS_KEY": SECRET,
        "S3_ADDRESSING": "path", "S3_PREFIX": prefix,
    }  # fmt: skip


@pytest.fixture
def server(real, settings, tmp_path):
    """A place of the test's own on it."""
    settings.VISIONA = {**settings.VISIONA, **named(real, tmp_path.name)}
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
    alice_api("DELETE", f"/api/models/{begun['model']['id']}")
    assert len(server.keys()) == 2  # kept, and where no URL leads
    assert request("GET", url).status == 404
    assert counted(upkeep.reap(now=timezone.now() + dt.timedelta(days=31))) == (0, 1, 0, 0)
    assert len(server.keys()) == 1


def counted(found):
    return found.uploads, found.models, found.orphans, found.failed


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


def test_a_private_authority(settings, tmp_path, alice_api, capsys):
    """Its certificates are named by a setting; without it, or with another file, one line says so at the start."""
    authority = make_authority(tmp_path)
    with serving("rclone", tmp_path / "data", authority) as url:
        values = {**settings.VISIONA, **named(url, "tls")}
        settings.VISIONA = {**values, "S3_CA_FILE": str(authority.file)}
        check_storage(settings.VISIONA)
        begun = init(alice_api, sha256=sha256(DATA))
        sending = begun["upload"]
        put = urllib.request.Request(sending["url"], DATA, sending["headers"], method="PUT")
        with urllib.request.urlopen(put, context=ssl.create_default_context(cafile=authority.file)) as sent:
            assert sent.status == 200
        assert finalize(alice_api, begun).data["status"] == "ready"
        (tmp_path / "empty.pem").write_text("no certificate")
        for file, said in (
            ("", "VISIONA_S3_CA_FILE names one of your own"),
            (str(tmp_path / "none.pem"), "no certificates that can be read"),
            (str(tmp_path / "empty.pem"), "no certificates that can be read"),
        ):
            settings.VISIONA = {**values, "S3_CA_FILE": file}
            with pytest.raises(StartupError, match=said):
                check_storage(settings.VISIONA)
        assert "does not answer" not in capsys.readouterr().err
