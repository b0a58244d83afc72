"""Killed with -9 in the middle of an upload: no `ready` model without its bytes, no bytes that the reaper misses."""

import http.client
import json
import os
import uuid
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cloud.supervisor.demo import call
from tests.apps.stores import Moto, moto
from tests.conftest import StartProcess

__all__ = ["moto"]
pytestmark = pytest.mark.system

SIZE = 3 << 20


@pytest.mark.timeout(400)  # a fork and a dozen exchanges a step: a minute on a machine that is very busy
@pytest.mark.parametrize("kind", ["local", "s3"])
def test_at_every_step(
    kind: str, system_env: dict[str, str], start_process: StartProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    env = {**system_env, "VISIONA_STORAGE_DIR": str(tmp_path / "storage")}
    if kind == "s3":
        server: Moto = request.getfixturevalue("moto")
        env |= {f"VISIONA_{name}": value for name, value in server.settings(uuid.uuid4().hex).items()}
    program = start_process(["python", "-m", "tests.system.power_cut"], env=env, name="power-cut")
    assert program.wait_end(300) == 0, program.text()[-3000:]
    told = json.loads(next(line for line in program.text().splitlines() if line.startswith("[{")))
    assert [each for each in told if each["wrong"]] == []
    assert told[-1]["what"] == ""
    met = {each["what"] for each in told}
    assert {"statement", "commit", "a piece of the body", ""} <= met
    assert ({"fsync", "os.mkdir", "os.rename"} if kind == "local" else {"request to S3"}) <= met
    assert len(told) > 20


def test_the_api_in_the_middle_of_a_body(
    system_env: dict[str, str], start_process: StartProcess, tmp_path: Path
) -> None:
    """The half that came is no upload; the same URL takes the whole from the next API."""
    env = {**system_env, "VISIONA_STORAGE_DIR": str(tmp_path / "storage"), "VISIONA_API_WORKERS": "1"}
    port = int(env["VISIONA_API_PORT"])
    argv = ["python", "-m", "gunicorn", "-c", "cloud/gunicorn.conf.py", "cloud.wsgi"]
    ready = f"http://127.0.0.1:{port}/healthz"
    api = start_process(argv, env=env, name="api", ready=ready, seconds=60)
    person = {"email": "cut@example.com", "password": "correct horse battery"}
    call(port, "POST", "/api/auth/register", body=person)
    token = str(call(port, "POST", "/api/auth/login", body=person)["access_token"])
    facts = {"name": "m", "version": "1", "filename": "m.nef", "size": SIZE, "chips": []}
    begun = call(port, "POST", "/api/models/init", token, facts)
    slot = next((tmp_path / "storage" / "uploads").iterdir())
    path = urlsplit(begun["upload"]["url"]).path
    data = os.urandom(SIZE)

    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.putrequest("PUT", path)
    link.putheader("Content-Length", str(SIZE))
    link.endheaders()
    link.send(data[: SIZE - 1])
    api.wait_for(lambda: any(part.stat().st_size for part in slot.iterdir()), "part of the body")
    api.kill()
    link.close()
    assert [part.name.startswith("part-") for part in slot.iterdir()] == [True]

    start_process(argv, env=env, name="api-again", ready=ready, seconds=60)
    shown = call(port, "GET", f"/api/models/{begun['model']['id']}", token)
    assert shown["status"] == "pending"
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    link.request("PUT", path, data)
    assert link.getresponse().status == 201
    link.close()
    done = call(port, "POST", f"/api/models/{begun['model']['id']}/finalize", token, {})
    assert done["status"] == "ready"
    assert not slot.exists()
