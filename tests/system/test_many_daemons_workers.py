"""`python -m tunnel --workers N`: nodes under one parent, how agents spread, who is started again, how all end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import trio

from tests.ports import free_port, free_ports
from tests.runtime.daemon.daemonworld import SECRET, Control, dial, parse, read_all
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, ok
from tests.system.test_daemon import environment
from tunnel.mux.connection import Connection
from tunnel.protocol.core import Role
from tunnel.websocket.handshake import client_transport

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


class Parent:
    """The parent process, its workers, and what they wrote."""

    def __init__(self, process: trio.Process, control: Control, public: int, internal: int, size: int) -> None:
        self.process = process
        self.control = control
        self.public = public
        self.internal = internal
        self.size = size
        self.out = bytearray()
        self.err = bytearray()

    def lines(self, event: str = "") -> list[dict[str, Any]]:
        lines = [orjson.loads(line) for line in bytes(self.out).rpartition(b"\n")[0].splitlines()]
        return [line for line in lines if event in ("", line["event"])]

    async def until(self, condition: Callable[[], Any]) -> Any:
        while not (found := condition()):
            await trio.sleep(0.01)
        return found

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    async def get(self, worker: int, target: str) -> tuple[int, Any]:
        stream = await dial(self.internal + worker)
        await stream.send_all(f"GET {target} HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {SECRET}\r\n\r\n".encode())
        status, _, body = parse(await read_all(stream))
        return status, body

    async def ready(self) -> None:
        for worker in range(self.size):
            while not await self.is_ready(worker):
                await trio.sleep(0.02)

    async def is_ready(self, worker: int) -> bool:
        try:
            return (await self.get(worker, "/readyz"))[0] == 200
        except (OSError, trio.BrokenResourceError, IndexError):
            return False  # the parent does not listen yet, or closed its own end of what a worker listens to by now

    async def agent(self, number: int) -> Connection:
        """An agent of its own device, whose session has begun."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.public)
        token = f"vAs_{number:032x}"
        transport, _ = await client_transport(stream, "d", f"/tunnel/connect?token={token}", [])
        return Connection(transport, role=Role.SERVER, accept_streams=True)


@asynccontextmanager
async def workers(
    folder: Path, size: int, arguments: Sequence[str] | None = None, descriptors: int = 0, **settings: object
) -> AsyncIterator[Parent]:
    """`descriptors`: as many files as each process may open, 0: as we may."""
    control = Control()
    control.open()
    control.extra = {f"vAs_{n:032x}": {"device_id": f"device-{n}"} for n in range(100)}
    public, internal = free_port(), free_ports(size)
    env = environment(
        TUNNEL_PORT=public,
        PROXY_INTERNAL_PORT=internal,
        INTERNAL_SECRET=SECRET,
        API_INTERNAL_URL=f"http://127.0.0.1:{control.port}",
        **settings,
    )
    given = ("--workers", str(size)) if arguments is None else arguments
    argv = [sys.executable, "-m", "tunnel", *given]
    if descriptors:
        argv = ["/bin/sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *argv]
    run = partial(trio.run_process, argv, env=env, cwd=folder, check=False, stdin=subprocess.DEVNULL)
    with trio.fail_after(150):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run)
            process: trio.Process = await nursery.start(
                partial(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
            )
            this = Parent(process, control, public, internal, size)

            async def drain(stream: trio.abc.ReceiveStream, into: bytearray) -> None:
                async for data in stream:
                    into += data

            assert process.stdout is not None
            assert process.stderr is not None
            nursery.start_soon(drain, process.stdout, this.out)
            nursery.start_soon(drain, process.stderr, this.err)
            try:
                await this.ready()
                yield this
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
                nursery.cancel_scope.cancel()
                control.close()


async def test_each_worker_is_a_node_and_agents_spread_over_all(tmp_path: Path) -> None:
    async with workers(tmp_path, 3, NODE_URL="http://node.example:9000") as parent, trio.open_nursery() as nursery:
        beats = {beat["url"]: beat["node"] for beat in parent.control.heartbeats}
        assert set(beats) == {f"http://node.example:{9000 + k}" for k in range(3)}
        assert len(set(beats.values())) == 3
        for number in range(48):
            nursery.start_soon((await parent.agent(number)).run)
        await parent.control.wait(lambda: len(parent.control.events) == 48)
        held = [len((await parent.get(k, "/internal/sessions"))[1]["data"]) for k in range(3)]
        assert sum(held) == 48
        assert min(held) >= 4  # by a hash: 16 each on average; fewer than 4 happens once in 10 000 times
        nodes = {call["node"] for call in parent.control.authentications}
        assert nodes == set(beats.values())
        parent.process.send_signal(signal.SIGTERM)
        assert await parent.process.wait() == 0
        nursery.cancel_scope.cancel()
    assert bytes(parent.err) == b""
    assert len(parent.lines("stopped")) == 3


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 1012), (signal.SIGINT, 1001)])
async def test_a_signal_ends_all_in_order(tmp_path: Path, number: signal.Signals, code: int) -> None:
    async with workers(tmp_path, 2) as parent, trio.open_nursery() as nursery:
        agents = [await parent.agent(number) for number in range(8)]
        for agent in agents:
            nursery.start_soon(agent.run)
        await parent.control.wait(lambda: len(parent.control.events) == 8)
        children = parent.workers()
        assert len(children) == 2
        parent.process.send_signal(number)
        assert await parent.process.wait() == 0
        assert not any(child.is_running() for child in children)
        await parent.until(lambda: all(agent.end_reason for agent in agents))
        assert {agent.end_reason.close_code for agent in agents if agent.end_reason} == {code}
        ended = [event for event in parent.control.events if event["type"] == "disconnected"]
        assert {event["reason"] for event in ended} == {"drain"}
        assert len(ended) == 8
        nursery.cancel_scope.cancel()


