"""One camera, many viewers, over the daemon's real public port and a real tunnel: the box is asked once."""

from contextlib import AsyncExitStack

import pytest
import trio

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world
from tests.runtime.daemon.share.cameraworld import PATH, camera, metric, part, views, watch


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
        await w.until(lambda: agent.streams == 0 and show.ended)
        assert show.ended == ["reset"]
        assert metric(w, "visiona_shared_pulls") == 0


async def test_a_first_viewer_that_leaves_before_the_head_leaves_the_answer_to_the_others() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        async with AsyncExitStack() as inner:
            first = await watch(inner, w)
            await w.until(lambda: show.asked)
            second = await watch(stack, w)
            await w.until(lambda: views(w) == 2)
            first.visitor.stream.reset()
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
    monkeypatch.setattr("tunnel.daemon.share.exchange.WAIT_SECONDS", 0.2)
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
