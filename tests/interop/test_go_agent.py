"""Our end of the tunnel against a real Go agent: both yamux roles (yamux.md §13 case 63)."""

from __future__ import annotations

import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from tests.agent.fake_daemon import Admit, FakeDaemon, Refuse, fake_daemon
from tests.interop.agents import AgentProcess, agent_process
from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig

pytestmark = [pytest.mark.interop, pytest.mark.timeout(1000)]  # with what it builds
MIB = 1 << 20
TOKEN = "vAc_" + "5" * 32
ROLES = pytest.mark.parametrize("role", [Role.CLIENT, Role.SERVER], ids=["daemon-client", "daemon-server"])


async def local_server(stream: trio.SocketStream) -> None:
    """What the pump reaches: the first byte says what to do."""
    try:
        async with stream:
            order = bytes(await stream.receive_some(1))
            if order == b"e":  # echo
                async for data in stream:
                    await stream.send_all(data)
            elif order == b"h":  # half-close: answer only when the asker has ended
                digest, size = hashlib.sha256(), 0
                async for data in stream:
                    digest.update(data)
                    size += len(data)
                await stream.send_all(f"{size} {digest.hexdigest()}".encode())
            elif order == b"d":  # download
                for _ in range(64):
                    await stream.send_all(bytes(MIB))
            elif order == b"f":  # ends first, hears the rest
                await stream.send_all(b"bye")
                await stream.send_eof()
                async for _ in stream:
                    pass
            elif order == b"s":
                await trio.sleep_forever()
    except trio.BrokenResourceError:
        pass


@dataclass
class Tunnel:
    daemon: FakeDaemon
    agent: AgentProcess
    connection: Connection

    async def open(self, order: bytes) -> Stream:
        stream = await self.connection.open_stream()
        await stream.send_all(order)
        return stream


@asynccontextmanager
async def go_tunnel(program: Path, role: Role, *flags: str, kind: str = "pump") -> AsyncIterator[Tunnel]:
    theirs = "server" if role is Role.CLIENT else "client"
    async with trio.open_nursery() as nursery, fake_daemon(role=role) as daemon:
        daemon.config = replace(SessionConfig(), max_outbound_streams=4096)
        listeners = await nursery.start(trio.serve_tcp, local_server, 0)
        local = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        command = [program, "-url", daemon.url + "/tunnel/connect", "-token", TOKEN, "-role", theirs, "-kind", kind]
        if kind == "pump":
            command += ["-local", local]
        async with agent_process([*command, *flags]) as agent:
            await agent.event("connected")
            with trio.fail_after(90):
                yield Tunnel(daemon, agent, await daemon.connection())
        nursery.cancel_scope.cancel()


async def read_all(stream: Stream) -> bytes:
    found = bytearray()
    while data := await stream.receive_some():
        found += data
    return bytes(found)


