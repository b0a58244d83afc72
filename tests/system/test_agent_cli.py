"""`visiona-agent` as a process: pairing, serving, status, signals, exit codes, memory."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.agent.fake_daemon import Admit, FakeDaemon, Refuse, fake_daemon
from tests.interop.agents import AgentProcess, agent_process
from tests.ports import free_port
from tunnel.agent.demo.box import Box
from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream

pytestmark = pytest.mark.system
PAIRING, SESSION = "vAc_" + "1" * 32, "vAs_" + "3" * 32
PAIRED = Admit((("X-VisionA-Session-Token", SESSION), ("X-VisionA-Device-Id", "device-1")))
AGENT = [sys.executable, "-m", "tunnel.agent"]
ROOT = Path(__file__).resolve().parents[2]


def environment(**more: str) -> dict[str, str]:
    """Ours without the settings and proxies that the tests' own surroundings may have."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("VISIONA_") and not k.lower().endswith("_proxy")}
    return plain | {"PYTHONPATH": str(ROOT)} | more


@asynccontextmanager
async def demo(daemon: FakeDaemon, credentials: Path, *flags: str, **env: str) -> AsyncIterator[AgentProcess]:
    command = [*AGENT, "demo", "--url", daemon.url, "--credentials", str(credentials), *flags]
    async with agent_process(command, environment(**env)) as agent:
        yield agent


async def get(connection: Connection, path: str) -> bytes:
    """The answer's body, through a fresh stream."""
    stream = await connection.open_stream(wait_ack=False)
    await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: box\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await read_all(stream)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    await stream.aclose()
    return body


async def read_all(stream: Stream) -> bytes:
    found = bytearray()
    while data := await stream.receive_some():
        found += data
    return bytes(found)


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AGENT, *words], env=environment(**env), capture_output=True, text=True, timeout=30, check=False
    )


async def ask_status(credentials: Path) -> tuple[int, dict[str, Any]]:
    done = await trio.to_thread.run_sync(lambda: run("status", "--json", "--credentials", str(credentials)))
    return done.returncode, json.loads(done.stdout)


async def test_the_life_of_a_demo_box(tmp_path: Path) -> None:
    credentials = tmp_path / "state" / "c.json"
    async with fake_daemon(PAIRED) as daemon:
        async with demo(daemon, credentials, "--serial", "SN-7", VISIONA_AGENT_PAIRING_TOKEN=PAIRING) as agent:
            connection = await daemon.connection()
            assert daemon.dialled[0].headers["authorization"] == f"Bearer {PAIRING}"
            assert daemon.dialled[0].headers["x-visiona-serial"] == "SN-7"
            await agent.event("connected")
            assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
            assert json.loads(credentials.read_text())["session_token"] == SESSION
            assert b"SN-7-KL520" in await get(connection, "/api/devices/scan")
            assert (await get(connection, "/api/cameras/0/snapshot")).startswith(b"\xff\xd8")
            code, status = await ask_status(credentials)
            assert (code, status["state"], status["device_id"]) == (0, "connected", "device-1")
            assert status["pid"] == agent.process.pid
            agent.process.terminate()
            with trio.fail_after(5):
                assert await agent.process.wait() == 0
            while connection.end_reason is None:
                await trio.sleep(0.01)
            assert connection.end_reason.close_code == 1001
            for secret in (PAIRING, SESSION):
                assert secret not in agent.log
        code, status = await ask_status(credentials)
        assert (code, status["state"], status["paired"]) == (1, "not running", True)
        async with demo(daemon, credentials):
            await daemon.connection()
            assert daemon.dialled[1].headers["authorization"] == f"Bearer {SESSION}"
            instances = {said.headers["x-visiona-instance"] for said in daemon.dialled}
            assert len(instances) == 1


