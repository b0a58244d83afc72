"""The daemon's end of a tunnel for tests: real sockets, our own transport and connection, no Django, no policy.

`FakeDaemon.answers` says what happens to the next agents that dial; after the last one, every agent is admitted.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from tunnel.contract import error_envelope
from tunnel.mux.connection import Connection
from tunnel.net.sockets import ByteStream, accept, listen
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.websocket.handshake import HandshakeError, server_transport


@dataclass(frozen=True, slots=True)
class Admit:
    """Let the agent in, with these headers on the 101."""

    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer with a status and our envelope."""

    status: int
    code: str = "UNAUTHENTICATED"
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Drop:
    """Close the connection without an answer."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Never answer."""


Answer = Admit | Refuse | Drop | Hang


@dataclass(slots=True)
class Dialled:
    """What one agent sent: the request line's target and its headers by lower-case name."""

    target: str
    headers: dict[str, str]
    at: float


@dataclass(slots=True)
class FakeDaemon:
    port: int
    role: Role
    answers: deque[Answer] = field(default_factory=deque)
    dialled: list[Dialled] = field(default_factory=list)
    attempts: int = 0
    config: SessionConfig = field(default_factory=SessionConfig)
    _send: trio.MemorySendChannel[Connection] = field(init=False)
    _receive: trio.MemoryReceiveChannel[Connection] = field(init=False)

    def __post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[Connection](100)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def connection(self, seconds: float = 30) -> Connection:
        """The next agent's connection, already running."""
        with trio.fail_after(seconds):
            return await self._receive.receive()

    async def serve(self, sock: socket.socket, nursery: trio.Nursery) -> None:
        self.attempts += 1
        stream = ByteStream(sock)
        try:
            await self._answer(stream, nursery)
        except trio.Cancelled:
            stream.close()
            raise

    async def _answer(self, stream: ByteStream, nursery: trio.Nursery) -> None:
        data = b""
        try:
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some()
                if not more:
                    stream.close()
                    return
                data += more
        except trio.BrokenResourceError:
            stream.close()
            return
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.dialled.append(Dialled(first.split(" ")[1], headers, trio.current_time()))
        answer = self.answers.popleft() if self.answers else Admit()
        if isinstance(answer, Admit):
            await self._admit(stream, head + b"\r\n\r\n", rest, answer, nursery)
        elif isinstance(answer, Refuse):
            body = json.dumps(error_envelope(answer.code, "no", "req_test")).encode()
            extra = "".join(f"{name}: {value}\r\n" for name, value in answer.headers)
            line = f"HTTP/1.1 {answer.status} No\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
            await stream.send_all(line.encode() + body)
            stream.close()
        elif isinstance(answer, Drop):
            stream.close()
        else:
            try:
                await trio.sleep_forever()
            finally:
                stream.close()

    async def _admit(self, stream: ByteStream, head: bytes, rest: bytes, answer: Admit, nursery: trio.Nursery) -> None:
        try:
            transport = await server_transport(stream.sock, head, rest, answer.headers, stream.send_all)
        except (HandshakeError, trio.BrokenResourceError):
            stream.close()
            return
        connection = Connection(transport, role=self.role, config=self.config, accept_streams=False, name="test")
        await nursery.start(connection.run)
        await self._send.send(connection)


@asynccontextmanager
async def fake_daemon(*answers: Answer, role: Role = Role.CLIENT, port: int = 0) -> AsyncIterator[FakeDaemon]:
    """A daemon that listens on loopback while the block runs; its connections are cancelled with it."""
    listener = listen("127.0.0.1", port)
    daemon = FakeDaemon(listener.getsockname()[1], role, deque(answers))

    async def accept_all() -> None:
        while True:
            sock, _ = await accept(listener)
            nursery.start_soon(daemon.serve, sock, nursery)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_all)
            yield daemon
            nursery.cancel_scope.cancel()
    finally:
        listener.close()
