"""Streams that the agent never takes, on the fast lane: what the client is told, and that no other pays for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio

from tests.runtime.daemon.daemonworld import TOKEN, World
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, fast_world, ok
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.protocol.limits import SessionConfig

UNANSWERED = SessionConfig().max_unacked
BODY = b"0123456789"


@asynccontextmanager
async def deaf_world(*, features: str = "keepalive", **settings: float) -> AsyncIterator[tuple[World, Connection]]:
    """A daemon, and an agent of `DEVICE` whose tunnel is alive, but which takes no stream until it is told to."""
    async with fast_world(**settings) as w:
        w.control.extra[TOKEN] = {"device_id": DEVICE}
        headers = [("Authorization", f"Bearer {TOKEN}"), ("X-VisionA-Agent", f"box/1; features={features}")]
        agent, _ = await w.agent(headers=headers)
        await w.until(lambda: w.daemon.parts.sessions.of_device(DEVICE))
        yield w, agent


def open_streams(w: World) -> int:
    return sum(session.connection.statistics().streams_open for session in w.daemon.parts.sessions.all())


@pytest.mark.parametrize(
    ("method", "fields", "body"),
    [("GET", (), b""), ("POST", (f"Content-Length: {len(BODY)}",), BODY)],
    ids=["get", "post"],
)
async def test_an_agent_that_takes_no_stream_is_a_timeout(method: str, fields: tuple[str, ...], body: bytes) -> None:
    async with deaf_world(open_seconds=0.3) as (w, agent), Visitor(w) as visitor:
        got = await visitor.ask(f"{method} /d/{DEVICE}/x", *fields, body=body)
        assert (got.status, got.code) == (504, "TUNNEL_TIMEOUT")
        await w.until(lambda: w.logged("forward"))
        (line,) = w.logged("forward")
        assert (line["outcome"], line["attempts"], line["status"]) == ("refused", 1, None)
        await w.until(lambda: not open_streams(w))  # nothing leaked

        async def serve(stream: Stream) -> None:
            with suppress(trio.BrokenResourceError):  # of the stream that was given up meanwhile
                await ok(b"here")(Wire(stream))

        await w.serve(agent, serve)  # it comes to itself: the same connections go on
        while (got := await visitor.ask(f"GET /d/{DEVICE}/y")).status == 504:
            pass  # so short a time may run out once more where the machine has other work
        assert (got.status, got.body) == (200, b"here")


async def test_a_body_that_still_comes_is_cut_short_by_the_timeout() -> None:
    """The client is told while it uploads, and its connection ends: where the rest of its body ends nobody knows."""
    async with deaf_world(open_seconds=0.3) as (w, _), Visitor(w) as visitor:
        await visitor.send(f"PUT /d/{DEVICE}/x", "Content-Length: 1000", body=b"some")
        got = await visitor.read()
        assert (got.status, got.code, got.all("connection")) == (504, "TUNNEL_TIMEOUT", ["close"])
        assert await visitor.end() == "end"


async def test_an_upgrade_that_no_agent_takes() -> None:
    async with deaf_world(open_seconds=0.3) as (w, _), Visitor(w) as visitor:
        got = await visitor.ask(f"GET /d/{DEVICE}/ws/x", "Connection: Upgrade", "Upgrade: websocket")
        assert (got.status, got.code) == (504, "TUNNEL_TIMEOUT")


async def test_an_agent_that_refuses_a_stream_is_overloaded() -> None:
    async with deaf_world() as (w, agent), Visitor(w) as visitor:
        agent.session._core.accept_streams = False
        got = await visitor.ask(f"GET /d/{DEVICE}/x")
        assert (got.status, got.code, len(got.all("retry-after"))) == (503, "OVERLOADED", 1)
        assert not open_streams(w)


async def test_one_stream_too_many_is_overloaded() -> None:
    async with deaf_world(max_streams=1) as (w, agent), Visitor(w) as first, Visitor(w) as second:
        await first.send(f"GET /d/{DEVICE}/x")
        stream = await agent.accept_stream()
        got = await second.ask(f"GET /d/{DEVICE}/y")
        assert (got.status, got.code, len(got.all("retry-after"))) == (503, "OVERLOADED", 1)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")
        assert (await first.read()).body == b"x"  # the one that was there is none the worse


async def test_an_agent_that_goes_away_was_not_asked() -> None:
    """As many streams as an agent may leave unanswered are under way: the next one waits, and was never sent."""
    async with deaf_world(max_streams=2 * UNANSWERED) as (w, agent), Visitor(w) as visitor:
        session = w.daemon.parts.sessions.of_device(DEVICE)
        assert session is not None
        for _ in range(UNANSWERED):
            session.connection.open_nowait()
        await visitor.send(f"POST /d/{DEVICE}/x", "Content-Length: 0")
        await w.until(lambda: open_streams(w) == UNANSWERED + 1)
        agent.go_away()
        got = await visitor.read()
        assert (got.status, got.code, len(got.all("retry-after"))) == (503, "TUNNEL_DISCONNECTED", 1)
