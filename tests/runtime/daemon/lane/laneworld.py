"""A daemon whose fast lane is visited over raw sockets, and a scripted box behind a real tunnel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

import orjson
import trio

from tests.runtime.daemon.daemonworld import SECRET, TOKEN, World, dial, parse, read_all, world
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream

DEVICE = "0190a0a0-0000-7000-8000-00000000000a"
LOGIN = "vAu_" + "a" * 32


@dataclass
class Got:
    """An answer. `ended` is "" while the connection is open, else "end" or "reset"."""

    head: bytes
    body: bytes
    ended: str = ""

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def code(self) -> str:
        return str(self.json["error"]["code"])

    def all(self, name: str) -> list[str]:
        lines = (line.partition(": ") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return [value for key, _, value in lines if key.lower() == name]


class Visited(Protocol):
    """Whatever has a public port."""

    public: int


class Visitor:
    """A client's connection to the public port."""

    def __init__(self, w: Visited) -> None:
        self._world = w
        self.stream: ByteStream
        self.buffer = b""

    async def __aenter__(self) -> Self:
        self.stream = await dial(self._world.public)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()

    async def send(self, line: str, *fields: str, body: bytes = b"", token: str = LOGIN) -> None:
        lines = [f"{line} HTTP/1.1", "Host: daemon"]
        if token:
            lines.append(f"Authorization: Bearer {token}")
        await self.stream.send_all("\r\n".join([*lines, *fields, "", ""]).encode() + body)

    async def ask(self, line: str, *fields: str, body: bytes = b"", token: str = LOGIN) -> Got:
        await self.send(line, *fields, body=body, token=token)
        return await self.read(head_only=line.startswith("HEAD"))

    async def more(self) -> bool:
        data = await self.stream.receive_some()
        self.buffer += data
        return bool(data)

    async def until(self, text: bytes) -> bytes:
        """What came up to and with `text`."""
        while text not in self.buffer:
            assert await self.more(), self.buffer
        end = self.buffer.index(text) + len(text)
        found, self.buffer = self.buffer[:end], self.buffer[end:]
        return found

    async def read_head(self) -> Got:
        return Got(await self.until(b"\r\n\r\n"), b"")

    async def read(self, *, head_only: bool = False) -> Got:
        """A whole answer; one without a length is read to the end of its chunks or of the connection."""
        got = await self.read_head()
        if head_only or got.status in (204, 304):
            return got
        if got.all("transfer-encoding"):
            while (size := int(await self.until(b"\r\n"), 16)) != 0:
                while len(self.buffer) < size + 2:
                    assert await self.more()
                got.body += self.buffer[:size]
                self.buffer = self.buffer[size + 2 :]
            await self.until(b"\r\n")
            return got
        lengths = got.all("content-length")
        size = int(lengths[0]) if lengths else 1 << 40
        while len(self.buffer) < size and not got.ended:
            got.ended = await self._end_or_more()
        got.body, self.buffer = self.buffer[:size], self.buffer[size:]
        return got

    async def _end_or_more(self) -> str:
        try:
            return "" if await self.more() else "end"
        except trio.BrokenResourceError:
            return "reset"

    async def end(self) -> str:
        """How the connection ends."""
        while not (ended := await self._end_or_more()):
            pass
        return ended


Handler = Callable[["Wire"], Awaitable[None]]


class Wire:
    """One stream, as the box at its end sees it."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.buffer = b""
        self.heads: list[bytes] = []

    async def head(self) -> bytes | None:
        """The next request's head; None at the end."""
        while b"\r\n\r\n" not in self.buffer:
            data = await self.stream.receive_some()
            if not data:
                return None
            self.buffer += data
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        self.heads.append(head)
        return head

    async def body(self, size: int) -> bytes:
        while len(self.buffer) < size:
            data = await self.stream.receive_some()
            assert data
            self.buffer += data
        found, self.buffer = self.buffer[:size], self.buffer[size:]
        return found

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def gone(self) -> str:
        """How the stream ends: "end" or "reset"."""
        try:
            while await self.stream.receive_some():
                pass
        except trio.BrokenResourceError:
            return "reset"
        return "end"


def ok(body: bytes, *fields: str) -> Handler:
    """Answers every request of a stream with this."""
    extra = "".join(f"{field}\r\n" for field in fields).encode()

    async def answer(wire: Wire) -> None:
        while await wire.head() is not None:
            await wire.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (extra, len(body)) + body)

    return answer


async def box(w: World, handler: Handler, *, features: str = "keepalive", local: str = "") -> Connection:
    """An agent of `DEVICE` whose box answers as `handler` says, one call a stream."""
    w.control.extra[TOKEN] = {"device_id": DEVICE}
    headers = [("Authorization", f"Bearer {TOKEN}")]
    if features:
        headers.append(("X-VisionA-Agent", f"box/1; features={features}"))
    if local:
        headers.append(("X-VisionA-Local", local))
    before = {session.id for session in w.daemon.parts.sessions.all()}
    agent, _ = await w.agent(headers=headers)
    await w.until(lambda: any(one.id not in before for one in w.daemon.parts.sessions.all()))

    async def serve(stream: Stream) -> None:
        try:
            await handler(Wire(stream))
            await stream.aclose()
        except trio.BrokenResourceError:
            stream.reset()

    await w.serve(agent, serve)
    return agent


@asynccontextmanager
async def fast_world(**settings: Any) -> AsyncIterator[World]:
    """As `world`, with the stand-in for Django authorising every caller for `DEVICE`."""
    async with world(cors_origins=("http://front.example",), **settings) as w:
        yield w


async def invalidate(w: World, body: object, *, secret: str = SECRET, raw: bytes | None = None) -> tuple[int, object]:
    """Ask the daemon to forget; its status and what it says."""
    data = orjson.dumps(body) if raw is None else raw
    stream = await dial(w.internal)
    await stream.send_all(
        f"POST /internal/authz/invalidate HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {secret}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n".encode()
        + data
    )
    status, _, answer = parse(await read_all(stream))
    return status, answer
