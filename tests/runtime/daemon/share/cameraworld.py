"""A camera behind a real tunnel that shows a frame when the test says so, and viewers on the fast lane."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio

from tests.runtime.daemon.daemonworld import World
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world
from tunnel.mux.connection import Connection

PATH = f"GET /d/{DEVICE}/cameras/0/stream"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\nX-Camera: 7\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def part(n: int, size: int = 1000) -> bytes:
    body = b"%06d" % n + bytes(size)
    line = b"--frame\r\n" if n == 0 else b"\r\n--frame\r\n"
    return line + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(body) + body


class Camera:
    """A box with one camera, that shows a frame when the test says so."""

    def __init__(self, *, chunked: bool = True) -> None:
        self.chunked = chunked
        self.asked: list[bytes] = []
        self.wires: list[Wire] = []
        self.ended: list[str] = []
        self.go = trio.Event()  # the head comes
        self.count = 0

    async def __call__(self, wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            self.asked.append(head)
            await self.go.wait()
            if b"/plain" in head:
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                continue
            await wire.send(HEAD + (CHUNKED if self.chunked else b"") + b"\r\n")
            self.wires.append(wire)
            try:
                self.ended.append(await wire.gone())
            except trio.ClosedResourceError:
                self.ended.append("here")  # the test reset it
            return

    async def show(self, size: int = 1000) -> bytes:
        """One more frame, on every stream that was asked for; the frame."""
        data = part(self.count, size)
        self.count += 1
        for wire in self.wires:
            await wire.send(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)
        return data


@asynccontextmanager
async def camera(*, chunked: bool = True, **settings: object) -> AsyncIterator[tuple[World, Camera, Connection]]:
    async with fast_world(**settings) as w:
        show = Camera(chunked=chunked)
        agent = await box(w, show)
        yield w, show, agent


class Eye:
    """A viewer: the body of its answer, the chunks taken away."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor
        self.head = b""
        self.body = b""

    async def open(self) -> None:
        self.head = (await self.visitor.read_head()).head

    async def until(self, wanted: bytes) -> None:
        """Read until the body holds this."""
        while wanted not in self.body:
            assert await self.chunk()

    async def chunk(self) -> bool:
        """The next chunk; False at a clean end."""
        size = int(await self.visitor.until(b"\r\n"), 16)
        while len(self.visitor.buffer) < size + 2:
            assert await self.visitor.more(), "the answer was cut"
        self.body += self.visitor.buffer[:size]
        self.visitor.buffer = self.visitor.buffer[size + 2 :]
        return size > 0


async def watch(stack: AsyncExitStack, w: World, line: str = PATH, *fields: str) -> Eye:
    visitor = await stack.enter_async_context(Visitor(w))
    await visitor.send(line, *fields)
    return Eye(visitor)


def metric(w: World, name: str) -> float:
    lines = w.daemon.parts.metrics.render().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def views(w: World) -> int:
    return int(metric(w, "visiona_shared_viewers"))
