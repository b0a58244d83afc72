"""Parts that stand still (SIGSTOP) or are cut off: they take connections, or hold them, and say nothing."""

import http.client
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from cloud.supervisor.probes import http_status
from tests.conftest import Started
from tests.system.many import end, online
from tests.system.stack import Answer, Stack, eventually, run_stack, standing_still

pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(600)]

STREAM = "/api/cameras/0/stream"
SCAN = "/api/devices/scan"


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """A system that gives a box a second to accept a stream and three to answer (10 and 60 otherwise)."""
    ports = free_port(), free_port(), free_port()
    with run_stack(
        tmp_path_factory.mktemp("frozen") / "var",
        ports,
        {"VISIONA_PROXY_OPEN_SECONDS": "1", "VISIONA_PROXY_HEAD_SECONDS": "3"},
    ) as running:
        yield running.start_all()


def served(stack: Stack) -> bool:
    try:
        return stack.call("GET", SCAN, seconds=30).status == 200
    except OSError:
        return False


def fast(stack: Stack, path: str, device: str) -> Answer:
    return stack.call("GET", f"/d/{device}{path}", port=stack.tunnel_port)


def handshake(stack: Stack) -> bytes:
    """The head of what an agent with an unknown token is told."""
    with socket.create_connection(("127.0.0.1", stack.tunnel_port), 30) as link:
        link.sendall(
            b"GET /tunnel/connect HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            b"Authorization: Bearer vAs_00000000000000000000000000000000\r\n\r\n"
        )
        return link.recv(1 << 16)


def test_the_daemon_stands_still(stack: Stack) -> None:
    """What needs a box is refused with 503 or 504 after the open timeout; the rest of the API does not notice."""
    assert served(stack)
    with standing_still(stack.processes["tunnel"].pid):
        refused = stack.call("GET", SCAN, seconds=30)
        assert (refused.status, refused.code) in ((503, "TUNNEL_UNAVAILABLE"), (504, "TUNNEL_TIMEOUT"))
        for path in ("/api/devices", "/api/auth/me", "/healthz"):
            assert stack.call("GET", path).status == 200
    eventually(lambda: served(stack), 60, "the daemon serves again")


def test_the_api_stands_still(stack: Stack) -> None:
    """A stream of the fast lane goes on; an agent that comes is told to come again, and is in when the API is back."""
    device = stack.device_id()
    assert fast(stack, "/api/cameras/0/snapshot", device).status == 200
    before = {one["session"] for one in stack.sessions()}
    link = f"GET /d/{device}{STREAM} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", stack.tunnel_port), 20) as client:
        client.sendall(link.encode())
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
        with standing_still(stack.processes["api"].pid):
            until = time.monotonic() + 6  # past the five seconds after which a stream is asked about anew
            while time.monotonic() < until:
                assert client.recv(1 << 16)
            told = handshake(stack)
            assert told.startswith(b"HTTP/1.1 503 ")
            assert b"\r\nretry-after:" in told.lower()
        assert client.recv(1 << 16)
    assert {one["session"] for one in stack.sessions()} == before
    eventually(lambda: served(stack), 60, "the API serves again")
    eventually(lambda: handshake(stack).startswith(b"HTTP/1.1 401 "), 60, "agents are judged again")


def visit(port: int, path: str, token: str, seconds: float) -> int:
    """The status of a request on a connection of its own; 0: there was no answer."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        link.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        return link.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        link.close()


def ready(stack: Stack) -> bool:
    return http_status(stack.internal_port, "/readyz") == 200


def all_is_served(stack: Stack, device: str) -> None:
    """Within 5 s of a quiet machine: both lanes, a new login's first request, an agent that comes, `/readyz`."""
    eventually(lambda: fast(stack, SCAN, device).status == 200, 5, "the daemon's lane serves")
    eventually(lambda: served(stack), 5, "the API's lane serves")
    eventually(lambda: ready(stack), 5, "ready")
    eventually(lambda: handshake(stack).startswith(b"HTTP/1.1 401 "), 5, "agents are looked at")
    stack.log_in()
    eventually(lambda: fast(stack, SCAN, device).status == 200, 5, "a new login is served")
    assert stack.device_id() == device


def test_the_api_stands_still_under_500_callers(stack: Stack) -> None:
    """Seven seconds without a word, under callers who are known and ask for something new each: all is as before."""
    device = stack.device_id()
    assert fast(stack, SCAN, device).status == 200
    paths = [f"/d/{uuid.uuid4()}/x" for _ in range(500)]  # nobody's device: each is a look-up of its own
    with ThreadPoolExecutor(500) as callers:
        with standing_still(stack.processes["api"].pid):
            until = time.monotonic() + 7
            asked = [callers.submit(visit, stack.tunnel_port, path, stack.token, 30) for path in paths]
            time.sleep(until - time.monotonic())
        assert {one.result() for one in asked} <= {404, 503}
    all_is_served(stack, device)


