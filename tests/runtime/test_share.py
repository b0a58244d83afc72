"""One camera, many viewers, over the daemon's real public port and a real tunnel: the box is asked once."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from tests.runtime.daemonworld import World
from tests.runtime.fastworld import DEVICE, Visitor, Wire, box, fast_world
from tunnel.runtime.connection import Connection

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
    lines = w.daemon.metrics.render().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def views(w: World) -> int:
    return int(metric(w, "visiona_shared_viewers"))


@pytest.mark.parametrize("chunked", [True, False])
async def test_the_box_is_asked_once_and_everybody_sees_every_frame(chunked: bool) -> None:
    async with camera(chunked=chunked) as (w, show, _), AsyncExitStack() as stack:
        eyes = [await watch(stack, w) for _ in range(5)]
        await w.until(lambda: views(w) == 5)  # they wait for the first head
        show.go.set()
        for eye in eyes:
            await eye.open()
            assert b"X-Camera: 7" in eye.head
            assert b"boundary=frame" in eye.head
            assert b"Transfer-Encoding: chunked" in eye.head
        sent = b""
        for _ in range(10):
            frame = await show.show()
            sent += frame
            for eye in eyes:
                await eye.until(frame)
        assert [eye.body for eye in eyes] == [sent] * 5
        assert len(show.asked) == 1
        assert metric(w, "visiona_shared_pulls_total") == 1
        assert metric(w, "visiona_shared_units_skipped_total") == 0


async def test_who_comes_later_gets_the_same_head_and_begins_with_a_whole_part() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        first = await watch(stack, w)
        await first.open()
        frames = [await show.show() for _ in range(2)]
        await first.until(frames[1])
        late = await watch(stack, w)
        await late.open()
        frames.append(await show.show())
        await late.until(frames[2])
        assert late.body == frames[1].lstrip(b"\r\n") + frames[2]
        assert _fields(late.head) == _fields(first.head)
        assert len(show.asked) == 1


def _fields(head: bytes) -> list[bytes]:
    return [line for line in head.split(b"\r\n") if not line.startswith(b"X-Request-ID")]


async def test_the_pull_ends_with_the_last_viewer() -> None:
    async with camera() as (w, show, agent):
        show.go.set()
        async with AsyncExitStack() as stack:
            async with AsyncExitStack() as inner:
                first = await watch(inner, w)
                await first.open()
                second = await watch(stack, w)
                await second.open()
            await w.until(lambda: views(w) == 1)
            frame = await show.show()
            await second.until(frame)
            assert not show.ended
        await w.until(lambda: agent.streams == 0)
        assert show.ended == ["reset"]
        assert metric(w, "visiona_shared_pulls") == 0


async def test_a_first_viewer_that_leaves_before_the_head_leaves_the_answer_to_the_others() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        async with AsyncExitStack() as inner:
            await watch(inner, w)
            await w.until(lambda: show.asked)
            second = await watch(stack, w)
            await w.until(lambda: views(w) == 2)
        await w.until(lambda: views(w) == 1)
        show.go.set()
        await second.open()
        await second.until(await show.show())
        assert len(show.asked) == 1


async def test_an_answer_that_is_none_of_these_goes_to_the_first_and_the_others_ask_for_themselves() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        line = f"GET /d/{DEVICE}/plain"
        visitors = [await stack.enter_async_context(Visitor(w)) for _ in range(3)]
        for visitor in visitors:
            await visitor.send(line)
        await w.until(lambda: views(w) == 3)
        await w.until(lambda: len(show.asked) == 1)
        show.go.set()
        for visitor in visitors:
            got = await visitor.read()
            assert (got.status, got.body) == (200, b"ok")
        assert len(show.asked) == 3
        await visitors[0].send(line)  # known by now: nobody waits
        assert (await visitors[0].read()).body == b"ok"
        assert views(w) == 0
        assert metric(w, "visiona_shared_pulls_total") == 0


async def test_nobody_waits_long_for_an_answer_that_may_be_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.runtime.share_run.WAIT_SECONDS", 0.2)
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        for _ in range(2):
            await watch(stack, w, f"GET /d/{DEVICE}/plain")
        await w.until(lambda: len(show.asked) == 2)


async def test_a_box_that_dies_before_the_head_is_told_to_each() -> None:
    async with fast_world() as w, AsyncExitStack() as stack:
        go = trio.Event()

        async def dies(wire: Wire) -> None:
            await wire.head()
            await go.wait()
            wire.stream.reset()

        await box(w, dies)
        visitors = [await stack.enter_async_context(Visitor(w)) for _ in range(3)]
        for visitor in visitors:
            await visitor.send(PATH)
        await w.until(lambda: views(w) == 3)
        go.set()
        for visitor in visitors:
            assert (await visitor.read()).status == 502


async def test_a_clean_end_of_the_box_is_a_clean_end_for_all() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        eyes = [await watch(stack, w) for _ in range(2)]
        for eye in eyes:
            await eye.open()
        sent = await show.show()
        closing = b"\r\n--frame--\r\n"
        await show.wires[0].send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(closing), closing))
        for eye in eyes:
            while await eye.chunk():
                pass
            assert eye.body == sent + closing


@pytest.mark.parametrize("how", ["reset", "half", "length"])
async def test_an_end_that_is_none_is_a_cut_for_all(how: str) -> None:
    async with camera(chunked=how != "half") as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        eyes = [await watch(stack, w) for _ in range(2)]
        for eye in eyes:
            await eye.open()
        frame = await show.show()
        for eye in eyes:
            await eye.until(frame)
        if how == "reset":
            show.wires[0].stream.reset()
        elif how == "half":  # of a frame, then the end of the stream
            await show.wires[0].send(part(1)[:-10])
            await show.wires[0].stream.send_eof()
        else:
            await show.wires[0].send(b"20\r\n\r\n--frame\r\nContent-Length: 99999999\r\n")
            await show.wires[0].send(b"4\r\n\r\n\r\n\r\n")
        for eye in eyes:
            assert await eye.visitor.end() == "reset"
            assert b"0\r\n\r\n" not in eye.visitor.buffer


async def test_a_viewer_that_reads_nothing_skips_frames_and_holds_nobody_up() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        stalled = await watch(stack, w)
        await stalled.open()
        quick = await watch(stack, w)
        await quick.open()
        sent = []
        for _ in range(60):
            sent.append(await show.show(200_000))
            await quick.until(sent[-1])
            quick.body = quick.body[-300_000:]
        assert metric(w, "visiona_shared_units_skipped_total") > 10
        last = await show.show(200_000)
        await quick.until(last)
        await stalled.until(last)  # it reads again: whole frames, and some of them missing
        seen = stalled.body.split(b"--frame\r\n")[1:]
        whole = {frame.lstrip(b"\r\n").removeprefix(b"--frame\r\n") for frame in [*sent, last]}
        assert all(frame.removesuffix(b"\r\n") in whole for frame in seen)
        assert len(seen) < 50
        numbers = [int(frame.partition(b"\r\n\r\n")[2][:6]) for frame in seen]
        assert numbers == sorted(numbers)


async def test_a_viewer_whose_login_ends_leaves_alone() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        one = await watch(stack, w)
        await one.open()
        other = await stack.enter_async_context(Visitor(w))
        await other.send(PATH, token="vAu_" + "b" * 32)
        eye = Eye(other)
        await eye.open()
        assert len(show.asked) == 1
        assert views(w) == 2
        fast = w.daemon.fast
        assert fast is not None
        ended = [run for run in fast._running if run.grant.login == "login-of-vAu_" + "b" * 32]
        assert len(ended) == 1
        fast.invalidate(users=(), logins=("login-of-vAu_" + "b" * 32,), devices=())
        assert await other.end() == "reset"
        await one.until(await show.show())
        assert views(w) == 1


@pytest.mark.parametrize(
    "second",
    [
        [f"{PATH}?quality=low"],
        [PATH, "Range: bytes=0-"],
        [PATH, "If-None-Match: x"],
        [PATH, "Accept: application/json"],
        [PATH.replace("GET", "POST")],
        [PATH, "Content-Length: 1"],
    ],
)
async def test_what_is_not_the_same_is_not_shared(second: list[str]) -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        first = await watch(stack, w)
        await first.open()
        visitor = await stack.enter_async_context(Visitor(w))
        await visitor.send(*second, body=b"x" if "Content-Length: 1" in second else b"")
        await w.until(lambda: len(show.asked) == 2)


async def test_another_user_is_not_shown_what_this_one_pulls() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        first = await watch(stack, w)
        await first.open()
        w.control.grant = {"user_id": "another"}
        visitor = await stack.enter_async_context(Visitor(w))
        await visitor.send(PATH, token="vAu_" + "b" * 32)
        await w.until(lambda: len(show.asked) == 2)


async def test_a_hundred_viewers_cost_the_box_one_stream() -> None:
    """Bytes are counted at the agent's end of the tunnel."""
    async with camera() as (w, show, agent), AsyncExitStack() as stack:
        show.go.set()
        eyes = []
        for _ in range(100):
            eyes.append(await watch(stack, w))
            await eyes[-1].open()
        before = agent.statistics().bytes_out
        size, frames = 20_000, 15
        for _ in range(frames):
            frame = await show.show(size)
            for eye in eyes:
                await eye.until(frame)
                eye.body = b""
        assert len(show.asked) == 1
        assert views(w) == 100
        assert agent.streams == 1
        sent = agent.statistics().bytes_out - before
        assert frames * size < sent < 1.1 * frames * size


@pytest.mark.parametrize("share", [True, False])
async def test_event_streams_are_shared_only_if_the_setting_says_so(share: bool) -> None:
    asked = []

    async def events(wire: Wire) -> None:
        asked.append(await wire.head())
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await wire.gone()

    async with fast_world(share_events=share) as w, AsyncExitStack() as stack:
        await box(w, events)
        first = await watch(stack, w, f"GET /d/{DEVICE}/events", "Accept: text/event-stream")
        await first.open()
        await first.until(b"data: 1\n\n")
        second = await watch(stack, w, f"GET /d/{DEVICE}/events", "Accept: text/event-stream")
        await second.open()
        await w.until(lambda: len(asked) == (1 if share else 2))
