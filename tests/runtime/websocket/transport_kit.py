"""Both ends of a WebSocket on loopback, for the transports' tests: served, dialled, or spoken by hand."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from tests.runtime.websocket.plain_transport import plain_server
from tunnel.mux.transport import Transport
from tunnel.net.sockets import ByteStream, accept, listen
from tunnel.websocket import handshake as t
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import SocketTransport

SERVER_HEADERS = [("X-VisionA-Device-Id", "d1")]
Serve = Callable[[Transport], Awaitable[None]]


async def read_head(stream: ByteStream) -> tuple[bytes, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        more = await stream.receive_some()
        assert more
        data += more
    end = data.index(b"\r\n\r\n") + 4
    return data[:end], data[end:]


@asynccontextmanager
async def serving(serve: Serve, *, plain: bool = False) -> AsyncIterator[int]:
    """One loopback server that upgrades one connection and hands its transport to `serve`; yields the port."""
    listener = listen("127.0.0.1", 0)

    async def one() -> None:
        sock, _ = await accept(listener)
        raw = ByteStream(sock)
        head, rest = await read_head(raw)
        if not plain:
            await serve(await t.server_transport(sock, head, rest, SERVER_HEADERS, raw.send_all))
            return
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            await serve(await plain_server(nursery, stream, head, SERVER_HEADERS))
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            try:
                yield listener.getsockname()[1]
            finally:
                listener.close()


@asynccontextmanager
async def beside_a_raw_peer(seconds: float) -> AsyncIterator[tuple[SocketTransport, ByteStream]]:
    """A server-side transport and the raw socket of its peer, for so many seconds at most."""
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    left.setblocking(False)
    right.setblocking(False)
    transport, peer = SocketTransport(left, WebSocketCodec(client=False)), ByteStream(right)
    with trio.fail_after(seconds):
        yield transport, peer
        peer.close()
        await transport.aclose()


async def dial(port: int) -> tuple[Transport, list[tuple[str, str]]]:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    return await t.client_transport(stream, "localhost", "/tunnel/connect", [("Authorization", "Bearer x")])


async def read_exactly(transport: Transport, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        more = await transport.receive_some()
        assert more
        data += more
    return bytes(data)


async def send_for_ever(transport: Transport) -> None:
    while True:
        await transport.send_all(b"x" * 60_000)


async def read_to_the_end(transport: Transport) -> None:
    while await transport.receive_some():
        pass


async def echo(transport: Transport) -> None:
    while data := await transport.receive_some():
        await transport.send_all(data)
    await transport.aclose()


@asynccontextmanager
async def serving_raw() -> AsyncIterator[
    tuple[Callable[[], Awaitable[tuple[Transport, list[tuple[str, str]]]]], ByteStream]
]:
    """A client whose handshake runs in the background, and the raw server side of its connection."""
    listener = listen("127.0.0.1", 0)
    result: list[tuple[Transport, list[tuple[str, str]]]] = []
    done = trio.Event()

    async def run() -> None:
        result.append(await dial(listener.getsockname()[1]))
        done.set()

    async def client() -> tuple[Transport, list[tuple[str, str]]]:
        await done.wait()
        return result[0]

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            sock, _ = await accept(listener)
            yield client, ByteStream(sock)
    listener.close()


def masked(opcode: int, payload: bytes, *, fin: bool = True, length_form: int | None = None) -> bytes:
    size = len(payload)
    first = bytes([(0x80 if fin else 0) | opcode])
    form = length_form or (126 if size < 126 else 127 if size > 65535 else 65535)
    if form == 126:
        head = first + bytes([0x80 | size])
    elif form == 65535:
        head = first + b"\xfe" + struct.pack("!H", size)
    else:
        head = first + b"\xff" + struct.pack("!Q", size)
    key = b"\x01\x02\x03\x04"
    return head + key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
