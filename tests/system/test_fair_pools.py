"""One user takes all that can be had of a pool that all users share; another's calls go on. From outside.

Deployments and deliveries to webhooks have the same rule in the worker: `test_transfer.py`, `test_delivery.py`.
"""

from __future__ import annotations

import hashlib
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace

import psutil
import pytest

from tests.apps.proxy.kit import WAIT, Box, Peer, Wire
from tests.apps.proxy.stack import Lane, Stack, add_device, add_user, log_in, put_online
from tests.apps.proxy.stand_in import StandInDaemon

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]

API_SETTINGS = {"API_THREADS": "32", "STORAGE_TRANSFERS": "4"}
MOST = 12  # of each kind: more than there are places
MODEL = bytes(range(256)) * (96 << 10)  # 24 MiB: more than the sockets between hold


@pytest.fixture(scope="module", autouse=True)
def _few_files(stack: Stack) -> None:
    """So many files may a worker open that it has 64 places for what lasts."""
    for worker in psutil.Process(stack.process.popen.pid).children():
        resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (256, 8192))


@pytest.fixture
def other(stack: Stack, lane: Lane) -> Iterator[Lane]:
    """Another user, with another box behind another daemon."""
    with closing(Box()) as box, closing(StandInDaemon(box.port)) as daemon:
        user = add_user(stack)
        device = add_device(stack, user)
        put_online(device, user, daemon, node="node-of-the-other")
        prefix = f"/api/devices/{device}/proxy"
        yield replace(lane, prefix=prefix, token=log_in(user), box=box, device_id=device, user_id=user, stand_in=daemon)


def events(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
    peer.wait_gone(WAIT)


def begin(lane: Lane, held: ExitStack, path: str, *, prefix: str | None = None, room: int = 0) -> Wire:
    wire = held.enter_context(lane.wire(room=room))
    wire.send(lane.head("GET", path, prefix=prefix))
    return wire


def test_event_streams(lane: Lane, other: Lane) -> None:
    for each in (lane, other):
        each.box.on("/events", events)
    with ExitStack() as held:
        took = [begin(lane, held, "/events").read_head().status for _ in range(60)]
        assert took.count(200) >= 40, "nor is one user alone kept short"
        assert took[-1] == 503
        assert [other.ask("GET", f"/{n}").status for n in range(MOST)] == [200] * MOST
        assert begin(other, held, "/events").read_head().status == 200


def test_calls_that_hang(lane: Lane, other: Lane) -> None:
    go_on = threading.Event()

    def hang(peer: Peer) -> None:
        go_on.wait(WAIT)
        peer.answer(b"done")

    lane.box.on("/hang", hang)
    with ExitStack() as held:
        held.callback(go_on.set)
        for _ in range(31):  # as many as there are threads for exchanges, and one
            begin(lane, held, "/hang")
        assert [other.ask("GET", f"/{n}").status for n in range(MOST)] == [200] * MOST


def test_slow_downloads(lane: Lane, other: Lane) -> None:
    paths = {each.user_id: download_path(each) for each in (lane, other)}
    with ExitStack() as held:
        slow = [begin(lane, held, paths[lane.user_id], prefix="", room=4096) for _ in range(4)]
        assert sorted(wire.read_head().status for wire in slow) == [200, 200, 200, 503]
        got = other.ask("GET", paths[other.user_id], prefix="")
        assert (got.status, got.body == MODEL) == (200, True)


def download_path(lane: Lane) -> str:
    """A model of the user's, and where to fetch it, as a client gets there."""
    facts = {"name": "m", "version": "1", "filename": "m.nef", "size": len(MODEL), "chips": ["KL720"]}
    begun = call(lane, "POST", "/api/models/init", facts | {"sha256": hashlib.sha256(MODEL).hexdigest()})
    path = begun["upload"]["url"].partition(f":{lane.port}")[2]
    assert lane.ask("PUT", path, "Content-Type: application/octet-stream", body=MODEL, prefix="").status == 201
    model = begun["model"]["id"]
    call(lane, "POST", f"/api/models/{model}/finalize", {})
    return str(call(lane, "GET", f"/api/models/{model}/download")["url"].partition(f":{lane.port}")[2])


def call(lane: Lane, method: str, path: str, body: dict[str, object] | None = None) -> dict[str, dict[str, str]]:
    sent = b"" if body is None else json.dumps(body).encode()
    got = lane.ask(method, path, "Content-Type: application/json", body=sent, prefix="")
    assert got.status in (200, 201), got.body
    data: dict[str, dict[str, str]] = got.json["data"]
    return data


def test_scans_of_all(lane: Lane, other: Lane) -> None:
    path, go_on = "/api/devices/scan", threading.Event()

    def hang(peer: Peer) -> None:
        go_on.wait(WAIT)

    lane.box.on(path, hang)
    with ExitStack() as held:
        held.callback(go_on.set)
        for _ in range(MOST):
            begin(lane, held, f"{path}?device_id=all", prefix="")
        for _ in range(5):
            got = other.ask("GET", f"{path}?device_id=all", prefix="")
            assert (got.status, [each["device_id"] for each in got.json["data"]["results"]]) == (200, [other.device_id])
