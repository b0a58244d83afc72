"""The example agents of `docs/examples/` work: each is run against our end of the tunnel."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.agent.fake_daemon import FakeDaemon, Refuse, fake_daemon
from tests.interop.agents import AgentProcess, agent_process
from tests.interop.go_build import build
from tunnel.agent.demo.box import Box
from tunnel.agent.demo.inference import BLOCK
from tunnel.mux.connection import Connection

pytestmark = pytest.mark.timeout(1000)  # with what it builds
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
TOKEN = "vAc_" + "7" * 32


@dataclass
class Example:
    daemon: FakeDaemon
    agent: AgentProcess
    connection: Connection


def _go_program() -> Path:
    return build(EXAMPLES / "go-agent")


@pytest.fixture(params=["python", pytest.param("go", marks=pytest.mark.interop)])
def words(request: pytest.FixtureRequest) -> list[str | Path]:
    """The words that start an example agent."""
    return [sys.executable, EXAMPLES / "agent.py"] if request.param == "python" else [_go_program()]


@pytest.fixture
async def example(words: list[str | Path]) -> AsyncIterator[Example]:
    """An example agent that is connected to a daemon of ours and serves a demo box."""
    async with _running(words) as running:
        yield running


@pytest.mark.parametrize(
    ("end", "least", "most"),
    [
        (Refuse(401, "TOKEN_REVOKED"), 60, 72),
        (Refuse(403, "ACCOUNT_DISABLED"), 60, 72),
        (Refuse(409, "SERIAL_TAKEN"), 30, 31),
        (Refuse(429, "RATE_LIMITED"), 5, 6),
        (Refuse(503, "OVERLOADED", (("Retry-After", "7"),)), 7, 8),
        (1000, 0, 0.5),
        (4401, 60, 72),
        (4403, 60, 72),
        (4409, 30, 31),
        (4429, 30, 31),
        (1012, 0, 0.5),
    ],
)
async def test_they_wait_as_the_papers_say(
    words: list[str | Path], end: Refuse | int, least: float, most: float
) -> None:
    async with fake_daemon(*(() if isinstance(end, int) else (end,))) as daemon:
        command = [*words, daemon.url + "/tunnel/connect", "127.0.0.1:1"]
        async with agent_process(command, os.environ | {"VISIONA_AGENT_PAIRING_TOKEN": TOKEN}) as agent:
            if isinstance(end, int):
                await (await daemon.connection()).aclose(end, "because")
            with trio.fail_after(20):
                while not (said := re.search(r"next attempt in ([0-9.]+) s\n", agent.log)):
                    await trio.sleep(0.02)
    assert least <= float(said[1]) <= most


@asynccontextmanager
async def _running(words: list[str | Path]) -> AsyncIterator[Example]:
    async with trio.open_nursery() as nursery, fake_daemon() as daemon:
        port = await nursery.start(lambda task_status: Box().serve(task_status=task_status))
        command = [*words, daemon.url + "/tunnel/connect", f"127.0.0.1:{port}"]
        async with agent_process(command, os.environ | {"VISIONA_AGENT_PAIRING_TOKEN": TOKEN}) as agent:
            with trio.fail_after(60):
                yield Example(daemon, agent, await daemon.connection())
        nursery.cancel_scope.cancel()


async def ask(connection: Connection, head: str, body: bytes = b"") -> tuple[bytes, bytes]:
    """One request on a stream of its own: the answer's head and body."""
    stream = await connection.open_stream()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            await stream.send_all(f"{head} HTTP/1.1\r\nHost: b\r\nConnection: close\r\n".encode())
            await stream.send_all(f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await stream.send_eof()

        nursery.start_soon(write)
        answer = bytearray()
        while data := await stream.receive_some():
            answer += data
    await stream.aclose()
    found, _, rest = bytes(answer).partition(b"\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 200"), found
    return found, rest


async def test_requests_and_bulk_both_ways(example: Example) -> None:
    assert example.daemon.dialled[0].headers["authorization"] == f"Bearer {TOKEN}"
    for _ in range(3):
        assert (await ask(example.connection, "GET /healthz"))[1] == b'{"status": "ok"}\n'
    size = 3_000_000
    _, body = await ask(example.connection, f"GET /api/inference/bytes/{size}")
    assert body == (BLOCK * (size // len(BLOCK) + 1))[:size]
    upload = os.urandom(size)
    _, facts = await ask(example.connection, "POST /api/inference/sink", upload)
    assert hashlib.sha256(upload).hexdigest().encode() in facts


async def test_many_streams_at_once(example: Example) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(ask, example.connection, "GET /api/inference/bytes/100000")
    assert example.connection.end_reason is None


async def test_a_stream_that_is_reset_harms_nothing(example: Example) -> None:
    stream = await example.connection.open_stream()
    await stream.send_all(b"GET /api/cameras/0/stream HTTP/1.1\r\nHost: b\r\n\r\n")
    assert await stream.receive_some()
    stream.reset()
    assert (await ask(example.connection, "GET /healthz"))[1]


async def test_it_comes_back(example: Example) -> None:
    await example.connection.aclose(1012, "restart")
    again = await example.daemon.connection()
    assert (await ask(again, "GET /healthz"))[1]
