"""A Go agent from the field against the whole system: PostgreSQL, Valkey, api and daemon, all real."""

import json
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.system.stack import Stack, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.interop, pytest.mark.timeout(1000)]  # with what it builds
NIGHTLY = pytest.mark.nightly


@contextmanager
def running_agent(program: Path, log: Path, *arguments: str) -> Iterator[None]:
    with log.open("wb") as file, subprocess.Popen([program, *arguments], stdout=file, stderr=file) as process:
        try:
            yield
        finally:
            process.kill()


@pytest.fixture
def stack(request: pytest.FixtureRequest, tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Stack]:
    """api and daemon, with the yamux role that the test asks for; no demo box."""
    settings = {"VISIONA_YAMUX_ROLE": getattr(request, "param", "client"), "VISIONA_STATIC_USER_ID": "demo-user"}
    with run_stack(tmp_path / "var", (free_port(), free_port(), free_port()), settings) as running:
        running.start(plans.tunnel(running.plan))
        running.start(plans.api(running.plan))
        running.token = "demo-access-token"
        yield running


def many(stack: Stack, count: int, at_once: int) -> Counter[str]:
    """The outcomes of so many small calls through the tunnel: `200`, or the status and code of a refusal."""

    def one(_: int) -> str:
        answer = stack.call("GET", "/api/devices/scan")
        return "200" if answer.status == 200 else f"{answer.status} {answer.code}"

    with ThreadPoolExecutor(at_once) as pool:
        return Counter(pool.map(one, range(count)))


@pytest.mark.parametrize(
    ("stack", "kind"),
    [
        ("client", "http"),
        ("server", "pump"),
        pytest.param("client", "pump", marks=NIGHTLY),
        pytest.param("client", "http -keepalive", marks=NIGHTLY),
        pytest.param("server", "http", marks=NIGHTLY),
        pytest.param("server", "http -keepalive", marks=NIGHTLY),
    ],
    indirect=["stack"],
)
def test_a_thousand_requests_and_a_restarted_daemon(stack: Stack, go_agent: Path, tmp_path: Path, kind: str) -> None:
    """Paired by the token in its URL, it serves 1 000 requests 32 at a time, and is back after a daemon restart."""
    daemon_role = stack.plan.settings["YAMUX_ROLE"]
    role = {"client": "server", "server": "client"}[daemon_role]
    made = stack.call("POST", "/api/pairing/token", {"name": "demo"}, token="")
    arguments = ["-url", f"ws://127.0.0.1:{stack.tunnel_port}/tunnel/connect", "-token", made.data["token"]]
    arguments += ["-auth", "query", "-role", role, "-kind", *kind.split()]
    with running_agent(go_agent, tmp_path / "agent.log", *arguments):
        eventually(lambda: stack.call("GET", "/api/pairing/status").data["connected"], 20, "the agent is connected")
        assert many(stack, 1000, 32) == {"200": 1000}
        stack.kill("tunnel")
        stack.start(plans.tunnel(stack.plan))
        eventually(lambda: stack.call("GET", "/api/devices/scan").status == 200, 30, "the agent is back")
        assert many(stack, 64, 32) == {"200": 64}
        devices = stack.call("GET", "/api/devices").data
        assert [one["name"] for one in devices if one["link_status"] == "online"] == ["demo"]


def test_the_calls_of_the_prototypes_description(stack: Stack, go_agent: Path, tmp_path: Path) -> None:
    """The same calls, made the same way, give answers of the same shape and code (docs/migration.md)."""

    def curl(*arguments: str) -> dict[str, object]:
        words = [word.replace("localhost:3721", f"localhost:{stack.port}") for word in arguments]
        done = subprocess.run(["curl", "-s", "-m", "20", *words], capture_output=True, check=True, timeout=30)
        return dict(json.loads(done.stdout))

    as_json = ("-H", "Content-Type: application/json")
    bearer = ("-H", "Authorization: Bearer demo-access-token")
    assert curl("http://localhost:3721/healthz")["status"] == "ok"
    login = curl(
        "-X", "POST", "http://localhost:3721/api/auth/login", *as_json,
        "-d", '{"email":"demo@visionA.local","password":"any"}',
    )  # fmt: skip
    assert login["success"] is True
    assert isinstance(login["data"], dict)
    assert login["data"]["user"]["id"] == "demo-user"
    assert login["data"]["access_token"] == "demo-access-token"
    made = curl("-X", "POST", "http://localhost:3721/api/pairing/token", *as_json, "-d", '{"name":"demo"}')
    assert isinstance(made["data"], dict)
    assert made["data"]["token"].startswith("vAc_")
    assert len(made["data"]["token"]) == 36
    assert made["data"]["expires_at"].endswith("Z")
    down = curl(*bearer, "http://localhost:3721/api/devices/scan")
    assert isinstance(down["error"], dict)
    assert (down["success"], down["error"]["code"]) == (False, "TUNNEL_DISCONNECTED")
    assert down["error"]["request_id"].startswith("req_")

    url = f"ws://127.0.0.1:{stack.tunnel_port}/tunnel/connect"
    with running_agent(
        go_agent, tmp_path / "agent.log", "-url", url, "-token", made["data"]["token"], "-auth", "header"
    ):

        def connected() -> bool:
            status = curl(*bearer, "http://localhost:3721/api/pairing/status")
            return isinstance(status["data"], dict) and status["data"]["connected"] is True

        eventually(connected, 20, "the agent is connected")
        assert "devices" in curl(*bearer, "http://localhost:3721/api/devices/scan")
        assert "devices" in curl("-X", "POST", *bearer, "http://localhost:3721/api/devices/scan")
    me = curl(*bearer, "http://localhost:3721/api/auth/me")
    assert isinstance(me["data"], dict)
    assert me["data"]["id"] == "demo-user"
    listed = curl(*bearer, "http://localhost:3721/api/pairing/tokens")
    assert isinstance(listed["data"], list)
    assert curl("-X", "DELETE", *bearer, f"http://localhost:3721/api/pairing/tokens/{made['data']['id']}") == {
        "success": True,
        "data": None,
    }
    plain = curl(*bearer, "http://localhost:3721/ws/inference")
    assert isinstance(plain["error"], dict)
    assert plain["error"]["code"] == "UPGRADE_REQUIRED"