async def open_stream(parent: Parent, agent: Connection) -> trio.abc.Stream:
    """A stream through whichever worker holds the agent."""
    await parent.control.wait(lambda: parent.control.events)
    for worker in range(parent.size):
        sessions = (await parent.get(worker, "/internal/sessions"))[1]["data"]
        if sessions:
            stream = await trio.open_tcp_stream("127.0.0.1", parent.internal + worker)
            lines = ["POST /internal/forward/raw HTTP/1.1", "Host: d", f"Authorization: Bearer {SECRET}"]
            lines += ["Connection: Upgrade", "Upgrade: visiona-stream", f"X-Tunnel-Session: {sessions[0]['session']}"]
            await stream.send_all("\r\n".join([*lines, "", ""]).encode())
            await agent.accept_stream()
            assert b" 101 " in await stream.receive_some()
            return stream
    raise AssertionError("no worker holds the agent")


@pytest.mark.parametrize("to_group", [True, False])
async def test_one_signal_is_one_also_when_the_whole_group_gets_it_and_a_second_cuts_the_grace(
    tmp_path: Path, to_group: bool
) -> None:
    async with workers(tmp_path, 2, TUNNEL_DRAIN_SECONDS=30) as parent, trio.open_nursery() as nursery:
        agent = await parent.agent(1)
        nursery.start_soon(agent.run)
        stream = await open_stream(parent, agent)
        (os.killpg if to_group else os.kill)(parent.process.pid, signal.SIGTERM)
        await parent.until(lambda: len(parent.lines("draining")) == 2)
        with trio.move_on_after(1.5):
            assert await parent.process.wait() is None, "the grace of the open stream was cut short"
        parent.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            assert await parent.process.wait() == 0
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_a_dead_worker_is_started_again_with_one_line_and_nobody_is_refused(tmp_path: Path) -> None:
    async with workers(tmp_path, 2) as parent, trio.open_nursery() as nursery:
        nodes = {beat["url"]: beat["node"] for beat in parent.control.heartbeats}
        victim = next(line for line in parent.lines("worker_started") if line["worker"] == 1)["worker_pid"]
        psutil.Process(victim).kill()
        for number in range(12):  # some of them come to the dead one's socket, and wait
            nursery.start_soon((await parent.agent(number)).run)
        await parent.until(lambda: len(parent.lines("worker_started")) == 3)
        await parent.ready()
        (died,) = parent.lines("worker_ended")
        assert (died["worker"], died["how"]) == (1, "SIGKILL")
        url = f"http://localhost:{parent.internal + 1}"
        again = await parent.until(
            lambda: {b["node"] for b in parent.control.heartbeats if b["url"] == url} - {nodes[url]}
        )
        assert len(again) == 1  # a new node of the same URL, which replaces the old one in the registry
        assert len(parent.workers()) == 2
        parent.process.send_signal(signal.SIGTERM)
        assert await parent.process.wait() == 0
        nursery.cancel_scope.cancel()


async def test_one_worker_may_be_drained_alone(tmp_path: Path) -> None:
    async with workers(tmp_path, 2) as parent:
        parent.workers()[0].send_signal(signal.SIGTERM)
        await parent.until(lambda: len(parent.lines("worker_started")) == 3)
        (ended,) = parent.lines("worker_ended")
        assert ended["how"] == "status 0"
        await parent.ready()
        for _ in range(20):  # its port, which it closed at once, is served by the next one
            stream = await trio.open_tcp_stream("127.0.0.1", parent.public)
            async with stream:
                await stream.send_all(b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await stream.receive_some()).startswith(b"HTTP/1.1 404 ")