async def test_sigterm_lets_an_answer_finish(tmp_path: Path) -> None:
    async with fake_daemon(PAIRED) as daemon, demo(daemon, tmp_path / "c", "--pairing-token", PAIRING) as agent:
        connection = await daemon.connection()
        stream = await connection.open_stream()
        await stream.send_all(
            b"GET /api/inference/bytes/262084?rate=131042 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n"
        )
        body = bytearray(await stream.receive_some())
        agent.process.terminate()
        await agent.event("connected")
        while data := await stream.receive_some():
            body += data
        assert len(body) > 262084
        assert connection.peer_going_away
        with trio.fail_after(8):
            assert await agent.process.wait() == 0


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    async with fake_daemon(PAIRED) as daemon, demo(daemon, tmp_path / "c", "--pairing-token", PAIRING) as agent:
        connection = await daemon.connection()
        stream = await connection.open_stream()
        await stream.send_all(b"POST /api/inference/sink HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\nhalf")
        await trio.sleep(0.2)
        agent.process.send_signal(signal.SIGINT)
        while not connection.peer_going_away:
            await trio.sleep(0.01)
        agent.process.send_signal(signal.SIGINT)
        with trio.fail_after(3):
            assert await agent.process.wait() == 0
        with pytest.raises(TunnelError):
            await read_all(stream)


REFUSALS = [Refuse(401, "TOKEN_REVOKED"), Refuse(403, "ACCOUNT_DISABLED"), 4401, 4403]


@asynccontextmanager
async def refused(
    refusal: Refuse | int, credentials: Path, *flags: str
) -> AsyncIterator[tuple[FakeDaemon, AgentProcess, str]]:
    """A demo box whose credential is refused, by an answer or a close code; the words that tell why."""
    first = refusal if isinstance(refusal, Refuse) else PAIRED
    async with fake_daemon(first) as daemon, demo(daemon, credentials, *flags) as agent:
        if isinstance(refusal, int):
            await (await daemon.connection()).aclose(refusal, "because")
        yield daemon, agent, refusal.code if isinstance(refusal, Refuse) else str(refusal)


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_does_not_end_it_and_a_new_token_is_tried_at_once(
    tmp_path: Path, refusal: Refuse | int
) -> None:
    settings = tmp_path / "agent.env"
    settings.write_text(f"AGENT_PAIRING_TOKEN={PAIRING}\n")
    async with refused(refusal, tmp_path / "c", "--config", str(settings)) as (daemon, agent, words):
        while not any(words in str(event["event"]) and "retry_in" in event for event in agent.events):
            await trio.sleep(0.02)
        (line,) = [event for event in agent.events if words in str(event["event"])]
        assert line["level"] == "error"
        assert 60 <= line["retry_in"] <= 72
        code, status = await ask_status(tmp_path / "c")
        assert (code, status["state"]) == (1, "refused")
        assert words in status["last_error"]
        assert agent.process.returncode is None
        other = "vAc_" + "2" * 32
        settings.write_text(f"AGENT_PAIRING_TOKEN={other}\n")
        await daemon.connection(seconds=20)
        assert daemon.dialled[-1].headers["authorization"] == f"Bearer {other}"


@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_refusal_ends_it_where_that_is_wanted(tmp_path: Path, refusal: Refuse | int) -> None:
    flags = ("--relay-token", PAIRING, "--exit-on-refusal")
    async with refused(refusal, tmp_path / "c", *flags) as (_, agent, words):
        with trio.fail_after(20):
            assert await agent.process.wait() == 3
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert words in agent.log


