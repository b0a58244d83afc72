"""Who shares a stream with whom, who leaves alone, and what a fault ends."""

from contextlib import AsyncExitStack

import pytest
import trio

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world
from tests.runtime.daemon.share.cameraworld import PATH, Eye, camera, views, watch
from tunnel.daemon.upstream.local import LocalUpstream
from tunnel.http import ProxyError
from tunnel.mux.stream import Stream


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
        fast = w.daemon.parts.lane
        ended = [run for run in fast.running if run.grant.login == "login-of-vAu_" + "b" * 32]
        assert len(ended) == 1
        fast.invalidate(users=(), logins=("login-of-vAu_" + "b" * 32,), devices=())
        assert await other.end() == "reset"
        await one.until(await show.show())
        assert views(w) == 1


@pytest.mark.parametrize(
    "second",
    [
        [f"{PATH}?quality=low"],
        [PATH, "Range: bytes=1-"],
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


async def test_a_bug_in_a_pull_ends_its_viewers_and_not_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    async with camera() as (w, show, agent), AsyncExitStack() as stack:
        show.go.set()
        eye = await watch(stack, w)
        await eye.open()
        await eye.until(await show.show())

        def bug(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr("tunnel.http.fanout.Fanout.feed", bug)
        await show.show()
        assert await eye.visitor.end() == "reset"
        assert w.logged("pull_crashed")
        assert agent.end_reason is None
        monkeypatch.undo()
        show.wires.clear()
        again = await watch(stack, w)
        await again.open()
        await again.until(await show.show())


async def test_who_waits_for_one_that_never_gets_a_stream_asks_for_himself(monkeypatch: pytest.MonkeyPatch) -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        opened: list[int] = []
        go = trio.Event()
        original = LocalUpstream.open

        async def slow(line: LocalUpstream, request_id: str) -> Stream:
            opened.append(1)
            if len(opened) == 1:
                await go.wait()
                raise ProxyError("OVERLOADED", "no room")
            return await original(line, request_id)

        monkeypatch.setattr(LocalUpstream, "open", slow)
        first = await stack.enter_async_context(Visitor(w))
        await first.send(PATH)
        await w.until(lambda: opened)
        second = await watch(stack, w)
        await w.until(lambda: views(w) == 1)
        go.set()
        assert (await first.read()).code == "OVERLOADED"
        await second.open()
        await second.until(await show.show())


@pytest.mark.parametrize("chunked", [True, False])
async def test_an_answer_without_its_boundary_is_everybodys_own(chunked: bool) -> None:
    """`boundary=--frame` over `--frame` in the body, as some cameras have it: no part is found, bytes pass."""
    asked = 0

    async def odd(wire: Wire) -> None:
        nonlocal asked
        while await wire.head() is not None:
            asked += 1
            coding = b"Transfer-Encoding: chunked\r\n" if chunked else b""
            await wire.send(
                b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=--frame\r\n" + coding
            )
            body = b"--frame\r\nContent-Type: image/jpeg\r\n\r\nshown to %d" % asked
            await wire.send(b"\r\n" + (b"%x\r\n%b\r\n" % (len(body), body) if chunked else body))
            await wire.gone()
            return

    async with fast_world() as w:
        await box(w, odd)
        async with Visitor(w) as one, Visitor(w) as other:
            await one.send(PATH)
            assert b"boundary=--frame" in (await one.read_head()).head
            assert b"--frame\r\n" in await one.until(b"shown to 1")
            await other.send(PATH)
            assert (await other.read_head()).status == 200
            await other.until(b"shown to 2")
            assert views(w) == 0


async def test_first_bytes_in_pieces_are_still_a_boundary() -> None:
    async def slow(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        for piece in (b"\r", b"\n--fr", b"ame\r\nContent-Length: 2\r\n\r\nok\r\n--frame\r\n"):
            await trio.testing.wait_all_tasks_blocked(0.02)
            await wire.send(piece)
        await wire.gone()

    async with fast_world() as w:
        await box(w, slow)
        async with Visitor(w) as one:
            await one.send(PATH)
            await one.read_head()
            await one.until(b"ok")
            assert views(w) == 1
