"""What is written without the writer's task, at the end of a turn, and what is left to the task."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tunnel.protocol.errors import EndKind
from tunnel.runtime.connection import Connection, Role, SessionConfig
from tunnel.runtime.websocket import SocketTransport
from tunnel.runtime.wire import Wire
from tunnel.runtime.writer import TURN

CONFIG = SessionConfig()


def tunnel(*, buffer: int = 1 << 20) -> tuple[SocketTransport, SocketTransport]:
    """Both ends of a WebSocket over a pair of sockets that hold about `buffer` bytes."""
    here, there = socket.socketpair()
    for sock in (here, there):
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return SocketTransport(here, Wire(client=False)), SocketTransport(there, Wire(client=True))


@asynccontextmanager
async def connected(*, buffer: int = 1 << 20) -> AsyncIterator[tuple[Connection, SocketTransport]]:
    """A daemon's connection at rest, and the transport of its peer, which nobody reads yet."""
    ours, theirs = tunnel(buffer=buffer)
    connection = Connection(ours, role=Role.CLIENT, config=CONFIG, accept_streams=False)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            await trio.testing.wait_all_tasks_blocked()
            yield connection, theirs
            nursery.cancel_scope.cancel()
    await theirs.aclose()


def at_hand(transport: SocketTransport) -> list[bytes]:
    """The payloads that have come, one a frame; nobody else has had a turn meanwhile."""
    try:
        data = transport._sock.recv(1 << 20)
    except BlockingIOError:
        return []
    return [bytes(piece) for piece in transport._wire.receive(data)]


async def test_what_a_turn_leaves_to_say_goes_out_at_its_end_in_one_message() -> None:
    async with connected() as (connection, peer):
        with TURN:
            for _ in range(3):
                connection.open_nowait().send_nowait(b"request")
            assert at_hand(peer) == []
        (message,) = at_hand(peer)
        assert message.count(b"request") == 3
        await trio.testing.wait_all_tasks_blocked()
        assert at_hand(peer) == []  # the task had nothing left to do


async def test_outside_of_a_turn_the_task_gathers() -> None:
    async with connected() as (connection, peer):
        for _ in range(3):
            connection.open_nowait().send_nowait(b"request")
        assert at_hand(peer) == []
        await trio.testing.wait_all_tasks_blocked()
        (message,) = at_hand(peer)
        assert message.count(b"request") == 3


@pytest.mark.parametrize("buffer", [2048, 20_000, 1 << 20])
async def test_bytes_keep_their_order_whatever_the_socket_takes(buffer: int) -> None:
    ours, theirs = tunnel(buffer=buffer)
    connection = Connection(ours, role=Role.CLIENT, accept_streams=False)
    peer = Connection(theirs, role=Role.SERVER, accept_streams=True)
    data = b"".join(number.to_bytes(4, "big") for number in range(400_000))
    got = bytearray()

    async def read() -> None:
        async with await peer.accept_stream() as stream:
            while piece := await stream.receive_some():
                got.extend(piece)

    async def send() -> None:
        stream, sent, step = connection.open_nowait(), 0, 0
        while sent < len(data):
            step = step % 70_000 + 9_973
            with TURN:  # some at the end of a turn, some by the task
                sent += stream.send_nowait(data[sent : sent + step])
            sent += stream.send_nowait(data[sent : sent + 130_000])
            await stream.wait_send_all_might_not_block()
        await stream.send_eof()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            await nursery.start(peer.run)
            async with trio.open_nursery() as both:
                both.start_soon(read)
                both.start_soon(send)
            assert got == data
            nursery.cancel_scope.cancel()


async def test_a_message_that_is_half_written_is_finished_before_the_next() -> None:
    ours, theirs = tunnel(buffer=2048)
    assert [ours.send_now(bytes(100_000)), ours.unfinished] == [False, True]
    with pytest.raises(trio.BrokenResourceError):
        await ours.send_all(b"next")
    got = bytearray()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.finish)
            while len(got) < 100_000:
                got += await theirs.receive_some()
        assert [ours.send_now(b"next"), ours.unfinished] == [True, False]
        assert await theirs.receive_some() == b"next"
        await ours.aclose()
        await theirs.aclose()
    assert got == bytes(100_000)


async def test_a_connection_that_broke_is_told_by_the_task_and_not_by_the_turn() -> None:
    ours, theirs = tunnel()
    connection = Connection(ours, role=Role.CLIENT, accept_streams=False)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            await trio.testing.wait_all_tasks_blocked()
            theirs._sock.close()
            with TURN:
                connection.open_nowait().send_nowait(b"request")
    assert connection.end_reason is not None
    assert connection.end_reason.kind in (EndKind.TRANSPORT, EndKind.REMOTE)