async def test_what_a_portal_says_is_tried_again_soon(tmp_path: Path) -> None:
    """A 403 that is not the daemon's, however often it comes: the box is there as soon as the portal is gone."""
    heads: list[bytes] = []
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]

    async def portal(stream: trio.SocketStream) -> None:
        async with stream:
            heads.append(await stream.receive_some())
            await stream.send_all(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 16\r\n\r\n<h1>log in!</h1>")

    async with fake_daemon() as reserved:
        pass
    reserved.port = port
    async with demo(reserved, tmp_path / "c", "--pairing-token", PAIRING, "--exit-on-refusal") as agent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, portal, [listener])
            with trio.fail_after(20):
                while len(heads) < 3:
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        async with fake_daemon(PAIRED, port=port) as daemon:
            await daemon.connection()
        assert agent.process.returncode is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--url", "cloud.example.com", "--pairing-token", PAIRING], "AGENT_URL"),
        (["run", "--url", "ws://h", "--local", "nonsense"], "AGENT_LOCAL"),
        (["run", "--pairing-token", PAIRING], "--url"),
        (["run", "--url", "ws://h"], "--pairing-token"),
        (["run", "--url", "ws://h", "--config", "/does/not/exist"], "cannot be read"),
        (["run", "--no-such-flag"], "No such option"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(tmp_path: Path, words: list[str], said: str) -> None:
    done = run(*words, VISIONA_AGENT_CREDENTIALS=str(tmp_path / "c"))
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_credential_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("{")
    done = run("run", "--url", "ws://h", "--credentials", str(tmp_path / "c"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "damaged" in done.stderr
    assert "pairing token" in done.stderr


def test_a_token_that_is_none_is_told(tmp_path: Path) -> None:
    done = run("run", "--url", "ws://h", "--credentials", str(tmp_path / "c"), "--pairing-token", "vAc_short")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "not a pairing token" in done.stderr
    assert "short" not in done.stderr


@pytest.mark.parametrize("content", ["", '{"instance": "x", "session_tok'])
async def test_a_damaged_file_and_a_fresh_token(tmp_path: Path, content: str) -> None:
    """What a power cut leaves behind keeps nobody from pairing anew; the file is kept aside."""
    (tmp_path / "c").write_text(content)
    async with fake_daemon(PAIRED) as daemon, demo(daemon, tmp_path / "c", "--pairing-token", f'"{PAIRING}"') as agent:
        await daemon.connection()
        assert daemon.dialled[0].headers["authorization"] == f"Bearer {PAIRING}"
        await agent.event("connected")
        assert json.loads((tmp_path / "c").read_text())["session_token"] == SESSION
        assert (tmp_path / "c.bad").read_text() == content


@pytest.fixture
def mounts() -> list[str]:
    """The words before a shell script that may mount what nobody else sees."""
    words = ["unshare", "--mount", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*words, "mount -t tmpfs none /mnt"], check=False).returncode:
        pytest.skip("mounts are not allowed here")
    return words


@pytest.mark.parametrize("paired", [True, False])
async def test_a_read_only_file_system(tmp_path: Path, mounts: list[str], paired: bool) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    if paired:
        (folder / "c").write_text(json.dumps({"instance": "i", "session_token": SESSION, "device_id": "device-1"}))
    async with fake_daemon(Admit() if paired else PAIRED) as daemon:
        words = [*AGENT, "demo", "--url", daemon.url, "--credentials", str(folder / "c")]
        words += [] if paired else ["--pairing-token", PAIRING]
        script = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder} && exec {shlex.join(words)}"
        async with agent_process([*mounts, script], environment()) as agent:
            await daemon.connection()
            assert daemon.dialled[0].headers["authorization"] == f"Bearer {SESSION if paired else PAIRING}"
            await agent.event("connected")
            unwritten = [event for event in agent.events if "Read-only" in str(event.get("why"))]
            assert ("in memory only" in unwritten[-1]["event"]) == (not paired)
            assert agent.process.returncode is None
    assert [path.name for path in folder.iterdir()] == (["c"] if paired else [])


async def test_it_says_that_nothing_answers_at_its_local_address(tmp_path: Path) -> None:
    port = free_port()
    async with fake_daemon(PAIRED, PAIRED) as daemon:
        words = ["run", "--url", daemon.url, "--credentials", str(tmp_path / "c"), "--pairing-token", PAIRING]
        async with agent_process([*AGENT, *words, "--local", str(port)], environment()) as agent:
            connection = await daemon.connection()
            assert daemon.dialled[0].headers["x-visiona-local"] == f"127.0.0.1:{port}; listening=no"
            (line,) = [event for event in agent.events if "nothing answers" in str(event["event"])]
            assert line["local"] == f"127.0.0.1:{port}"
            _, status = await ask_status(tmp_path / "c")
            assert status["local_answers"] is False
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: Box().serve(port=port, task_status=task_status))
                assert b"ok" in await get(connection, "/healthz")
                await agent.event("the local address answers again")
                _, status = await ask_status(tmp_path / "c")
                assert status["local_answers"] is True
                await connection.aclose(1012, "restart")
                await daemon.connection()
                assert daemon.dialled[1].headers["x-visiona-local"] == f"127.0.0.1:{port}; listening=yes"
                nursery.cancel_scope.cancel()