async def test_a_killed_parent_leaves_no_orphans_and_the_ports_are_free(tmp_path: Path) -> None:
    async with workers(tmp_path, 3, TUNNEL_DRAIN_SECONDS=30) as parent, trio.open_nursery() as nursery:
        agent = await parent.agent(1)
        nursery.start_soon(agent.run)
        stream = await open_stream(parent, agent)  # not even a stream in flight holds them
        children = parent.workers()
        assert len(children) == 3
        parent.process.kill()
        with trio.fail_after(5):
            await parent.until(lambda: not any(child.is_running() for child in children))
        for port in (parent.public, *range(parent.internal, parent.internal + 3)):
            with socket.socket() as again:
                again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                again.bind(("127.0.0.1", port))
                again.listen()
        await stream.aclose()
        nursery.cancel_scope.cancel()


async def test_kept_connections_go_to_the_worker_that_holds_the_box(tmp_path: Path) -> None:
    """The kernel spreads the clients; whose requests keep going to the other worker is handed over to it."""
    async with workers(tmp_path, 2) as parent, trio.open_nursery() as nursery:
        parent.control.extra[f"vAs_{7:032x}"] = {"device_id": DEVICE}
        agent = await parent.agent(7)
        nursery.start_soon(agent.run)

        async def serve() -> None:
            while True:
                nursery.start_soon(ok(b"hello"), Wire(await agent.accept_stream()))

        nursery.start_soon(serve)
        await parent.control.wait(lambda: parent.control.events)
        listed = [(await parent.get(k, "/internal/sessions"))[1]["data"] for k in range(2)]
        holder = next(k for k in range(2) if listed[k])
        url = f"http://localhost:{parent.internal + holder}"
        parent.control.grant = {"node_url": url, "session": listed[holder][0]["session"], "epoch": 1}

        async def handed(worker: int, direction: str) -> int:
            page = (await parent.get(worker, "/metrics"))[1].decode()
            name = f'visiona_fast_handed_total{{direction="{direction}"}} '
            return int(float(next(line for line in page.splitlines() if line.startswith(name)).removeprefix(name)))

        async with AsyncExitStack() as stack:
            # Of 24 connections all come to the holder once in 16 million times.
            visitors = [await stack.enter_async_context(Visitor(parent)) for _ in range(24)]
            given = 0
            while not given:
                for visitor in visitors:
                    got = await visitor.ask(f"GET /d/{DEVICE}/x")
                    assert (got.status, got.body) == (200, b"hello")
                given = await handed(1 - holder, "given")
            assert (await handed(1 - holder, "taken"), await handed(holder, "given")) == (0, 0)
            assert await handed(holder, "taken") == given
        nursery.cancel_scope.cancel()


async def test_the_setting_does_the_same_and_the_command_line_wins(tmp_path: Path) -> None:
    async with workers(tmp_path, 2, ["--workers", "2"], TUNNEL_WORKERS=5) as parent:
        assert len(parent.workers()) == 2
    async with workers(tmp_path, 2, [], TUNNEL_WORKERS=2) as parent:
        assert len(parent.workers()) == 2


def lone(folder: Path, *arguments: str, **settings: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "tunnel", *arguments]
    env = environment(**settings)
    return subprocess.run(argv, env=env, cwd=folder, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.parametrize("taken", ["TUNNEL_PORT", "PROXY_INTERNAL_PORT"])
def test_a_port_in_use_is_one_line(tmp_path: Path, taken: str) -> None:
    """The public one too, although several sockets of one owner could share it."""
    public, internal = free_port(), free_ports(2)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        port = public if taken == "TUNNEL_PORT" else internal + 1
        other.bind(("127.0.0.1", port))
        other.listen()
        done = lone(tmp_path, "--workers", "2", TUNNEL_PORT=public, PROXY_INTERNAL_PORT=internal)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert f"127.0.0.1:{port}" in line
    assert f"VISIONA_{taken}" in line


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--help"], 0, "--workers N"),
        (["-h"], 0, "VISIONA_"),
        (["--version"], 0, "visiona tunnel"),
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["serve"], 2, "unrecognized arguments: serve"),
        (["--worker", "2"], 2, "unrecognized arguments"),
        (["--workers"], 2, "expected one argument"),
        (["--workers", "0"], 1, "VISIONA_TUNNEL_WORKERS: 0 is out of range (1 to 64)"),
        (["--workers", "many"], 1, "VISIONA_TUNNEL_WORKERS: 'many' is not a whole number"),
    ],
)
def test_the_command_line(tmp_path: Path, arguments: list[str], status: int, says: str) -> None:
    done = lone(tmp_path, *arguments)
    assert done.returncode == status
    assert says in done.stdout + done.stderr


def test_ports_that_do_not_fit(tmp_path: Path) -> None:
    done = lone(tmp_path, "--workers", "3", PROXY_INTERNAL_PORT=65534)
    assert done.returncode == 1
    assert done.stderr.strip() == "tunnel: VISIONA_TUNNEL_WORKERS: 3 internal ports from 65534 on do not fit"
