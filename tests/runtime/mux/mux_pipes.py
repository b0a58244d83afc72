"""Transports in memory: two ends of a byte pipe that behave as `tunnel.websocket.handshake.Transport` says."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig


class PipeTransport:
    """One end. `capacity` bytes may be under way before `send_all` waits; pieces arrive cut as `random` likes."""

    def __init__(self, capacity: int, chunk: int | None) -> None:
        self.peer: PipeTransport
        self.capacity = capacity
        self.chunk = chunk
        self.arrived = bytearray()
        self.bytes_in = 0
        self.ended = False
        self.broken = False
        self.cut = False  # bytes vanish: a network that died silently
        self.close_code: int | None = None
        self.close_reason = ""
        self.closed_with: tuple[int, str] | None = None
        self.sent = bytearray()  # what this end put on the wire
        self.changed = trio.lowlevel.ParkingLot()

    async def receive_some(self) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self.arrived and not self.ended and not self.broken:
            await self.changed.park()
        if self.broken or self.closed_with:
            raise trio.BrokenResourceError("pipe broke")
        if not self.arrived:
            return b""
        size = len(self.arrived) if self.chunk is None else random.randint(1, self.chunk)
        data = bytes(self.arrived[:size])
        del self.arrived[:size]
        self.bytes_in += size
        self.peer.changed.unpark_all()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken or self.closed_with:
            raise trio.BrokenResourceError("pipe broke")
        self.sent += data
        if self.cut:
            return
        with memoryview(data) as view:
            while view:
                while len(self.peer.arrived) >= self.peer.capacity and not self.broken:
                    await self.changed.park()
                if self.broken:
                    raise trio.BrokenResourceError("pipe broke")
                room = self.peer.capacity - len(self.peer.arrived)
                self.peer.arrived += view[:room]
                view = view[room:]
                self.peer.changed.unpark_all()

    def try_send(self, data: bytes | bytearray | memoryview) -> bool:
        return False

    def unsent(self) -> int | None:
        return None

    def kernel_socket(self) -> None:
        return None

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        if self.closed_with is None:
            self.closed_with = (code, reason)
            if not self.cut:
                self.peer.end(code, reason)
            self.changed.unpark_all()
        await trio.lowlevel.checkpoint()

    def end(self, code: int, reason: str = "") -> None:
        """The peer's close arrives."""
        if self.close_code is None:
            self.close_code, self.close_reason = code, reason
        self.ended = True
        self.changed.unpark_all()

    def break_(self) -> None:
        """The connection is lost, noticed at once by this end."""
        self.broken = True
        self.close_code = 1006
        self.changed.unpark_all()


def transport_pair(capacity: int = 256 * 1024, chunk: int | None = None) -> tuple[PipeTransport, PipeTransport]:
    one, two = PipeTransport(capacity, chunk), PipeTransport(capacity, chunk)
    one.peer, two.peer = two, one
    return one, two


@asynccontextmanager
async def connected(
    *,
    client: SessionConfig | None = None,
    server: SessionConfig | None = None,
    capacity: int = 256 * 1024,
    chunk: int | None = None,
) -> AsyncIterator[tuple[Connection, Connection]]:
    """A yamux client that refuses streams and a server that accepts them, both running."""
    left, right = transport_pair(capacity, chunk)
    opener = Connection(left, role=Role.CLIENT, config=client or SessionConfig(), accept_streams=False, name="client")
    taker = Connection(
        right, role=Role.SERVER, config=server or SessionConfig.for_agent(), accept_streams=True, name="server"
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(opener.run)
        await nursery.start(taker.run)
        yield opener, taker
        await opener.aclose()
        await taker.aclose()


async def against_raw(nursery: trio.Nursery, config: SessionConfig | None = None) -> tuple[Connection, PipeTransport]:
    """A running daemon-like connection, and the other end of its pipe for the test to play the peer."""
    ours, theirs = transport_pair()
    connection = Connection(
        ours, role=Role.CLIENT, config=config or SessionConfig(), accept_streams=False, name="tested"
    )
    await nursery.start(connection.run)
    return connection, theirs


async def wait_idle(connection: Connection) -> None:
    """Return when no stream is open."""
    while connection.streams:
        await trio.sleep(0.001)


async def echo_forever(connection: Connection) -> None:
    async def echo(stream: Stream) -> None:
        async with stream:
            with suppress(TunnelError):
                while data := await stream.receive_some():
                    await stream.send_all(data)

    try:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(echo, await connection.accept_stream())
    except* trio.EndOfChannel:
        pass
