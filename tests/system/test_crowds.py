"""A thousand viewers of one camera, and a thousand WebSockets, on port 3721 with default settings (quality.md)."""

from __future__ import annotations

import resource
import selectors
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apps.tunnels import registry
from tests.apps.proxy.kit import WAIT, Peer, Wire, until
from tests.apps.proxy.stack import Lane, Stack, Tunnel, add_user, log_in, start_process
from tests.conftest import Started
from tests.system.ws_kit import WS, echo, receive

pytestmark = [pytest.mark.system, pytest.mark.nightly]
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = ["tunnel"]
API_SETTINGS = {"API_WORKERS": "2"}
CROWD = 1000
BOXES = 8
FRAME = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: 2048\r\n\r\n" + bytes(2048) + b"\r\n"


@pytest.fixture(autouse=True)
def _files() -> None:
    """The crowd's own ends are ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))


def camera(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
    while peer.wait_gone(0.25) == "still there":
        peer.sock.sendall(FRAME)


def see_frames(wires: list[Wire], seconds: float) -> dict[Wire, int]:
    """How many bytes each gets within that time."""
    got = dict.fromkeys(wires, 0)
    with selectors.DefaultSelector() as watched:
        for wire in wires:
            wire.sock.setblocking(False)
            watched.register(wire.sock, selectors.EVENT_READ, wire)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for key, _ in watched.select(0.1):
                try:
                    data = key.data.sock.recv(1 << 16)
                except BlockingIOError:
                    continue
                except OSError:
                    data = b""
                if not data:
                    watched.unregister(key.fileobj)
                    got[key.data] = -1
                elif got[key.data] >= 0:
                    got[key.data] += len(data)
    return got


def other_asks(lane: Lane, stack: Stack) -> float:
    """Seconds for another user's list of devices."""
    token, began = log_in(add_user(stack)), time.monotonic()
    with lane.wire() as wire:
        wire.send(f"GET /api/devices HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        assert wire.read().status == 200
    return time.monotonic() - began


def test_a_thousand_viewers_of_one_camera_and_their_daemon_dies(lane: Lane, stack: Stack, tunnel: Tunnel) -> None:
    lane.box.on("/camera", camera)
    with ExitStack() as held:
        wires = [held.enter_context(lane.wire()) for _ in range(CROWD)]
        for wire in wires:
            wire.send(lane.head("GET", "/camera"))
        assert {wire.read_head().status for wire in wires} == {200}
        assert len(lane.box.heads) == 1, "each has a pull of its own"
        got = see_frames(wires, 8)
        asked = other_asks(lane, stack)
        print(f"viewers: {min(got.values())} to {max(got.values())} bytes in 8 s; another's list {asked * 1000:.0f} ms")
        assert min(got.values()) > 2 * len(FRAME)
        assert asked < 2
        tunnel.daemon.kill()
        ended = see_frames(wires, 5)
        assert set(ended.values()) == {-1}, "each is told, at once"


@pytest.fixture
def boxes(tunnel: Tunnel, tmp_path: Path) -> Iterator[list[tuple[str, str]]]:
    """(device, token) of eight boxes of four users, all with one local server."""
    users = [add_user(tunnel.stack) for _ in range(BOXES // 2)]
    agents: list[Started] = []
    for number in range(BOXES):
        user = users[number // 2]
        with Wire(tunnel.stack.port) as wire:
            head = f"POST /api/pairing/token HTTP/1.1\r\nAuthorization: Bearer {log_in(user)}\r\nHost: localhost\r\n"
            wire.send(f"{head}Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            token = wire.read().json["data"]["token"]
        agents.append(
            start_process(
                "agent", tmp_path / f"agent-{number}.log", ["tunnel.agent", "run"],
                AGENT_URL=f"http://127.0.0.1:{tunnel.public}", AGENT_LOCAL=f"127.0.0.1:{tunnel.box_port}",
                AGENT_CREDENTIALS=str(tmp_path / f"credentials-{number}.json"), AGENT_PAIRING_TOKEN=token,
            )
        )  # fmt: skip
    until(lambda: sum(len(registry.lookup_user(user)) for user in users) == BOXES, WAIT * 2)
    yield [(device, log_in(user)) for user in users for device in registry.lookup_user(user)]
    for agent in agents:
        agent.stop()


def test_a_thousand_websockets_over_eight_boxes(lane: Lane, stack: Stack, boxes: list[tuple[str, str]]) -> None:
    lane.box.on("/ws/echo", echo)
    with ExitStack() as held:
        wires: list[Wire] = []
        for number in range(CROWD):
            device, token = boxes[number % BOXES]
            wire = held.enter_context(lane.wire())
            fields = "\r\n".join(["Host: localhost", f"Authorization: Bearer {token}", f"X-Device-Id: {device}", *WS])
            wire.send(f"GET /ws/echo HTTP/1.1\r\n{fields}\r\n\r\n".encode())
            wires.append(wire)
        assert {wire.read_head().status for wire in wires} == {101}
        times = []
        for wire in wires:
            began = time.perf_counter()
            wire.send(b"ping")
            assert receive(wire, 4) == b"ping"
            times.append(time.perf_counter() - began)
        asked = other_asks(lane, stack)
        times.sort()
        print(
            f"WebSockets: echo {times[CROWD // 2] * 1000:.1f} ms, p99 {times[CROWD * 99 // 100] * 1000:.1f} ms;"
            f" another's list {asked * 1000:.0f} ms"
        )
        assert asked < 2
