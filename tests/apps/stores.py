"""Both stores for the tests of models: a folder of the test's own, and S3 spoken by moto's server, a real process."""

import base64
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
import pytest
from botocore.loaders import create_loader
from django.db import connection
from django.test import Client
from procrastinate.contrib.django.models import ProcrastinateJob

from apps.model_registry import finalization, services
from apps.storage import services as storage
from tests.ports import free_port

BUCKET = "models"
_LOADER, _SESSION = create_loader(), boto3.session.Session


def _sharing() -> boto3.session.Session:
    core = botocore.session.Session()
    core.register_component("data_loader", _LOADER)
    return _SESSION(botocore_session=core)


class Moto:
    """moto's server as a process. Its bucket is there once `start` returns."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def start(self) -> None:
        argv = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, env={**os.environ}
        )
        deadline = time.monotonic() + 60
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                pytest.fail(f"moto's server does not answer\n{self._log.read()[-2000:]!r}")
            time.sleep(0.05)
        self.client().create_bucket(Bucket=BUCKET)

    def _answers(self) -> bool:
        """Whether it is moto that does: nobody else has this page."""
        with suppress(OSError), urllib.request.urlopen(f"{self.url}/moto-api/data.json", timeout=5) as answer:
            return b"{" in answer.read(1)
        return False

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def close(self) -> None:
        self.stop()
        self._log.close()

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )

    def settings(self, prefix: str) -> dict[str, str]:
        return {
            "S3_BUCKET": BUCKET,
            "S3_ENDPOINT_URL": self.url,
            "S3_ACCESS_KEY_ID": "key",
            "S3_SECRET_ACCESS_KEY": "secret",
            "S3_ADDRESSING": "path",
            "S3_PREFIX": prefix,
        }


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    """The run's one server of S3. All clients share what boto3 reads of S3: a tenth of a second for each, else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boto3.session, "Session", _sharing)
        server = Moto()
        server.start()
        yield server
        server.close()


@dataclass
class Store:
    """The store of a test. `kind` is `local` or `s3`."""

    kind: str
    folder: Path
    moto: Moto | None = None
    prefix: str = ""
    ages: dict[str, float] = field(default_factory=dict)

    def keys(self) -> set[str]:
        """All that is there once the worker has been: keys, with the id of a multipart upload behind a blank."""
        if self.kind == "s3":
            run_jobs()
        return {f"{found.key} {found.upload_id}".strip() for found in storage.store().leftovers()}

    def files(self) -> list[Path]:
        """Every file of the local store."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def send(self, upload: dict[str, Any], data: bytes, **headers: str) -> "Sent":
        """PUT as an uploader would, to the URL that `init` answered."""
        return request("PUT", upload["url"], data, {**upload.get("headers", {}), **headers})


@dataclass
class Sent:
    """The answer to a request for bytes; its headers by lower-case name."""

    status: int
    headers: dict[str, str]
    body: bytes


def request(method: str, url: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Sent:
    """A request to a signed URL: of ours by Django's client, of S3 over a socket."""
    parts = urlsplit(url)
    if parts.path.startswith("/storage/"):
        extra = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in (headers or {}).items()}
        kind = extra.pop("HTTP_CONTENT_TYPE", "application/octet-stream")
        client = Client(raise_request_exception=False)
        found = client.generic(method, parts.path, body or b"", content_type=kind, **extra)
        content = b"".join(found.streaming_content) if found.streaming else found.content
        return Sent(found.status_code, {k.lower(): v for k, v in found.headers.items()}, content)
    link = http.client.HTTPConnection(parts.netloc, timeout=30)
    try:
        link.request(method, f"{parts.path}?{parts.query}", body, headers or {})
        answer = link.getresponse()
        return Sent(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
    finally:
        link.close()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> Store:
    """A store of the test's own; what uses it runs twice."""
    values = {"STORAGE_DIR": str(tmp_path / "storage"), "S3_BUCKET": ""}
    made = Store(request.param, tmp_path / "storage")
    if request.param == "s3":
        made.moto, made.prefix = request.getfixturevalue("moto"), uuid.uuid4().hex
        values |= made.moto.settings(made.prefix)
    settings.VISIONA = {**settings.VISIONA, **values}
    return made


@pytest.fixture
def local(settings: Any, tmp_path: Path) -> Store:
    """The local store alone."""
    settings.VISIONA = {**settings.VISIONA, "STORAGE_DIR": str(tmp_path / "storage"), "S3_BUCKET": ""}
    return Store("local", tmp_path / "storage")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def sha256_base64(data: bytes) -> str:
    return base64.b64encode(hashlib.sha256(data).digest()).decode()


def run_jobs() -> None:
    """What a worker would do now for uploads: bytes discarded, and all that waits checked."""
    jobs = ProcrastinateJob.objects.filter(task_name=services.DISCARD, status="todo")
    withdrawals = ProcrastinateJob.objects.filter(task_name=services.WITHDRAW, status="todo")
    for args in list(jobs.values_list("args", flat=True)):
        storage.store().discard(**args)
    for args in list(withdrawals.values_list("args", flat=True)):
        services.withdraw(**args)
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM procrastinate_jobs WHERE task_name IN (%s, %s, %s)",
            [services.DISCARD, services.WITHDRAW, finalization.TASK],
        )
    services.check_uploads(leaving=lambda: False)