async def test_two_agents_on_one_credential_file(tmp_path: Path) -> None:
    async with fake_daemon(PAIRED) as daemon, demo(daemon, tmp_path / "c", "--pairing-token", PAIRING):
        await daemon.connection()
        async with demo(daemon, tmp_path / "c") as second:
            with trio.fail_after(20):
                assert await second.process.wait() == 2
            assert "another agent is running" in second.log
        assert daemon.attempts == 1


async def test_it_starts_before_the_daemon_and_outlives_it(tmp_path: Path) -> None:
    async with fake_daemon() as reserved:
        port = reserved.port
    async with demo(reserved, tmp_path / "c", "--pairing-token", PAIRING) as agent:
        await agent.event("agent started")
        while not any("cannot be reached" in str(event["event"]) for event in agent.events):
            await trio.sleep(0.02)
        async with fake_daemon(PAIRED, port=port) as daemon:
            assert b"ok" in await get(await daemon.connection(), "/healthz")
        await agent.event("disconnected")
        async with fake_daemon(port=port) as daemon:
            assert b"ok" in await get(await daemon.connection(), "/healthz")
            assert daemon.dialled[0].headers["authorization"] == f"Bearer {SESSION}"


async def test_kill_minus_nine(tmp_path: Path) -> None:
    async with fake_daemon(PAIRED) as daemon:
        async with demo(daemon, tmp_path / "c", "--pairing-token", PAIRING) as agent:
            connection = await daemon.connection()
            stream = await connection.open_stream()
            await stream.send_all(b"GET /api/cameras/0/stream HTTP/1.1\r\nHost: b\r\n\r\n")
            await stream.receive_some()
            agent.process.kill()
            with pytest.raises(TunnelError):
                await read_all(stream)
        async with demo(daemon, tmp_path / "c"):
            assert b"ok" in await get(await daemon.connection(), "/healthz")


def _proc_status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc is Linux's")
async def test_it_stays_small(tmp_path: Path) -> None:
    """At most 40 MB resident, demo box included, after bulk and many streams."""
    async with fake_daemon(PAIRED) as daemon, demo(daemon, tmp_path / "c", "--pairing-token", PAIRING) as agent:
        connection = await daemon.connection()
        for _ in range(100):
            await get(connection, "/healthz")
        await get(connection, "/api/cameras/0/stream?frames=10")
        stream = await connection.open_stream()
        await stream.send_all(b"GET /api/inference/bytes/200000000 HTTP/1.1\r\nHost: b\r\nConnection: close\r\n\r\n")
        while await stream.receive_some():
            pass
        lines = _proc_status(agent.process.pid).splitlines()
        resident = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        assert resident <= 40 * 1024


def test_it_imports_no_django() -> None:
    code = (
        "import sys, tunnel.agent.cli\n"
        "bad = {'django', 'prometheus_client', 'rest_framework', 'requests'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr


def test_help_and_version() -> None:
    assert run("version").stdout.startswith("visiona-agent ")
    for words in (["--help"], ["run", "--help"], ["demo", "--help"]):
        text = run(*words).stdout
        assert "Exit codes" in text
    assert "`ps`" in run("run", "--help").stdout


def test_status_for_people(tmp_path: Path) -> None:
    done = run("status", "--credentials", str(tmp_path / "c"))
    assert done.returncode == 1
    assert "not running" in done.stdout
    assert "--pairing-token" in done.stdout
