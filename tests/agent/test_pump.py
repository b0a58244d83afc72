"""One carried connection: bytes, half-closes and resets pass through both ways, and nothing is cut silently."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tunnel.agent import pump
from tunnel.agent.addresses import LocalAddress
from tunnel.agent.pump import Counters, carry
from tunnel.mux.connection import Connection
from tunnel.mux.errors import SessionEnded, StreamReset
from tunnel.mux.stream import Stream
from tunnel.protocol.core import Role
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import StreamTransport

Server = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def tunnel() -> AsyncIterator[tuple[Connection, Connection]]:
    """The daemon's and the agent's ends of one tunnel, in memory."""
    left, right = trio.testing.memory_stream_pair()
    daemon = Connection(StreamTransport(left, WebSocketCodec(client=False)), role=Role.CLIENT, accept_streams=False)
    agent = Connection(StreamTransport(right, WebSocketCodec(client=True)), role=Role.SERVER, accept_streams=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(daemon.run)
        await nursery.start(agent.run)
        yield daemon, agent
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def carried(server: Server, seen: list[str] | None = None) -> AsyncIterator[tuple[Stream, Counters, trio.Event]]:
    """A stream of the daemon's, carried by the agent to `server`; the event is set when `carry` has returned."""
    done, counters = trio.Event(), Counters()
    seen = [] if seen is None else seen
    async with tunnel() as (daemon, agent), trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]

        async def run() -> None:
            await carry(await agent.accept_stream(), LocalAddress("127.0.0.1", port), counters, seen.append)
            done.set()

        nursery.start_soon(trio.serve_listeners, server, listeners)
        nursery.start_soon(run)
        with trio.fail_after(20):
            yield await daemon.open_stream(), counters, done
        nursery.cancel_scope.cancel()


async def read_all(stream: Stream) -> bytes:
    found = bytearray()
    while data := await stream.receive_some():
        found += data
    return bytes(found)


def ignore(request_id: str) -> None:
    """For tests in which requests do not matter."""


async def echo(stream: trio.SocketStream) -> None:
    async with stream:
        async for data in stream:
            await stream.send_all(data)


async def test_bytes_and_the_end_both_ways() -> None:
    payload = bytes(range(256)) * 8192  # 2 MiB: several windows
    async with carried(echo) as (stream, counters, done), trio.open_nursery() as nursery:

        async def write() -> None:
            await stream.send_all(payload)
            await stream.send_eof()

        nursery.start_soon(write)
        assert await read_all(stream) == payload
        await done.wait()
        assert (counters.outcome, counters.bytes_in, counters.bytes_out) == ("ok", len(payload), len(payload))


async def test_the_local_server_may_end_first_and_still_read() -> None:
    heard = bytearray()

    async def server(stream: trio.SocketStream) -> None:
        await stream.send_all(b"hello")
        await stream.send_eof()
        async for data in stream:
            heard.extend(data)

    async with carried(server) as (stream, counters, done):
        assert await read_all(stream) == b"hello"
        await stream.send_all(b"x" * 300_000)
        await stream.send_eof()
        await done.wait()
        assert counters.outcome == "ok"
    assert len(heard) == 300_000


async def test_a_reset_by_the_daemon_is_a_reset_for_the_local_server() -> None:
    seen: list[str] = []
    started, ended = trio.Event(), trio.Event()

    async def server(stream: trio.SocketStream) -> None:
        started.set()
        try:
            while await stream.receive_some():
                pass
            seen.append("clean end")
        except trio.BrokenResourceError:
            seen.append("reset")
        ended.set()

    async with carried(server) as (stream, counters, done):
        await stream.send_all(b"half a request")
        await started.wait()
        stream.reset()
        await done.wait()
        await ended.wait()
        assert counters.outcome == "reset by the daemon"
    assert seen == ["reset"]


async def test_a_reset_by_the_local_server_is_a_reset_for_the_daemon() -> None:
    async def server(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"half an ans")
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(stream)

    async with carried(server) as (stream, counters, done):
        await stream.send_all(b"request")
        assert await stream.receive_some() == b"half an ans", "what was said before the reset comes before it"
        with pytest.raises(StreamReset):
            await read_all(stream)
        await done.wait()
        assert counters.outcome == "reset by the local server"


