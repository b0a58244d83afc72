"""What is sent without waiting (`try_send`): whole and once, whatever the socket takes of it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tests.runtime.websocket.transport_kit import beside_a_raw_peer, masked
from tunnel.net.sockets import ByteStream
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import SocketTransport, StreamTransport


@pytest.fixture
async def pair() -> AsyncIterator[tuple[SocketTransport, ByteStream]]:
    """A server-side transport and the raw socket of its peer."""
    async with beside_a_raw_peer(60) as made:
        yield made


@pytest.mark.parametrize("size", [20, 1 << 20])
async def test_what_was_begun_without_waiting_is_finished_before_anything_else(
    pair: tuple[SocketTransport, ByteStream], size: int
) -> None:
    """A socket that takes nothing, or a part: the message goes out once and whole, and a pong not within it."""
    transport, peer = pair
    assert transport.try_send(b"first")
    expected, body = b"\x82\x05first", b"m" * size
    head = b"\x82" + (bytes([size]) if size < 126 else b"\x7f" + struct.pack("!Q", size))
    while transport.try_send(body):
        expected += head + body
    expected += head + body  # the one that it did not take
    await peer.send_all(masked(9, b"now") + masked(2, b"read"))
    assert await transport.receive_some() == b"read"
    got = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, body)
        while len(got) < len(expected):
            got += await peer.receive_some()
    assert got == expected
    assert transport.try_send(b"x")
    assert await peer.receive_some() == b"\x8a\x03now\x82\x01x"


async def test_nothing_is_begun_where_it_may_not_be(pair: tuple[SocketTransport, ByteStream]) -> None:
    transport, peer = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, b"x" * (1 << 22))
        await trio.testing.wait_all_tasks_blocked()
        assert not transport.try_send(b"beside a writer")
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        transport.try_send(b"after half a message")
    peer.close()
    await transport.aclose()
    with pytest.raises(trio.ClosedResourceError):
        transport.try_send(b"after the end")


async def test_a_peer_that_is_gone_breaks_what_is_sent_without_waiting(
    pair: tuple[SocketTransport, ByteStream],
) -> None:
    transport, peer = pair
    peer.close()
    with pytest.raises(trio.BrokenResourceError):
        transport.try_send(b"x")


async def test_a_stream_that_can_only_wait_leaves_it_to_the_writer() -> None:
    left, _right = trio.testing.memory_stream_pair()
    assert not StreamTransport(left, WebSocketCodec(client=True)).try_send(b"x")
