"""Cameras whose parts nobody can be sure of: everybody who watches gets the bytes as they come, and nobody joins."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.runtime.daemon.daemonworld import World
from tests.runtime.daemon.lane.laneworld import Visitor, Wire, box, fast_world
from tests.runtime.daemon.share.cameraworld import PATH, Eye, metric, views, watch

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=%b\r\n\r\n"
FRAMES = 30


def frame(n: int, delimiter: bytes, length: int = 6) -> bytes:
    return delimiter + b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n\xff\xd8%02d\xff\xd9\r\n" % (length, n)


SLOPPY = {
    "clean": (b"b", [frame(n, b"--b\r\n") for n in range(FRAMES)]),
    "closing": (b"b", [frame(n, b"--b--\r\n") for n in range(FRAMES)]),
    "one closes": (b"b", [frame(n, b"--b--\r\n" if n == 5 else b"--b\r\n") for n in range(FRAMES)]),
    "blanks": (b"b", [frame(n, b"--b  \r\n") for n in range(FRAMES)]),
    "many blanks": (b"b", [frame(n, b"--b" + b" " * 500 + b"\r\n") for n in range(FRAMES)]),
    "blank lines": (b"b", [frame(n, b"\r\n" * 10 if n else b"--b\r\n") for n in range(FRAMES)]),
    "no delimiters": (b"b", [frame(n, b"" if n else b"--b\r\n") for n in range(FRAMES)]),
    "too short": (b"b", [frame(n, b"--b\r\n", length=4) for n in range(FRAMES)]),
    "too long": (b"b", [frame(n, b"--b\r\n", length=60) for n in range(FRAMES)]),
    "no length": (b"b", [frame(n, b"--b\r\n", length=0) for n in range(FRAMES)]),
    "named with dashes": (b"--b", [frame(n, b"--b\r\n") for n in range(FRAMES)]),
    "of dashes": (b"-", [frame(n, b"---\r\n") for n in range(FRAMES)]),
    "of dashes, closing": (b"-", [frame(n, b"-----\r\n") for n in range(FRAMES)]),
}


class Source:
    """A box that sends what a test says, on each stream that it was asked for."""

    def __init__(self, boundary: bytes) -> None:
        self.head = HEAD % boundary
        self.wires: list[Wire] = []
        self.ended = 0

    async def __call__(self, wire: Wire) -> None:
        if await wire.head() is None:
            return
        await wire.send(self.head)
        self.wires.append(wire)
        await wire.gone()
        self.ended += 1

    async def send(self, data: bytes) -> None:
        for wire in self.wires:
            await wire.send(data)


@asynccontextmanager
async def source(boundary: bytes) -> AsyncIterator[tuple[World, Source]]:
    async with fast_world() as w:
        camera = Source(boundary)
        await box(w, camera)
        yield w, camera


@pytest.mark.parametrize("name", SLOPPY)
async def test_a_viewer_sees_every_frame_as_soon_as_it_comes(name: str) -> None:
    boundary, frames = SLOPPY[name]
    async with source(boundary) as (w, camera), AsyncExitStack() as stack:
        eye = await watch(stack, w)
        await w.until(lambda: camera.wires)
        for n, data in enumerate(frames):
            await camera.send(data)
            if not n:
                await eye.open()
            await eye.until(b"\xff\xd8%02d\xff\xd9" % n)
        while len(eye.body) < len(b"".join(frames)):
            await eye.chunk()
        assert eye.body == b"".join(frames)
        assert len(camera.wires) == 1


async def test_who_watches_together_goes_on_and_who_comes_later_asks_for_himself() -> None:
    async with source(b"b") as (w, camera):
        async with AsyncExitStack() as stack:
            await _go_on_together(stack, w, camera)
        await w.until(lambda: camera.ended == 2)
        assert w.logged("share_given_up")


async def _go_on_together(stack: AsyncExitStack, w: World, camera: Source) -> None:
    eyes = [await watch(stack, w) for _ in range(2)]
    await w.until(lambda: camera.wires and views(w) == 2)
    sent = [frame(0, b"--b\r\n")]
    await camera.send(sent[0])
    for eye in eyes:
        await eye.open()
        await eye.until(sent[0])
    assert metric(w, "visiona_shared_pulls") == 1
    for n, delimiter in enumerate((b"--b--\r\n", b"--b\r\n", b"\r\n\r\n--b--\r\n"), 1):
        sent.append(frame(n, delimiter))
        await camera.send(sent[n])
        for eye in eyes:
            await eye.until(sent[n])
    assert [eye.body for eye in eyes] == [b"".join(sent)] * 2
    assert metric(w, "visiona_shared_pulls") == 0
    assert metric(w, "visiona_shared_given_up_total") == 1
    late = await watch(stack, w)
    await w.until(lambda: len(camera.wires) == 2)
    await late.open()
    assert len(camera.wires) == 2


async def test_a_slow_viewer_of_what_is_not_shared_gets_every_byte_and_holds_the_box_up() -> None:
    size = 16 << 20
    async with source(b"b") as (w, camera), AsyncExitStack() as stack:
        eye = await watch(stack, w)
        await w.until(lambda: camera.wires)
        first = frame(0, b"--b\r\n") + b"--b--\r\nrest"
        await camera.send(first)
        await eye.open()
        await eye.until(b"rest")
        sent = False

        async def send() -> None:
            nonlocal sent
            for n in range(size >> 16):
                await camera.send(bytes([n % 251]) * (1 << 16))
            sent = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked(0.2)
            assert not sent
            eye.body = b""
            for n in range(size >> 16):
                while len(eye.body) < 1 << 16:
                    assert await eye.chunk()
                assert eye.body[: 1 << 16] == bytes([n % 251]) * (1 << 16)
                eye.body = eye.body[1 << 16 :]
        assert sent


async def test_one_of_two_who_takes_nothing_of_what_is_not_shared_is_cut_off() -> None:
    async with source(b"b") as (w, camera), AsyncExitStack() as stack:
        quick, stalled = [await watch(stack, w) for _ in range(2)]
        await w.until(lambda: camera.wires and views(w) == 2)
        await camera.send(frame(0, b"--b\r\n"))
        for eye in (quick, stalled):
            await eye.open()
        await camera.send(b"--b--\r\nrest")
        for eye in (quick, stalled):
            await eye.until(b"rest")
        piece = bytes(1 << 16)
        for _ in range(320):  # 20 MiB
            quick.body = b""
            await camera.send(piece)
            while len(quick.body) < len(piece):
                assert await quick.chunk()
        assert await stalled.visitor.end() == "reset"


async def test_what_is_kept_of_a_devices_answers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.share.shares.HELD_BYTES", 2_900_000)
    async with source(b"b") as (w, camera), AsyncExitStack() as stack:
        eyes = []
        for n in range(3):
            visitor = await stack.enter_async_context(Visitor(w))
            await visitor.send(f"{PATH}?n={n}")
            eyes.append(Eye(visitor))
        await w.until(lambda: len(camera.wires) == 3)
        await camera.send(b"--b\r\nContent-Length: 2000000\r\n\r\n")
        for eye in eyes:
            await eye.open()
        for n, wire in enumerate(camera.wires):
            await wire.send(bytes(1_000_000 + n))
        await w.until(lambda: camera.ended == 1)
        assert metric(w, "visiona_shared_pulls") == 2


DASHES = {
    "boundary of dashes": (b"-", b"---\r\n\r\n" + b"-" * 1_500_000),
    "long boundary of dashes": (b"-" * 70, b"-" * 72 + b"\r\n\r\n" + (b"-" * 71 + b"\n") * 20_000),
    "lines like delimiters": (b"b", b"--b\r\n\r\n" + b"\n--b" * 375_000),
    "tiny parts": (b"b", b"--b\n\n\n" * 250_000),
    "behind the closing one": (b"b", b"--b\r\n\r\nx\r\n--b--\r\n" + bytes(1_500_000)),
    "no delimiter": (b"b", b"--b\r\n\r\n" + b"\n" * 1_500_000),
}


@pytest.mark.parametrize("name", DASHES)
async def test_the_worst_that_a_box_can_send_passes_and_leaves_others_alone(name: str) -> None:
    """1.5 MB in pieces of 1 460 bytes, as they come over a line: it was 19 s of the daemon's whole event loop."""
    boundary, body = DASHES[name]
    async with source(boundary) as (w, camera), AsyncExitStack() as stack:
        eye = await watch(stack, w)
        await w.until(lambda: camera.wires)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                for at in range(0, len(body), 1460):
                    await camera.send(body[at : at + 1460])

            nursery.start_soon(send)
            await eye.open()
            with trio.fail_after(15):
                while len(eye.body) < len(body):
                    assert await eye.chunk()
        assert eye.body == body
