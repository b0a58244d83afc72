"""Deployments in the whole system: to the demo box, cancelled, through a tunnel and past a worker that are killed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from cloud.supervisor import plan as plans
from tests.apps.deployments.box import ModelBox
from tests.conftest import Started
from tests.system.before import agent_before
from tests.system.many import online
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DATA = random.Random(20).randbytes(20 << 20)
HALF = len(DATA) // 2
SHA256 = hashlib.sha256(DATA).hexdigest()


@pytest.fixture(scope="module")
def model(shared_system: Stack) -> str:
    """A ready model of 20 MB, by all the steps of an upload; its id."""
    body = {"name": "large", "version": "1", "filename": "large.nef", "size": len(DATA), "chips": ["KL720"]}
    begun = shared_system.call("POST", "/api/models/init", body)
    assert begun.status == 201, begun.body
    upload = begun.data["upload"]
    parts = urlsplit(upload["url"])
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    sent = shared_system.call(upload["method"], target, DATA, headers=upload["headers"], token="", seconds=60)
    assert sent.status == 201, sent.body
    found = str(begun.data["model"]["id"])
    done = shared_system.call("POST", f"/api/models/{found}/finalize", seconds=60)
    assert done.data["status"] == "ready", done.body
    return found


class Way:
    """A scripted box behind a real agent of its own."""

    def __init__(self, system: Stack, folder: Path, name: str) -> None:
        self.system = system
        self.name = name
        self.box = ModelBox(len(DATA))
        self._folder = folder
        self._agents: list[Started] = []
        self.device = ""

    def connect(self) -> None:
        """Start the agent, and wait until it is online."""
        self._agents.append(agent_before(self.system, self.name, self.box.port, self._folder))
        self.device = eventually(lambda: online(self.system).get(self.name, ""), 40, f"{self.name} is online")

    def cut(self) -> None:
        """SIGKILL for the agent: its tunnel is gone."""
        self._agents[-1].kill()

    def close(self) -> None:
        self.box.close()
        for one in self._agents:
            one.kill()


@pytest.fixture
def way(shared_system: Stack, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Way]:
    made = Way(shared_system, tmp_path, request.node.name)
    try:
        made.connect()
        yield made
    finally:
        made.close()


def begin(system: Stack, model: str, device: str) -> str:
    made = system.call("POST", f"/api/models/{model}/deploy", {"device_id": device})
    assert made.status == 201, made.body
    return str(made.data["id"])


def look(system: Stack, deployment: str) -> dict[str, Any]:
    return dict(system.call("GET", f"/api/deployments/{deployment}").data)


def wait_end(system: Stack, deployment: str, seconds: float = 60) -> dict[str, Any]:
    """The deployment once it is over."""

    def over() -> dict[str, Any] | None:
        seen = look(system, deployment)
        return seen if seen["finished_at"] else None

    return dict(eventually(over, seconds, f"the end of {look(system, deployment)}"))


def check_resumed(box: ModelBox) -> None:
    """All of it arrived, none of it from the beginning again (what sockets held may have arrived meanwhile)."""
    begins = [int(told.split(" ")[1].split("-")[0]) for told in box.ranges]
    assert begins.count(0) == 1, begins
    assert begins == sorted(begins)
    assert begins[-1] > HALF, begins
    assert hashlib.sha256(box.kept).hexdigest() == SHA256


def test_to_the_demo_box(shared_system: Stack, model: str) -> None:
    shared_system.device_id()  # it is online
    devices = shared_system.call("GET", f"/api/devices?search={shared_system.serial}").data
    device = next(one["id"] for one in devices if one["serial"] == shared_system.serial)
    done = wait_end(shared_system, begin(shared_system, model, device))
    assert (done["status"], done["bytes_done"], done["bytes_total"]) == ("done", len(DATA), len(DATA))
    assert done["error"] is None
    kept = shared_system.call("GET", f"/api/devices/{device}/proxy/api/models/{model}").json
    assert (kept["status"], kept["received"], kept["sha256"]) == ("ready", len(DATA), SHA256)


def test_progress_is_told_and_a_cancel_is_heard_amid_it(shared_system: Stack, model: str, way: Way) -> None:
    since = len(shared_system.log("worker"))
    way.box.hold_at(HALF)
    deployment = begin(shared_system, model, way.device)
    assert way.box.between.wait(60)
    eventually(lambda: look(shared_system, deployment)["bytes_done"] >= HALF, 30, "progress is told")
    seen = look(shared_system, deployment)
    assert seen["status"] == "sending"
    assert HALF <= seen["bytes_done"] < len(DATA)
    assert shared_system.call("DELETE", f"/api/deployments/{deployment}").status == 200
    assert look(shared_system, deployment)["status"] == "cancelled"

    def stopped() -> bool:
        return '"outcome":"stopped","bytes_done"' in shared_system.log("worker")[since:]

    eventually(stopped, 30, "the worker stops")
    way.box.go_on()
    assert len(way.box.kept) < len(DATA)
    assert look(shared_system, deployment)["status"] == "cancelled"


def test_it_goes_on_after_a_tunnel_that_was_killed(shared_system: Stack, model: str, way: Way) -> None:
    way.box.hold_at(HALF)
    deployment = begin(shared_system, model, way.device)
    assert way.box.between.wait(60)
    way.cut()
    way.box.go_on()
    eventually(lambda: look(shared_system, deployment)["status"] == "queued", 60, "it waits for the device")
    assert look(shared_system, deployment)["error"]["code"]
    way.connect()
    done = wait_end(shared_system, deployment, 90)
    assert done["status"] == "done", done
    check_resumed(way.box)


def test_it_goes_on_after_a_worker_that_was_killed(shared_system: Stack, model: str, way: Way) -> None:
    way.box.hold_at(HALF)
    deployment = begin(shared_system, model, way.device)
    assert way.box.between.wait(60)
    shared_system.kill("worker")
    try:
        way.box.go_on()
        assert look(shared_system, deployment)["status"] == "sending"
    finally:
        shared_system.start(plans.worker(shared_system.plan))
    done = wait_end(shared_system, deployment, 90)
    assert done["status"] == "done", done
    check_resumed(way.box)
