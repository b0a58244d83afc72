"""The WebSocket transports on loopback sockets: hot path against hot path, against trio-websocket, and faults."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing
import trio_websocket
import wsproto.utilities

from tests.runtime.websocket.transport_kit import (
    beside_a_raw_peer,
    dial,
    echo,
    masked,
    read_exactly,
    read_head,
    read_to_the_end,
    send_for_ever,
    serving,
    serving_raw,
)
from tunnel.mux.transport import Transport, TransportProtocolError
from tunnel.net.sockets import ByteStream, accept, listen
from tunnel.websocket import handshake as t
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import SocketTransport, StreamTransport


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 262_156])
async def test_echo_of_every_length_form(plain: bool, size: int) -> None:
    async with serving(echo, plain=plain) as port:
        transport, headers = await dial(port)
        assert ("x-visiona-device-id", "d1") in [(k.lower(), v) for k, v in headers]
        body = bytes(i * 7 % 251 for i in range(size))
        await transport.send_all(body)
        assert await read_exactly(transport, size) == body
        assert transport.close_code is None
        await transport.aclose()


async def test_a_trio_websocket_client_understands_the_hot_path() -> None:
    async with serving(echo) as port:
        async with trio_websocket.open_websocket("127.0.0.1", port, "/", use_ssl=False) as ws:
            await ws.send_message(b"z" * 200_000)
            got = b""
            while len(got) < 200_000:
                got += await ws.get_message()
            await ws.ping(b"still there")
        assert ws.closed is not None
        assert ws.closed.code == 1000


@pytest.mark.parametrize("code,reason", [(4401, "revoked"), (4409, "replaced by a newer connection"), (1012, "")])
async def test_the_close_code_arrives_even_while_the_peer_is_sending(code: int, reason: str) -> None:
    async def kick(transport: Transport) -> None:
        await transport.receive_some()
        await transport.aclose(code, reason)
        await transport.aclose(1000)  # idempotent, and changes nothing

    async with serving(kick) as port:
        transport, _ = await dial(port)

        async def send_on() -> None:
            with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
                await send_for_ever(transport)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_on)
            await read_to_the_end(transport)
            assert (transport.close_code, transport.close_reason) == (code, reason)
        await transport.aclose()


async def test_a_peer_that_vanishes_is_1006() -> None:
    async def vanish(transport: Transport) -> None:
        await transport.receive_some()
        assert isinstance(transport, SocketTransport)
        transport._sock.shutdown(socket.SHUT_RDWR)
        await transport.aclose()

    async with serving(vanish) as port:
        transport, _ = await dial(port)
        await transport.send_all(b"hello")
        assert await transport.receive_some() == b""
        assert transport.close_code == 1006
        assert await transport.receive_some() == b""
        await transport.aclose()


async def test_a_reset_is_broken_and_never_the_end() -> None:
    async def reset(transport: Transport) -> None:
        await transport.receive_some()
        assert isinstance(transport, SocketTransport)
        ByteStream(transport._sock).reset()

    async with serving(reset) as port:
        transport, _ = await dial(port)
        await transport.send_all(b"hello")
        with pytest.raises(trio.BrokenResourceError):
            await transport.receive_some()
        assert transport.close_code == 1006
        with pytest.raises(trio.BrokenResourceError):
            await transport.send_all(b"more")
        await transport.aclose()


async def test_a_refusal_carries_status_headers_and_body() -> None:
    listener = listen("127.0.0.1", 0)
    body = b'{"success":false,"error":{"code":"TOKEN_REVOKED"}}'

    async def refuse() -> None:
        sock, _ = await accept(listener)
        raw = ByteStream(sock)
        await read_head(raw)
        head = b"HTTP/1.1 401 Unauthorized\r\nRetry-After: 7\r\nContent-Length: %d\r\n\r\n" % len(body)
        for byte in head + body:
            await raw.send_all(bytes([byte]))
        raw.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            stream = await trio.open_tcp_stream("127.0.0.1", listener.getsockname()[1])
            with pytest.raises(t.HandshakeRefused) as caught:
                await t.client_transport(stream, "h", "/tunnel/connect", [])
            assert (caught.value.status, caught.value.body) == (401, body)
            assert caught.value.header("retry-after") == "7"
            await stream.aclose()
    listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: AAAA\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 101 S\r\n\r\n",
    ],
)
async def test_what_is_no_websocket_answer_is_a_handshake_error(answer: bytes) -> None:
    client, server = trio.testing.memory_stream_pair()
    await server.send_all(answer)
    await server.send_eof()
    with trio.fail_after(5), pytest.raises(t.HandshakeError) as caught:
        await t.client_transport(client, "h", "/", [])
    assert type(caught.value) is t.HandshakeError


async def test_a_refusal_may_lie_about_its_length() -> None:
    client, server = trio.testing.memory_stream_pair()
    await server.send_all(b"HTTP/1.1 503 S\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nwhy")
    await server.send_eof()
    with trio.fail_after(5), pytest.raises(t.HandshakeRefused) as caught:
        await t.client_transport(client, "h", "/", [])
    assert caught.value.body == b"why"


async def test_bytes_right_behind_the_answer_are_not_lost() -> None:
    """A daemon may open a stream at once: its first message comes in the same segment as the 101."""
    async with serving_raw() as (client, server):
        head, _ = await read_head(server)
        key = next(x for x in head.split(b"\r\n") if x.lower().startswith(b"sec-websocket-key")).split(b": ")[1]
        token = wsproto.utilities.generate_accept_token(key)
        await server.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + token + b"\r\n\r\n\x82\x05first"
        )
        transport, _ = await client()
        assert await transport.receive_some() == b"first"
        server.close()
        await transport.aclose()


@pytest.fixture
async def pair() -> AsyncIterator[tuple[SocketTransport, ByteStream]]:
    """A server-side transport and the raw socket of its peer."""
    async with beside_a_raw_peer(20) as made:
        yield made


async def test_fragments_arrive_before_their_message_ends(pair: tuple[SocketTransport, ByteStream]) -> None:
    transport, peer = pair
    await peer.send_all(masked(2, b"a" * 4096, fin=False))
    assert await transport.receive_some() == b"a" * 4096
    await peer.send_all(masked(9, b"ping between fragments") + masked(0, b"b" * 4096, fin=False))
    assert await transport.receive_some() == b"b" * 4096
    assert await peer.receive_some() == b"\x8a\x16ping between fragments"
    await peer.send_all(masked(0, b"", fin=True) + masked(2, b"") + masked(2, b"next"))
    assert await transport.receive_some() == b"next"


async def test_one_byte_at_a_time(pair: tuple[SocketTransport, ByteStream]) -> None:
    transport, peer = pair
    for byte in masked(2, b"whole"):
        await peer.send_all(bytes([byte]))
    assert await transport.receive_some() == b"whole"


@pytest.mark.parametrize(
    "frames,code",
    [
        (masked(1, b"text"), 1003),
        (b"\x82\x03abc", 1002),  # not masked
        (masked(3, b"reserved"), 1002),
        (masked(2 | 0x40, b"rsv1"), 1002),
        (masked(9, b"p" * 126), 1002),  # control frame too long
        (masked(9, b"p", fin=False), 1002),  # fragmented control frame
        (masked(0, b"no start"), 1002),
        (masked(2, b"a", fin=False) + masked(2, b"b"), 1002),
        (masked(8, b"\x03"), 1002),  # half a code
        (masked(8, struct.pack("!H", 1005)), 1002),  # a code that never travels
        (masked(8, struct.pack("!H", 1000) + b"\xff"), 1007),  # reason is no UTF-8
        (b"\x82\xff" + struct.pack("!Q", 1 << 40) + b"\0\0\0\0", 1009),  # too long: refused on the header
    ],
)
async def test_what_breaks_the_protocol_is_answered_with_its_code(
    pair: tuple[SocketTransport, ByteStream], frames: bytes, code: int
) -> None:
    transport, peer = pair
    await peer.send_all(frames)
    with pytest.raises(TransportProtocolError) as caught:
        await read_to_the_end(transport)
    assert caught.value.code == code
    answer = await peer.receive_some()
    assert answer[:1] == b"\x88"
    assert struct.unpack("!H", answer[2:4]) == (code,)
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(b"x")


async def test_the_peers_close_is_echoed_and_told(pair: tuple[SocketTransport, ByteStream]) -> None:
    transport, peer = pair
    await peer.send_all(masked(2, b"last") + masked(8, struct.pack("!H", 1001) + b"bye"))
    assert await transport.receive_some() == b"last"
    assert await transport.receive_some() == b""
    assert (transport.close_code, transport.close_reason) == (1001, "bye")
    assert await peer.receive_some() == b"\x88\x05\x03\xe9bye"


async def test_a_writer_that_is_blocked_does_not_stop_the_reader(
    pair: tuple[SocketTransport, ByteStream],
) -> None:
    """Nor does the pong that the reader owes tear the message that is half on the wire."""
    transport, peer = pair
    body = bytes(range(256)) * 4096 * 4
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, body)
        await trio.testing.wait_all_tasks_blocked()
        await peer.send_all(masked(9, b"now") + masked(2, b"read"))
        assert await transport.receive_some() == b"read"
        got = b""
        while len(got) < len(body) + 10:
            got += await peer.receive_some()
    assert got == b"\x82\x7f" + struct.pack("!Q", len(body)) + body
    await transport.send_all(b"x")
    assert await peer.receive_some() == b"\x8a\x03now\x82\x01x"


@pytest.mark.parametrize("writing", [True, False], ids=["beside a message", "alone"])
async def test_pongs_for_a_peer_that_reads_nothing_are_few_and_whole(
    writing: bool, pair: tuple[SocketTransport, ByteStream]
) -> None:
    transport, peer = pair
    message = b"x" * (1 << 20) if writing else b""
    pong = b"\x8a\x7d" + b"p" * 125
    async with trio.open_nursery() as nursery:
        if writing:
            nursery.start_soon(transport.send_all, message)
            await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            await peer.send_all(masked(9, b"o" * 125) * 2 + masked(9, b"p" * 125) + masked(2, b"heard"))
            assert await transport.receive_some() == b"heard"
        assert len(transport._pending) <= 10 * len(pong)
        got = bytearray()
        while len(got) < len(message):
            got += await peer.receive_some()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.send_all, b"end")
        while not got.endswith(b"\x82\x03end"):
            got += await peer.receive_some()
    pongs = got[10 + len(message) if writing else 0 : -5]
    assert pongs == pong * (len(pongs) // len(pong))


@pytest.mark.parametrize("opcode", [9, 10, 2])
async def test_idle_frames_that_flood_in_end_the_connection(
    opcode: int, pair: tuple[SocketTransport, ByteStream]
) -> None:
    """Pings, pongs, empty messages: each cost as much as a frame with 64 KiB, and bring nothing."""
    transport, peer = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send_all, masked(opcode, b"") * 5000)
        with pytest.raises(TransportProtocolError) as caught:
            await transport.receive_some()
        assert caught.value.code == 4429
        got = b""
        while b"\x88" not in got or not got.endswith(b"frames" if opcode == 2 else b"pongs"):
            got += await peer.receive_some()
    assert struct.pack("!H", 4429) in got
    assert got.count(b"\x8a") <= 32


async def test_aclose_is_bounded_when_the_peer_reads_nothing(
    pair: tuple[SocketTransport, ByteStream], autojump_clock: trio.testing.MockClock
) -> None:
    transport, _peer = pair
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await transport.send_all(b"x" * (1 << 24))

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        await transport.aclose(4408, "wedged")
        assert trio.current_time() - start <= 1.001
    assert transport.close_code == 1006
    with pytest.raises(trio.ClosedResourceError):
        await transport.receive_some()


async def test_a_second_task_is_told_that_it_is_one_too_many(pair: tuple[SocketTransport, ByteStream]) -> None:
    transport, _peer = pair
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.receive_some)
        nursery.start_soon(transport.send_all, b"x" * (1 << 24))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await transport.receive_some()
        with pytest.raises(trio.BusyResourceError):
            await transport.send_all(b"x")
        nursery.cancel_scope.cancel()
    with pytest.raises(trio.BrokenResourceError):
        await transport.send_all(b"after half a message")


async def test_the_stream_transport_does_the_same_on_a_stream_in_memory() -> None:
    left, right = trio.testing.memory_stream_pair()
    server, client = (
        StreamTransport(left, WebSocketCodec(client=False)),
        StreamTransport(right, WebSocketCodec(client=True)),
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(echo, server)
        await client.send_all(b"q" * 70_000)
        assert await read_exactly(client, 70_000) == b"q" * 70_000
        await client.aclose(1001, "done")
    assert server.close_code == 1001


async def test_two_ends_that_cannot_half_close_do_not_wait_for_each_other(autojump_clock: trio.abc.Clock) -> None:
    """TLS through a front: the close frames were exchanged, and neither end learns of the other's end of stream."""
    left, right = trio.testing.memory_stream_pair()
    server, client = (
        StreamTransport(left, WebSocketCodec(client=False)),
        StreamTransport(right, WebSocketCodec(client=True)),
    )
    took: list[float] = []

    async def answer() -> None:
        while await client.receive_some():
            pass
        await client.aclose()
        took.append(trio.current_time() - began)

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        await server.send_all(b"x" * 100_000)
        await server.aclose(1012, "restart")
        took.append(trio.current_time() - began)
    assert took == [0, 0]
    assert (server.close_code, client.close_code, client.close_reason) == (1012, 1012, "restart")