@ROLES
async def test_open_and_echo(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        stream = await tunnel.open(b"e")
        assert stream.stream_id % 2 == (1 if role is Role.CLIENT else 0)
        for size in (1, 12, 4096, 65536, 262_144):
            await stream.send_all(bytes([size % 251]) * size)
            got = 0
            while got < size:
                got += len(await stream.receive_some())
        await stream.send_eof()
        assert await read_all(stream) == b""
        await stream.aclose()
        while tunnel.connection.streams:
            await trio.sleep(0.01)


@ROLES
async def test_half_close_both_ways(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        asker = await tunnel.open(b"h")
        await asker.send_all(b"x" * 100_000)
        await asker.send_eof()
        expected = f"100000 {hashlib.sha256(b'x' * 100_000).hexdigest()}".encode()
        assert await read_all(asker) == expected
        late = await tunnel.open(b"f")
        assert await read_all(late) == b"bye"
        await late.send_all(b"still heard")
        await late.send_eof()
        await late.aclose()


@ROLES
async def test_64_mib_up(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        stream = await tunnel.open(b"h")
        block, digest = os.urandom(MIB), hashlib.sha256()
        for _ in range(64):
            digest.update(block)
            await stream.send_all(block)
        await stream.send_eof()
        assert await read_all(stream) == f"{64 * MIB} {digest.hexdigest()}".encode()


@ROLES
async def test_64_mib_down(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        stream, size = await tunnel.open(b"d"), 0
        while data := await stream.receive_some():
            size += len(data)
        assert size == 64 * MIB


@ROLES
async def test_64_mib_both_ways_at_once(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel, trio.open_nursery() as nursery:
        stream = await tunnel.open(b"e")
        block = os.urandom(MIB)
        sent, seen, size = hashlib.sha256(), hashlib.sha256(), 0

        async def write() -> None:
            for _ in range(64):
                sent.update(block)
                await stream.send_all(block)
            await stream.send_eof()

        nursery.start_soon(write)
        while data := await stream.receive_some():
            seen.update(data)
            size += len(data)
        assert (size, seen.digest()) == (64 * MIB, sent.digest())


@ROLES
async def test_a_thousand_streams_at_once(go_agent: Path, role: Role) -> None:
    """More than the 256 unacknowledged opens that Go's backlog takes: our opens queue, none is lost."""
    async with go_tunnel(go_agent, role) as tunnel:
        answered = 0
        opened: list[Stream] = []
        everybody = trio.Event()

        async def one(number: int) -> None:
            nonlocal answered
            stream = await tunnel.connection.open_stream(timeout=60)
            opened.append(stream)
            if len(opened) == 1000:
                everybody.set()
            await everybody.wait()
            text = f"{number} ".encode() * 200
            await stream.send_all(b"e" + text)
            await stream.send_eof()
            assert await read_all(stream) == text
            await stream.aclose()
            answered += 1

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(one, number)
        assert answered == 1000
        assert tunnel.connection.end_reason is None


@ROLES
async def test_a_killed_agent_is_no_clean_end(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        stream = await tunnel.open(b"s")
        tunnel.agent.process.send_signal(signal.SIGKILL)
        began = trio.current_time()
        with pytest.raises(TunnelError):
            await stream.receive_some()
        with pytest.raises(TunnelError):
            await tunnel.connection.open_stream()
        assert trio.current_time() - began < 1.0
        assert tunnel.connection.end_reason is not None
        assert tunnel.connection.end_reason.close_code == 1006


@ROLES
async def test_a_reset_does_not_hurt_the_others(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role) as tunnel:
        keep = await tunnel.open(b"e")
        for _ in range(100):
            stream = await tunnel.open(b"e")
            await stream.send_all(bytes(10_000))
            stream.reset()
        await keep.send_all(b"alive")
        assert await keep.receive_some() == b"alive"


REQUEST = b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n"


async def one_answer(stream: Stream) -> bytes:
    """A small answer with Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        assert more, "the stream ended without an answer"
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    while len(body) < length:
        body += await stream.receive_some()
    assert head.startswith(b"HTTP/1.1 200")
    return body


@ROLES
async def test_http_one_request_a_stream(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role, kind="http") as tunnel:
        limit = trio.CapacityLimiter(32)

        async def one() -> None:
            async with limit:
                stream = await tunnel.connection.open_stream(wait_ack=False)
                await stream.send_all(REQUEST)
                assert b"ok" in await one_answer(stream)
                assert await stream.receive_some() == b"", "this kind ends the stream after one answer"
                await stream.aclose()

        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(one)


@ROLES
async def test_http_several_requests_a_stream(go_agent: Path, role: Role) -> None:
    async with go_tunnel(go_agent, role, "-keepalive", kind="http") as tunnel:
        stream = await tunnel.open(b"")
        for _ in range(50):
            await stream.send_all(REQUEST)
            assert b"ok" in await one_answer(stream)
        await stream.aclose()


@pytest.mark.parametrize(("auth", "header"), [("query", ""), ("bearer", "authorization"), ("header", "x-relay-token")])
async def test_where_the_token_goes(go_agent: Path, auth: str, header: str) -> None:
    async with go_tunnel(go_agent, Role.CLIENT, "-auth", auth) as tunnel:
        said = tunnel.daemon.dialled[0]
        assert TOKEN in (said.headers[header] if header else said.target)
        assert "x-visiona-agent" not in said.headers, "the prototype's agent names nothing"


async def test_its_own_reconnect(go_agent: Path) -> None:
    async with go_tunnel(go_agent, Role.CLIENT, "-retry", "50ms") as tunnel:
        tunnel.daemon.answers.extend([Refuse(503), Admit()])
        await tunnel.connection.aclose(1012, "restart")
        assert (await tunnel.agent.event("refused"))["status"] == 503
        again = await tunnel.daemon.connection()
        stream = await again.open_stream()
        await stream.send_all(b"ehello")
        assert await stream.receive_some() == b"hello"