def test_strangers_with_tokens_made_up_keep_nobody_out(stack: Stack) -> None:
    """Two hundred at once for some seconds: known callers are served meanwhile, and all others afterwards."""
    device = stack.device_id()
    assert fast(stack, SCAN, device).status == 200
    over = time.monotonic() + 6

    def stranger(number: int) -> set[int]:
        seen = set()
        while time.monotonic() < over:
            seen.add(visit(stack.tunnel_port, f"/d/{device}/x", f"vAu_{number:012x}{time.monotonic_ns():020x}", 1))
        return seen

    with ThreadPoolExecutor(200) as crowd:
        strangers = [crowd.submit(stranger, number) for number in range(200)]
        statuses = []
        while time.monotonic() < over:
            statuses.append(fast(stack, SCAN, device).status)
            time.sleep(0.3)  # so that the grant is renewed, with the look-up that takes
        assert set(statuses) == {200}
        assert ready(stack)
        assert set().union(*(one.result() for one in strangers)) <= {0, 401, 429}
    all_is_served(stack, device)


def test_the_worker_stands_still(stack: Stack) -> None:
    """Nothing that a user asks for waits for it; what was put off meanwhile is done when it goes on."""
    with standing_still(stack.processes["worker"].pid):
        assert served(stack)
        assert stack.call("POST", "/api/pairing/token", {"name": "meanwhile"}).status == 201
        assert stack.call("POST", "/api/auth/logout-all").status == 200
        stack.log_in()
    assert served(stack)


def test_a_box_stands_still(stack: Stack) -> None:
    """A wedged agent reads nothing: after three streams that it did not take its tunnel is closed; then it is back."""
    before = {one["session"] for one in stack.sessions()}
    with standing_still(stack.processes["agent"].pid):
        assert stack.call("GET", SCAN, seconds=30).code == "TUNNEL_TIMEOUT"
        eventually(lambda: stack.call("GET", SCAN).code == "TUNNEL_DISCONNECTED", 60, "it is said to be offline")
        eventually(lambda: not before & {one["session"] for one in stack.sessions()}, 30, "its tunnel is gone")
    eventually(lambda: served(stack), 60, "the box comes back by itself")


# --- a network that is cut without a FIN ------------------------------------------------------------------------------
def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=20)


class Namespace:
    """A network of its own for a box, joined to this machine by one cable; `cut` loses every packet, both ways."""

    def __init__(self) -> None:
        self.name = f"vt{os.getpid()}"
        number = os.getpid() % 16000
        third, fourth = divmod(number * 4, 256)
        self.ours, theirs = f"10.213.{third}.{fourth + 1}", f"10.213.{third}.{fourth + 2}"
        here, there = f"va{os.getpid()}", f"vb{os.getpid()}"
        self._there = there
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self.name)
        run("ip", "addr", "add", f"{self.ours}/30", "dev", here)
        run("ip", "link", "set", here, "up")
        self.inside("ip", "addr", "add", f"{theirs}/30", "dev", there)
        self.inside("ip", "link", "set", there, "up")
        self.inside("ip", "link", "set", "lo", "up")

    def inside(self, *argv: str) -> None:
        run("ip", "netns", "exec", self.name, *argv)

    @contextmanager
    def cut(self) -> Iterator[None]:
        for chain in ("INPUT", "OUTPUT"):
            self.inside("iptables", "-I", chain, "!", "-i" if chain == "INPUT" else "-o", "lo", "-j", "DROP")
        try:
            yield
        finally:
            self.inside("iptables", "-F")

    def close(self) -> None:
        run("ip", "netns", "del", self.name)


@pytest.fixture
def network() -> Iterator[Namespace]:
    if shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        absent = "no iptables here: it is what cuts the network"
        pytest.fail(absent) if os.environ.get("CI") == "true" else pytest.skip(absent)
    try:
        made = Namespace()
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {error}")
    yield made
    made.close()


def in_network(stack: Stack, network: Namespace, folder: Path) -> Started:
    """A demo box called `far` inside the namespace."""
    token = stack.call("POST", "/api/pairing/token", {"name": "far"}).data["token"]
    url = f"ws://{network.ours}:{stack.tunnel_port}"
    argv = ["ip", "netns", "exec", network.name, sys.executable, "-m", "tunnel.agent", "demo", "--url", url,
            "--credentials", str(folder / "far.json"), "--pairing-token", token]  # fmt: skip
    log = folder / "far.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, cwd=plans.ROOT, env=dict(stack.plan.environ), stdout=out, stderr=out, start_new_session=True
        )
    return Started("far", process, log)


def test_a_network_that_is_cut_without_a_fin(stack: Stack, network: Namespace, tmp_path: Path) -> None:
    """No FIN, no RST, no error: the tunnel is dead after three streams that were not accepted, and comes back."""
    program = plans.tunnel(stack.plan)
    reach = {**program.env, "VISIONA_BIND_HOST": network.ours}
    tunnel = replace(program, env=reach, ready=lambda _pid: http_status(stack.internal_port, "/readyz") == 200)
    with ExitStack() as undo:
        undo.callback(stack.start_agent)
        stack.stop("agent")
        undo.callback(lambda: stack.start(plans.tunnel(stack.plan)))
        stack.stop("tunnel", 40)
        stack.start(tunnel)
        undo.callback(stack.stop, "tunnel", 40)
        undo.callback(end, in_network(stack, network, tmp_path))
        eventually(lambda: "far" in online(stack), 60, "the box is online")
        assert stack.call("GET", SCAN).status == 200
        with network.cut():
            assert stack.call("GET", SCAN, seconds=30).code == "TUNNEL_TIMEOUT"
            eventually(lambda: stack.call("GET", SCAN).code == "TUNNEL_DISCONNECTED", 60, "it is said to be offline")
        eventually(lambda: "far" in online(stack), 90, "the box is back")
        eventually(lambda: served(stack), 30, "it serves")
