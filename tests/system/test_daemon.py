"""`python -m tunnel` as a process of its own: how it starts, what it says when it cannot, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
import trio

from tests.ports import free_port
from tests.runtime.daemon.daemonworld import SECRET, TOKEN, Control, dial, parse, read_all
from tunnel.mux.connection import Connection
from tunnel.protocol.core import Role
from tunnel.websocket.handshake import client_transport

pytestmark = pytest.mark.system
ROOT = Path(__file__).resolve().parents[2]


def environment(**settings: object) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    ours = {f"VISIONA_{name}": str(value) for name, value in settings.items()}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | ours


class Running:
    """The process, its ports, and what it wrote."""

    def __init__(self, process: trio.Process, public: int, internal: int) -> None:
        self.process = process
        self.public = public
        self.internal = internal
        self.out = bytearray()
        self.err = bytearray()

    async def get(self, target: str) -> tuple[int, object]:
        stream = await dial(self.internal)
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
        status, _, body = parse(await read_all(stream))
        return status, body

    async def until(self, target: str, status: int) -> None:
        while True:
            try:
                if (await self.get(target))[0] == status:
                    return
            except OSError:
                pass  # it does not listen yet
            await trio.sleep(0.02)

    def events(self) -> list[str]:
        return [orjson.loads(line)["event"] for line in bytes(self.out).rpartition(b"\n")[0].splitlines()]


async def start(
    env: dict[str, str], folder: Path, *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    await trio.run_process(
        [sys.executable, "-m", "tunnel"],
        env=env,
        cwd=folder,
        check=False,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        task_status=task_status,
    )


@asynccontextmanager
async def running(tmp_path: Path, **settings: object) -> AsyncIterator[Running]:
    public, internal = free_port(), free_port()
    env = environment(TUNNEL_PORT=public, PROXY_INTERNAL_PORT=internal, INTERNAL_SECRET=SECRET, **settings)
    with trio.fail_after(40):
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(start, env, tmp_path)
            this = Running(process, public, internal)

            async def drain(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
                async for data in stream:
                    into += data

            assert process.stdout is not None
            assert process.stderr is not None
            nursery.start_soon(drain, process.stdout, this.out)
            nursery.start_soon(drain, process.stderr, this.err)
            try:
                yield this
            finally:
                if process.returncode is None:
                    process.kill()


async def test_it_listens_before_the_api_does_and_is_ready_once_that_is_up(tmp_path: Path) -> None:
    control = Control()
    control.open()
    control.close()
    async with running(tmp_path, API_INTERNAL_URL=f"http://127.0.0.1:{control.port}") as daemon:
        await daemon.until("/healthz", 200)
        assert (await daemon.get("/readyz"))[0] == 503
        async with trio.open_nursery() as nursery:
            control.open()
            nursery.start_soon(control.run)
            await daemon.until("/readyz", 200)
            nursery.cancel_scope.cancel()
        control.close()
        daemon.process.send_signal(signal.SIGTERM)
        assert await daemon.process.wait() == 0
    assert daemon.events()[0] == "listening"
    assert daemon.events()[-1] == "stopped"
    assert bytes(daemon.err) == b""


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 1012), (signal.SIGINT, 1001)])
async def test_a_signal_closes_the_tunnels_with_its_code_and_exits_0(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    control = Control()
    control.open()
    async with running(tmp_path, API_INTERNAL_URL=f"http://127.0.0.1:{control.port}") as daemon:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run)
            await daemon.until("/readyz", 200)
            stream = await trio.open_tcp_stream("127.0.0.1", daemon.public)
            transport, _ = await client_transport(stream, "d", f"/tunnel/connect?token={TOKEN}", [])
            agent = Connection(transport, role=Role.SERVER, accept_streams=True)
            nursery.start_soon(agent.run)
            await control.wait(lambda: control.events)
            daemon.process.send_signal(number)
            assert await daemon.process.wait() == 0
            await control.wait(lambda: [e for e in control.events if e["type"] == "disconnected"])
            nursery.cancel_scope.cancel()
        control.close()
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == code
    assert {"connect", "disconnect", "draining", "drained"} <= set(daemon.events())
    assert TOKEN.encode() not in bytes(daemon.out)


async def test_killed_it_leaves_the_agent_a_broken_connection_and_the_port_is_free_again(tmp_path: Path) -> None:
    control = Control()
    control.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.run)
        async with running(tmp_path, API_INTERNAL_URL=f"http://127.0.0.1:{control.port}") as daemon:
            await daemon.until("/readyz", 200)
            stream = await trio.open_tcp_stream("127.0.0.1", daemon.public)
            transport, _ = await client_transport(stream, "d", f"/tunnel/connect?token={TOKEN}", [])
            daemon.process.kill()
            with trio.fail_after(5):
                try:
                    assert await transport.receive_some() == b""
                except trio.BrokenResourceError:
                    pass
            assert transport.close_code == 1006
            await transport.aclose()
        with socket.socket() as again:
            again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            again.bind(("127.0.0.1", daemon.public))
        nursery.cancel_scope.cancel()
    control.close()


def lone(tmp_path: Path, **settings: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "tunnel"],
        env=environment(**settings),
        cwd=tmp_path,
        capture_output=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("name", ["TUNNEL_PORT", "PROXY_INTERNAL_PORT"])
def test_a_port_in_use_is_one_line_and_exit_1(tmp_path: Path, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ports = {"TUNNEL_PORT": free_port(), "PROXY_INTERNAL_PORT": free_port(), name: port}
        done = lone(tmp_path, **ports)
    assert done.returncode == 1
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert f"127.0.0.1:{port}" in line
    assert f"VISIONA_{name}" in line


def test_a_bad_setting_is_one_line_and_exit_1_also_from_a_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("VISIONA_TUNNEL_BUFFER_MB=many\nOTHER=x\n")
    done = lone(tmp_path)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert line == "tunnel: VISIONA_TUNNEL_BUFFER_MB: 'many' is not a whole number"


def test_production_refuses_the_default_secret(tmp_path: Path) -> None:
    done = lone(tmp_path, ENV="production")
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "VISIONA_INTERNAL_SECRET" in line


def test_it_needs_no_django() -> None:
    foreign = "{'django', 'apps', 'cloud'} & {name.split('.')[0] for name in sys.modules}"
    code = f"import sys, tunnel.__main__; sys.exit(bool({foreign}))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False, timeout=30).returncode == 0
