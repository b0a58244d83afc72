"""A daemon that is about to end, and an agent that is at another one before it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from tests.agent.fake_daemon import Admit, FakeDaemon, Refuse, fake_daemon
from tunnel.agent.backoff import Backoff
from tunnel.agent.runner import Agent
from tunnel.agent.settings import load
from tunnel.mux.connection import Connection

TOKEN = "vAc_" + "7" * 32
FIRST = Admit((("X-VisionA-Device-Id", "device"), ("X-VisionA-Tunnel-Session", "first")))
SECOND = Admit((("X-VisionA-Device-Id", "device"), ("X-VisionA-Tunnel-Session", "second")))


@asynccontextmanager
async def agent_of(daemon: FakeDaemon, folder: Path) -> AsyncIterator[Agent]:
    """An agent of `daemon` whose box echoes what it is sent."""

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    await stream.send_all(data)
            except trio.BrokenResourceError:
                return  # reset by a test that left

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        local = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        flags = {"url": daemon.url, "local": local, "pairing_token": TOKEN, "credentials": str(folder / "c.json")}
        settings, _ = load(flags, {}, None)
        agent = Agent(settings, {}, backoff=Backoff(draw=lambda: 0.01))
        nursery.start_soon(agent.run)
        with trio.fail_after(60):
            yield agent
        nursery.cancel_scope.cancel()


async def echoes(connection: Connection, word: bytes) -> bool:
    stream = await connection.open_stream()
    await stream.send_all(word)
    got = b""
    while len(got) < len(word):
        got += await stream.receive_some()
    await stream.aclose()
    return got == word


async def test_the_next_connection_is_there_before_the_last_one_ends(tmp_path: Path) -> None:
    async with fake_daemon(FIRST, SECOND) as daemon, agent_of(daemon, tmp_path):
        old = await daemon.connection()
        held = await old.open_stream()
        await held.send_all(b"before")
        assert await held.receive_some() == b"before"
        old.go_away(0)
        new = await daemon.connection()
        assert daemon.dialled[0].headers["x-visiona-agent"].endswith("features=keepalive,handover")
        assert "x-visiona-handover" not in daemon.dialled[0].headers
        assert daemon.dialled[1].headers["x-visiona-handover"] == "first"
        assert await echoes(old, b"still")  # a request that was on its way
        assert await echoes(new, b"anew")
        await held.send_all(b"after")
        assert await held.receive_some() == b"after"
        await held.aclose()
        await old.aclose(1012, "handed over")
        assert await echoes(new, b"it stays")
        assert daemon.attempts == 2


async def test_it_is_asked_again_until_somebody_takes_it(tmp_path: Path) -> None:
    answers = (FIRST, Refuse(503, "TUNNEL_UNAVAILABLE"), Refuse(503, "TUNNEL_UNAVAILABLE"), SECOND)
    async with fake_daemon(*answers) as daemon, agent_of(daemon, tmp_path):
        old = await daemon.connection()
        old.go_away(0)
        new = await daemon.connection()
        assert await echoes(new, b"anew")
        assert [each.headers.get("x-visiona-handover") for each in daemon.dialled[1:]] == ["first"] * 3


async def test_one_that_ends_meanwhile_is_dialled_anew_as_ever(tmp_path: Path) -> None:
    async with fake_daemon(FIRST, Refuse(403, "ACCOUNT_DISABLED"), SECOND) as daemon, agent_of(daemon, tmp_path):
        old = await daemon.connection()
        old.go_away(0)
        while daemon.attempts < 2:
            await trio.sleep(0.01)
        assert await echoes(old, b"still")
        await old.aclose(1012, "restart")
        new = await daemon.connection()
        assert await echoes(new, b"anew")
        assert "x-visiona-handover" not in daemon.dialled[2].headers


async def test_both_end_in_order(tmp_path: Path) -> None:
    async with fake_daemon(FIRST, SECOND) as daemon, agent_of(daemon, tmp_path) as agent:
        old = await daemon.connection()
        held = await old.open_stream()
        await held.send_all(b"x")
        assert await held.receive_some() == b"x"
        old.go_away(0)
        new = await daemon.connection()
        agent.stop()
        while not (old.peer_going_away and new.peer_going_away):
            await trio.sleep(0.01)
        await held.send_all(b"in flight")
        assert await held.receive_some() == b"in flight"
