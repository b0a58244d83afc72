"""How much a session handles at once: by what its bytes cost, so that a hostile one costs itself."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, box, fast_world
from tests.runtime.daemon.lane.laneworld import Wire as BoxWire
from tunnel.net.turn import LEAST, MOST, SECONDS, Turn
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import SocketTransport, StreamTransport

QUICK, SLOW = 1e-9, 1e-6  # seconds a byte


def run(turn: Turn, turns: int, cost: float) -> list[float]:
    """Seconds of each of so many full turns."""
    spent = []
    for _ in range(turns):
        size = turn.size
        spent.append(size * cost)
        turn.spent(size, spent[-1])
    return spent


def test_quick_turns_grow_to_the_most_and_slow_ones_shrink_at_once() -> None:
    turn = Turn()
    run(turn, 50, QUICK)
    assert turn.size == MOST
    assert run(turn, 5, SLOW)[1:] <= [SECONDS * 1.01] * 4
    run(turn, 1, SECONDS)
    assert turn.size == LEAST


def test_who_is_quick_to_be_slow_again_has_few_slow_turns() -> None:
    """Bulk, to be trusted with much, then the worst of it: over time a turn is no longer than it should be."""
    turn = Turn()
    spent = [seconds for n in range(2000) for seconds in run(turn, 1, SLOW if n % 4 == 0 else QUICK)]
    assert max(spent[1:]) < 2.1 * SECONDS


def test_a_short_read_says_nothing_of_longer_ones() -> None:
    turn = Turn()
    before = turn.size
    turn.spent(100, QUICK)
    assert turn.size == before


def masked(payload: bytes) -> bytes:
    """A binary message of a client, masked with zeros."""
    return b"\x82\xff" + struct.pack("!Q", len(payload)) + bytes(4) + payload


@pytest.mark.parametrize("kind", ["socket", "stream"])
async def test_a_transport_takes_less_at_once_of_what_costs_more(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is the test's: each byte costs as long as it says."""
    now, cost = 0.0, SLOW
    monkeypatch.setattr("tunnel.websocket.transports.thread_time", lambda: now)
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        wire = WebSocketCodec(client=False)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        transport: SocketTransport | StreamTransport
        if kind == "socket":
            transport = SocketTransport(ours, wire)
        else:
            transport = StreamTransport(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), wire)
        body = bytes(1 << 20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, theirs.sendall, masked(body))
            sizes, left = [], len(body)
            while left:
                size = len(await transport.receive_some())
                left -= size
                sizes.append(size)
                now += size * cost
        assert len([size for size in sizes if size * cost > 1.3 * SECONDS]) <= 1
        cost = QUICK
        async with trio.open_nursery() as nursery:
            body = bytes(3 << 20)
            nursery.start_soon(trio.to_thread.run_sync, theirs.sendall, masked(body[: 1 << 20]) * 3)
            left = len(body)
            while left:
                size = len(await transport.receive_some())
                left -= size
                now += size * cost
        assert transport._turn.size > 3 * SECONDS / SLOW
        await transport._release()


async def test_a_box_may_send_chunks_of_a_byte() -> None:
    """128 KiB of them in one read are more pieces than the system writes at once."""
    body = b"x" * 20_000

    async def tiny(wire: BoxWire) -> None:
        while await wire.head() is not None:
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await wire.send(b"1\r\nx\r\n" * len(body) + b"0\r\n\r\n")

    async with fast_world() as w:
        await box(w, tiny)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/")
            got = await visitor.read()
            assert (got.status, got.body) == (200, body)
