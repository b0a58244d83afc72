"""Agents that acknowledge a stream with their own first frame on it: Rust's `yamux`, npm's `yamux-js`; both lanes.

Whoever waits for their ACK before he has sent the request waits for ever.
"""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.system.stack import Answer, Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.interop, pytest.mark.timeout(1000)]  # with what it builds

OPEN_SECONDS = 4.0
SLOW_MS = 6000
"""Longer than an open may take: the answer's head may."""
UPLOAD = bytes(range(256)) * 4096


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """api and daemon without a demo box; little time to open a stream."""
    settings = {"VISIONA_PROXY_OPEN_SECONDS": str(OPEN_SECONDS), "VISIONA_STATIC_USER_ID": "demo-user"}
    var = tmp_path_factory.mktemp("lazy") / "var"
    with run_stack(var, (free_port(), free_port(), free_port()), settings) as running:
        running.start(plans.tunnel(running.plan))
        running.start(plans.api(running.plan))
        running.token = "demo-access-token"
        yield running


@dataclass(frozen=True, slots=True)
class Box:
    """A box whose agent is one of the lazy ones."""

    stack: Stack
    device: str

    def ask(self, lane: str, method: str, path: str, body: bytes | None = None) -> Answer:
        """One call, by the API (`drf`) or by the daemon's public port (`fast`)."""
        if lane == "drf":
            return self.stack.call(method, f"/api/devices/{self.device}/proxy{path}", body, seconds=60)
        return self.stack.call(method, f"/d/{self.device}{path}", body, seconds=60, port=self.stack.tunnel_port)

    def session(self) -> str:
        """What tells one connection of the agent from another."""
        (one,) = [each["session"] for each in self.stack.sessions() if each["device_id"] == self.device]
        return str(one)


@pytest.fixture(scope="module", params=["rust", "node"])
def box(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    command: list[str] = request.getfixturevalue(f"{request.param}_agent")
    made = stack.call("POST", "/api/pairing/token", {"name": request.param}).data
    log = Path(tmp_path_factory.mktemp("agent")) / "agent.log"
    url = f"ws://127.0.0.1:{stack.tunnel_port}/tunnel/connect"
    with log.open("wb") as file, subprocess.Popen([*command, url, made["token"]], stdout=file, stderr=file) as process:
        try:

            def online() -> str:
                assert process.poll() is None, log.read_text()
                devices = stack.call("GET", "/api/devices").data
                return next(
                    (str(d["id"]) for d in devices if d["name"] == request.param and d["link_status"] == "online"), ""
                )

            yield Box(stack, eventually(online, 20, "the agent is connected"))
            assert process.poll() is None, log.read_text()
        finally:
            process.kill()


LANES = pytest.mark.parametrize("lane", ["drf", "fast"])


@LANES
def test_small_calls_one_after_the_other_and_many_at_once(box: Box, lane: str) -> None:
    began = time.monotonic()
    seen = Counter(box.ask(lane, "GET", "/").status for _ in range(20))
    assert seen == {200: 20}
    assert time.monotonic() - began < 20 * OPEN_SECONDS / 2, "each waited for an ACK that does not come"
    with ThreadPoolExecutor(16) as pool:
        seen = Counter(pool.map(lambda _: box.ask(lane, "POST", "/sum", b"abc").body, range(200)))
    assert seen == {b"3 294": 200}


@LANES
def test_bodies_of_many_windows_both_ways(box: Box, lane: str) -> None:
    got = box.ask(lane, "POST", "/sum", UPLOAD)
    assert (got.status, got.body) == (200, b"%d %d" % (len(UPLOAD), sum(UPLOAD)))
    got = box.ask(lane, "GET", f"/bytes/{len(UPLOAD)}")
    assert (got.status, got.body) == (200, bytes(at % 251 for at in range(len(UPLOAD))))


@LANES
def test_slow_first_answers_cost_nothing_but_their_time(box: Box, lane: str) -> None:
    """More of them than used to end the tunnel, each slower than a stream may be to open."""
    session = box.session()
    with ThreadPoolExecutor(6) as pool:
        seen = Counter(pool.map(lambda _: box.ask(lane, "GET", f"/slow/{SLOW_MS}").body, range(6)))
    assert seen == {b"at last": 6}
    assert box.session() == session
