"""A tunnel that ends in the very moment in which an ordinary request goes out on it: nobody waits for an answer."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from tests.runtime.daemon.daemonworld import World
from tests.runtime.daemon.lane.fastpathworld import ANSWER, met
from tests.runtime.daemon.lane.laneworld import DEVICE, LOGIN, Visitor, Wire, box, fast_world, ok
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.net.poller import AVAILABLE
from tunnel.websocket.transports import SocketTransport

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="without epoll no request is served the short way")
GET, POST = f"GET /d/{DEVICE}/x", f"POST /d/{DEVICE}/x"


def transport_of(connection: Connection) -> SocketTransport:
    transport = connection._transport
    assert isinstance(transport, SocketTransport)
    return transport


async def answering(wire: Wire) -> None:
    while (head := await wire.head()) is not None:
        await wire.body(2 if head.startswith(b"POST") else 0)
        await wire.send(ANSWER)


@asynccontextmanager
async def resting(line: str) -> AsyncIterator[tuple[World, Visitor, Connection, Callable[[], None]]]:
    """A tunnel at rest with a used stream, its agent's end, and what has the daemon's poller read `line` at once."""
    body = b"{}" if line.startswith("POST") else b""
    fields = ["Content-Length: 2"] if body else []
    async with fast_world(open_seconds=5.0) as w:
        agent = await box(w, answering)
        async with Visitor(w) as visitor:
            await met(visitor, line, *fields, body=body)
            poller = w.daemon.parts.lane.poller
            assert poller is not None
            (held,) = w.daemon.parts.sessions.all()
            await w.until(lambda: len(poller) == 1 and held.connection._writer.task is not None)

            def request() -> None:
                said = "\r\n".join([f"{line} HTTP/1.1", "Host: daemon", f"Authorization: Bearer {LOGIN}", *fields])
                visitor.stream.sock.sendall(f"{said}\r\n\r\n".encode() + body)
                poller.alone = True
                (call,) = poller._calls.values()
                call()

            yield w, visitor, agent, request


def reset(agent: Connection) -> None:
    """The agent's host resets its connection."""
    sock = transport_of(agent)._sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    trio.lowlevel.notify_closing(sock)
    sock.close()


def as_the_close_is_read(w: World, request: Callable[[], None]) -> trio.Event:
    """Let `request` come when the tunnel's reader has read and answered a close frame, and has not told it yet."""
    (held,) = w.daemon.parts.sessions.all()
    transport = transport_of(held.connection)
    answer = transport._flush_control
    came = trio.Event()

    async def answered() -> None:
        await answer()
        assert transport._ended
        request()
        came.set()

    transport._flush_control = answered  # type: ignore[method-assign]  # a moment that no test can hit from outside
    return came


async def lose(w: World, agent: Connection, request: Callable[[], None], how: str) -> None:
    if how == "reset":
        reset(agent)
        request()
    else:
        came = as_the_close_is_read(w, request)
        w.nursery.start_soon(agent.aclose, 1001, "the box goes")
        await came.wait()


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_a_request_that_may_be_repeated_is_made_again_on_the_next_tunnel(how: str) -> None:
    async with resting(GET) as (w, visitor, agent, request):
        w.control.grant = {"moving": True}  # Django knows that the box is on its way
        await lose(w, agent, request, how)
        await box(w, ok(b"newer"))
        w.control.grant = {"node_url": w.daemon.node_url, "session": w.daemon.parts.sessions.all()[-1].id}
        got = await visitor.read()
        assert (got.status, got.body) == (200, b"newer")
        assert w.logged("forward")[-1]["attempts"] == 2


@pytest.mark.parametrize("how", ["reset", "closed"])
async def test_any_other_is_refused_at_once(how: str) -> None:
    async with resting(POST) as (w, visitor, agent, request):
        await lose(w, agent, request, how)
        got = await visitor.read()
        assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")


async def test_the_haste_of_a_request_that_could_not_go_out_is_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    async with resting(GET) as (w, visitor, _agent, request):
        (held,) = w.daemon.parts.sessions.all()
        (line,) = w.daemon.parts.lane.upstreams.locals()
        (idle,) = line.lines.idle
        assert isinstance(idle.stream, Stream)
        held.connection.session.half_close(idle.stream._core)  # so that nothing can be sent
        said: list[bytes] = []
        monkeypatch.setattr(transport_of(held.connection), "try_send", lambda data: bool(said.append(bytes(data))))
        request()
        assert not said, "the reset of that stream has no haste"
        assert (await visitor.read()).body == b"hi"
