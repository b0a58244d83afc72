"""A minimal agent in Python, to read and to start from: trio and trio-websocket, and yamux in a hundred lines.

    pip install trio trio-websocket
    VISIONA_AGENT_PAIRING_TOKEN=vAc_... python agent.py ws://localhost:3800/tunnel/connect 127.0.0.1:8080

The daemon opens a stream for each connection; this program joins it to the local server. It names no
`X-VisionA-Agent`, so it may go on using its pairing token. What it leaves out and `visiona-agent` has: a stored session
token, proxies, private CAs, full jitter, limits. Wire format: docs/wire.md.
"""

import os
import random
import struct
import sys

import trio
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    HandshakeError,
    WebSocketConnection,
    open_websocket_url,
)

DATA, WINDOW, PING, GO_AWAY = range(4)  # frame types
SYN, ACK, FIN, RST = 1, 2, 4, 8  # flags
HEADER = struct.Struct(">BBHII")  # version 0, type, flags, stream id, length
INITIAL_WINDOW = 262_144  # bytes that either side may send on a new stream before it is given credit
DEAD_AFTER = 40.0  # seconds without a byte
REFUSED = -1.0  # the token is worth nothing, or the account is disabled: try again slowly, for a person has to act


class Stream:
    """One stream: what came in and is not yet delivered, and how much we may still send."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.inbound = bytearray()  # never more than INITIAL_WINDOW, or the daemon broke the rules
        self.ended = self.broken = False
        self.window = INITIAL_WINDOW
        self.changed = trio.Event()

    def wake(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Tunnel:
    """A yamux server over one WebSocket: the daemon opens streams, this end takes them."""

    def __init__(self, ws: WebSocketConnection, host: str, port: int, nursery: trio.Nursery) -> None:
        self.ws, self.host, self.port, self.nursery = ws, host, port, nursery
        self.streams: dict[int, Stream] = {}
        self.lock = trio.Lock()  # one message at a time

    async def send(self, kind: int, flags: int, number: int, length: int, body: bytes = b"") -> None:
        async with self.lock:
            await self.ws.send_message(HEADER.pack(0, kind, flags, number, length) + body)

    async def run(self) -> None:
        """Read frames for ever. Message boundaries mean nothing: a frame may be split or share a message."""
        buffer = bytearray()
        while True:
            with trio.fail_after(DEAD_AFTER):  # the daemon pings after 15 s of silence
                message = await self.ws.get_message()
            if isinstance(message, str):
                raise ConnectionError("the daemon sends binary messages only")
            buffer += message
            while len(buffer) >= HEADER.size:
                version, kind, flags, number, length = HEADER.unpack_from(buffer)
                size = HEADER.size + (length if kind == DATA else 0)
                if version != 0 or kind > GO_AWAY or size > HEADER.size + INITIAL_WINDOW:
                    raise ConnectionError("the daemon broke the protocol")
                if len(buffer) < size:
                    break
                body = bytes(buffer[HEADER.size : size])
                del buffer[:size]
                await self.handle(kind, flags, number, length, body)

    async def handle(self, kind: int, flags: int, number: int, length: int, body: bytes) -> None:
        if kind == PING:
            if flags & SYN:
                await self.send(PING, ACK, 0, length)
            return
        if kind == GO_AWAY:
            if length:
                raise ConnectionError(f"the daemon gave up: {length}")
            return  # it opens no more streams; those that are open go on
        if flags & SYN:
            stream = self.streams[number] = Stream(number)
            await self.send(WINDOW, ACK, number, 0)
            self.nursery.start_soon(self.carry, stream)
        found = self.streams.get(number)
        if found is None:
            return  # late frames of a stream that we have forgotten
        found.inbound += body
        if len(found.inbound) > INITIAL_WINDOW:
            raise ConnectionError("the daemon sent more than its window")
        if kind == WINDOW and not flags & RST:
            found.window += length
        found.ended = found.ended or bool(flags & FIN)
        found.broken = found.broken or bool(flags & RST)
        found.wake()

    async def carry(self, stream: Stream) -> None:
        """Join the stream to a new connection to the local server."""
        clean = False
        try:
            async with await trio.open_tcp_stream(self.host, self.port) as local, trio.open_nursery() as nursery:
                nursery.start_soon(self.towards_local, stream, local)
                await self.towards_daemon(stream, local)
            clean = True
        except* (OSError, trio.BrokenResourceError) as group:
            print(f"stream {stream.number}: {group.exceptions[0]}", file=sys.stderr)
        finally:
            del self.streams[stream.number]
        if not clean and not stream.broken:
            await self.send(WINDOW, RST, stream.number, 0)  # an abort must not look like an end

    async def towards_local(self, stream: Stream, local: trio.SocketStream) -> None:
        delivered = 0
        while True:
            while not (stream.inbound or stream.ended or stream.broken):
                await stream.changed.wait()
            if stream.broken:
                raise trio.BrokenResourceError("reset by the daemon")
            if not stream.inbound:
                await local.send_eof()
                return
            data, stream.inbound = bytes(stream.inbound), bytearray()
            await local.send_all(data)
            delivered += len(data)
            if delivered >= INITIAL_WINDOW // 2 and not stream.ended:
                await self.send(WINDOW, 0, stream.number, delivered)  # credit for what was delivered, not received
                delivered = 0

    async def towards_daemon(self, stream: Stream, local: trio.SocketStream) -> None:
        async for data in local:
            while data:
                while not (stream.window or stream.broken):
                    await stream.changed.wait()
                if stream.broken:
                    raise trio.BrokenResourceError("reset by the daemon")
                piece, data = bytes(data[: stream.window]), data[stream.window :]
                stream.window -= len(piece)
                await self.send(DATA, 0, stream.number, len(piece), piece)
        await self.send(WINDOW, FIN, stream.number, 0)


def least_wait(error: BaseException) -> float:
    """Seconds to wait at least after what ended the tunnel (docs/wire.md, parts 1 and 8), or REFUSED."""
    if isinstance(error, ConnectionClosed):
        codes = {4401: REFUSED, 4403: REFUSED, 4409: 30.0, 4429: 30.0}
        return codes.get(error.reason.code, 0.0) if error.reason else 0.0
    if not isinstance(error, ConnectionRejected):
        return 0.0
    # Only the daemon can refuse, and it answers with its envelope: a portal or a proxy may say 403 too
    own = b'"success":false' in (error.body or b"").replace(b" ", b"")
    if own and error.status_code in (401, 403):
        return REFUSED
    asked = next((value for name, value in error.headers or () if name.lower() == b"retry-after"), b"")
    if asked.isdigit():
        return float(min(int(asked[:9]), 3600))
    return {409: 30.0, 429: 5.0}.get(error.status_code, 0.0) if own else 0.0


async def main(url: str, local: str, token: str) -> None:
    host, _, port = local.rpartition(":")
    delay, slow = 0.5, 60.0
    while True:
        began, least = trio.current_time(), 0.0
        try:
            headers = [(b"Authorization", b"Bearer " + token.encode())]
            async with (
                open_websocket_url(url, extra_headers=headers, connect_timeout=15) as ws,
                trio.open_nursery() as nursery,
            ):
                print("connected", flush=True)
                await Tunnel(ws, host, int(port), nursery).run()
        except* (OSError, HandshakeError, ConnectionClosed, trio.TooSlowError) as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            least = least_wait(error)
            print(f"disconnected: {error!r}", flush=True)
        if trio.current_time() - began > 60:
            delay, slow = 0.5, 60.0
        if least == REFUSED:
            least, slow = slow, min(3000.0, slow * 2)
            pause = least * random.uniform(1, 1.2)  # noqa: S311 - jitter is no secret
        else:
            pause = least + random.uniform(0, delay)  # noqa: S311 - so is full jitter
            delay = min(30.0, delay * 2)
        print(f"next attempt in {pause:.1f} s", flush=True)
        await trio.sleep(pause)


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], os.environ["VISIONA_AGENT_PAIRING_TOKEN"])