async def test_a_reset_behind_a_half_close_reaches_a_local_server_that_says_nothing() -> None:
    seen: list[str] = []
    at_end, ended = trio.Event(), trio.Event()

    async def server(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        at_end.set()
        while not reset_of(stream):  # it has nothing to say, and looks now and then whether anybody is there
            await trio.sleep(0.05)
        seen.append("reset")
        ended.set()

    async with carried(server) as (stream, counters, done):
        await stream.send_all(b"a question")
        await stream.send_eof()
        await at_end.wait()
        stream.reset()
        await done.wait()
        await ended.wait()
    assert counters.outcome == "reset by the daemon"
    assert seen == ["reset"]


def reset_of(stream: trio.SocketStream) -> bool:
    """Whether the kernel holds a reset of this connection."""
    return bool(stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))


async def test_a_refused_local_server_gives_no_byte() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        async with tunnel() as (daemon, agent), trio.open_nursery() as nursery:
            counters = Counters()

            async def run() -> None:
                await carry(await agent.accept_stream(), LocalAddress("127.0.0.1", port), counters, ignore)

            nursery.start_soon(run)
            stream = await daemon.open_stream(wait_ack=False)
            await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
    assert counters.outcome.startswith("local server unreachable")
    assert counters.bytes_out == 0


async def test_a_session_that_ends_resets_the_local_connection() -> None:
    seen: list[str] = []
    ended = trio.Event()

    async def server(stream: trio.SocketStream) -> None:
        try:
            while await stream.receive_some():
                pass
            seen.append("clean end")
        except trio.BrokenResourceError:
            seen.append("reset")
        ended.set()

    done, counters = trio.Event(), Counters()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        address = LocalAddress("127.0.0.1", listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, server, listeners)
        async with tunnel() as (daemon, agent):
            stream = await daemon.open_stream(wait_ack=False)
            await stream.send_all(b"half a request")
            inbound = await agent.accept_stream()

            async def run() -> None:
                await carry(inbound, address, counters, ignore)
                done.set()

            nursery.start_soon(run)
            while counters.bytes_in == 0:
                await trio.sleep(0.01)
            await daemon.aclose(1012)
            with trio.fail_after(5):
                await done.wait()
                await ended.wait()
            with pytest.raises(SessionEnded):
                await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert seen == ["reset"]


async def test_an_early_answer_arrives_though_the_upload_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that answers 413 and closes: the answer comes through, then the rest is given up."""
    monkeypatch.setattr(pump, "LINGER_SECONDS", 0.2)

    async def server(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\n\r\n")
        await stream.send_eof()
        await trio.sleep(0.1)
        await stream.aclose()

    async with carried(server) as (stream, counters, done), trio.open_nursery() as nursery:

        async def upload() -> None:
            try:
                while True:
                    await stream.send_all(bytes(65536))
            except trio.BrokenResourceError:
                gone.set()

        gone = trio.Event()
        nursery.start_soon(upload)
        assert await read_all(stream) == b"HTTP/1.1 413 Too Large\r\n\r\n"
        await done.wait()
        await gone.wait()
        assert counters.outcome == "local server closed early"


async def test_cancellation_breaks_both_sides() -> None:
    async def server(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as outer, tunnel() as (daemon, agent):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        outer.start_soon(trio.serve_listeners, server, listeners)
        stream = await daemon.open_stream(wait_ack=False)
        await stream.send_all(b"x")
        counters = Counters()
        inbound = await agent.accept_stream()
        async with trio.open_nursery() as nursery:
            port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(carry, inbound, LocalAddress("127.0.0.1", port), counters, ignore)
            while counters.bytes_in == 0:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
        assert counters.outcome == "cancelled"
        with trio.fail_after(5), pytest.raises(StreamReset):
            await stream.receive_some()
        outer.cancel_scope.cancel()


async def test_who_owes_an_answer() -> None:
    release = trio.Event()

    async def server(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await release.wait()
        await stream.send_all(b"answer")
        await trio.sleep_forever()

    async with carried(server) as (stream, counters, _):
        assert not counters.owes_answer
        await stream.send_all(b"request")
        while not counters.bytes_in:
            await trio.sleep(0.01)
        assert counters.owes_answer
        release.set()
        assert await stream.receive_some() == b"answer"
        assert not counters.owes_answer


async def test_each_request_of_a_stream_is_told_by_its_id() -> None:
    async def server(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    seen: list[str] = []
    async with carried(server, seen) as (stream, _, _):
        for number in range(3):
            await stream.send_all(b"GET /a?b=c HTTP/1.1\r\nHost: box\r\nX-Request-ID: req-%d\r\n\r\n" % number)
            await stream.receive_some()
        await stream.send_all(b"no request")
        await stream.receive_some()
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: box\r\n\r\n")
        await stream.receive_some()
    assert seen == ["req-0", "req-1", "req-2", ""]
