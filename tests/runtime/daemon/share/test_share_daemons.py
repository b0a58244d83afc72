"""Viewers at several daemons: who holds the box pulls once for all of them, and another daemon is one viewer more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest
import trio

from tests.runtime.daemon.daemonworld import World, world
from tests.runtime.daemon.lane.laneworld import DEVICE, Handler, Visitor, Wire, box
from tests.runtime.daemon.share.cameraworld import PATH, Camera, metric, part, views, watch
from tunnel.contract import H_SHARE, H_TUNNEL_SESSION
from tunnel.daemon.share.exchange import SharedExchange
from tunnel.mux.connection import Connection

HOLDER, OTHER = 0, 1


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine nobody goes alone because the test is late."""
    for module in ("exchange", "peer"):
        monkeypatch.setattr(f"tunnel.daemon.share.{module}.WAIT_SECONDS", 1e9)


@asynccontextmanager
async def daemons(handler: Handler, *, count: int = 2) -> AsyncIterator[tuple[list[World], Connection]]:
    """Daemons of which the first holds the box, and its agent."""
    async with AsyncExitStack() as stack:
        worlds = [await stack.enter_async_context(world()) for _ in range(count)]
        agent = await box(worlds[HOLDER], handler)
        session = worlds[HOLDER].daemon.parts.sessions.all()[-1]
        for each in worlds[1:]:
            each.control.grant = {
                "node_url": worlds[HOLDER].daemon.node_url, "session": session.id, "epoch": session.epoch,
            }  # fmt: skip
        yield worlds, agent


async def until(worlds: list[World], *watching: int) -> None:
    """Wait until so many watch at each daemon; another daemon counts as one."""
    for each, count in zip(worlds, watching, strict=True):
        await each.until(partial(_watched_by, each, count))


def _watched_by(one: World, count: int) -> bool:
    return views(one) == count


@pytest.mark.parametrize("first", [HOLDER, OTHER])
@pytest.mark.parametrize("chunked", [True, False])
async def test_one_pull_for_the_viewers_at_all_daemons(first: int, *, chunked: bool) -> None:
    show = Camera(chunked=chunked)
    async with daemons(show, count=3) as (worlds, agent):
        async with AsyncExitStack() as stack:
            eyes = [await watch(stack, worlds[first])]
            await worlds[HOLDER].until(lambda: show.asked)
            eyes += [await watch(stack, each) for each in worlds for _ in range(2)]
            await worlds[HOLDER].until(lambda: sum(map(views, worlds)) == 9)
            show.go.set()
            for eye in eyes:
                await eye.open()
                assert b"X-Camera: 7" in eye.head
                assert b"boundary=frame" in eye.head
            sent = b""
            for _ in range(5):
                frame = await show.show()
                sent += frame
                for eye in eyes:
                    await eye.until(frame)
            assert [eye.body for eye in eyes] == [sent] * 7
            late = await watch(stack, worlds[-1])
            await late.open()
            frame = await show.show()
            await late.until(frame)
            assert len(show.asked) == 1
            assert agent.streams == 1
            assert not show.ended
        await worlds[HOLDER].until(lambda: agent.streams == 0 and show.ended)
        assert show.ended == ["reset"]
        await until(worlds, 0, 0, 0)
        await worlds[HOLDER].until(lambda: not len(worlds[HOLDER].daemon.parts.relay))


async def test_the_pull_lasts_as_long_as_anybody_watches_anywhere() -> None:
    show = Camera()
    show.go.set()
    async with daemons(show) as (worlds, agent), AsyncExitStack() as there:
        async with AsyncExitStack() as here:
            await (await watch(here, worlds[HOLDER])).open()
            eye = await watch(there, worlds[OTHER])
            await eye.open()
            await until(worlds, 2, 1)
        await until(worlds, 1, 1)
        await eye.until(await show.show())
        assert not show.ended
        await there.aclose()
        await worlds[HOLDER].until(lambda: show.ended and agent.streams == 0)


async def test_a_viewer_that_reads_nothing_there_holds_nobody_up() -> None:
    show = Camera()
    show.go.set()
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        stalled, near, there = [await watch(stack, worlds[at]) for at in (OTHER, HOLDER, OTHER)]
        for eye in (stalled, near, there):
            await eye.open()
        for _ in range(60):
            frame = await show.show(200_000)
            for eye in (near, there):
                await eye.until(frame)
                eye.body = eye.body[-300_000:]
        assert metric(worlds[OTHER], "visiona_shared_units_skipped_total") > 10
        last = await show.show(200_000)
        await stalled.until(last)
        assert len(show.asked) == 1


async def test_another_answer_goes_to_the_first_and_the_others_ask_for_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tunnel.daemon.upstream.remote._REUSE_SECONDS", 1e9)
    show = Camera()
    line = f"GET /d/{DEVICE}/plain"
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        visitors = []
        for at in (OTHER, HOLDER, OTHER):
            visitors.append(await stack.enter_async_context(Visitor(worlds[at])))
            await visitors[-1].send(line)
            await worlds[HOLDER].until(lambda: len(show.asked) == 1)
        await until(worlds, 2, 2)
        show.go.set()
        for visitor in visitors:
            got = await visitor.read()
            assert (got.status, got.body) == (200, b"ok")
        assert len(show.asked) == 3
        for number in range(5):  # the path is known: streams are used again, also where another query is asked for
            await visitors[0].send(f"{line}?number={number}")
            assert (await visitors[0].read()).body == b"ok"
        assert len(show.asked) == 8
        lines = [line for line in worlds[OTHER].logged("forward") if line.get("lane") == "fast"]
        assert [line["reused"] for line in lines][-5:] == [True] * 5
        assert metric(worlds[HOLDER], "visiona_shared_pulls_total") == 0


async def test_a_daemon_that_leaves_before_the_head_leaves_the_answer_to_the_others() -> None:
    show = Camera()
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        async with AsyncExitStack() as inner:
            first = await watch(inner, worlds[OTHER])
            await worlds[HOLDER].until(lambda: show.asked)
            eye = await watch(stack, worlds[HOLDER])
            await until(worlds, 2, 1)
            first.visitor.stream.reset()
        await until(worlds, 1, 0)
        show.go.set()
        await eye.open()
        await eye.until(await show.show())
        assert len(show.asked) == 1


async def test_a_daemon_that_says_nothing_of_what_it_asked_for_keeps_nobody_waiting() -> None:
    """It got a place at the head of all, and breaks off: who came after it asks for himself."""
    show = Camera()
    show.go.set()
    async with daemons(show, count=1) as ((holder,), _), AsyncExitStack() as stack:
        line = "dXNlciBHRVQ="  # not what follows
        said = "user R0VUIC9jYW1lcmFzLzAvc3RyZWFtIEhUVFAvMS4x"  # GET /cameras/0/stream HTTP/1.1
        session = holder.daemon.parts.sessions.all()[-1].id
        status, _, raw, _ = await holder.forward(headers=[(H_TUNNEL_SESSION, session), (H_SHARE, said)])
        assert status == 101
        eye = await watch(stack, holder)
        await until([holder], 0)
        await holder.until(lambda: len(holder.daemon.parts.lane) == 1)
        assert not show.asked
        raw.reset()
        await eye.open()
        await eye.until(await show.show())
        for wrong in (line, "user ", "user !", " R0VUIC8=", "user UE9TVCAv"):  # of no use: a stream as any other
            status, _, raw, _ = await holder.forward(headers=[(H_TUNNEL_SESSION, session), (H_SHARE, wrong)])
            assert status == 101
            raw.reset()
        assert len(show.asked) == 1


async def test_another_user_there_is_not_shown_what_this_one_pulls() -> None:
    show = Camera()
    show.go.set()
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        await (await watch(stack, worlds[HOLDER])).open()
        worlds[OTHER].control.grant |= {"user_id": "another"}
        await (await watch(stack, worlds[OTHER])).open()
        assert len(show.asked) == 2


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_an_end_is_the_same_for_the_viewers_there(how: str) -> None:
    show = Camera()
    show.go.set()
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        eyes = [await watch(stack, worlds[at]) for at in (HOLDER, OTHER)]
        for eye in eyes:
            await eye.open()
        frame = await show.show()
        for eye in eyes:
            await eye.until(frame)
        if how == "reset":
            show.wires[0].stream.reset()
            assert [await eye.visitor.end() for eye in eyes] == ["reset"] * 2
        else:
            closing = b"\r\n--frame--\r\n"
            await show.wires[0].send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(closing), closing))
            for eye in eyes:
                while await eye.chunk():
                    pass
                assert eye.body == frame + closing


async def test_nobody_there_waits_long_for_an_answer_that_may_be_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.share.peer.WAIT_SECONDS", 0.2)
    show = Camera()
    async with daemons(show) as (worlds, _), AsyncExitStack() as stack:
        for at in (HOLDER, OTHER):
            await watch(stack, worlds[at], f"GET /d/{DEVICE}/plain")
            await worlds[HOLDER].until(lambda: show.asked)
        await worlds[HOLDER].until(lambda: len(show.asked) == 2)


async def test_a_camera_that_is_slow_to_show_its_first_frame_is_one_there_too() -> None:
    async def slow(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
        await go.wait()
        await wire.send(part(0))
        await wire.gone()

    go = trio.Event()
    async with daemons(slow) as (worlds, agent), AsyncExitStack() as stack:
        eyes = [await watch(stack, worlds[at]) for at in (OTHER, HOLDER)]
        for eye in eyes:
            await eye.open()
        go.set()
        for eye in eyes:
            await eye.until(part(0))
        assert agent.streams == 1


async def test_a_box_that_dies_before_the_head_is_told_there() -> None:
    async def dies(wire: Wire) -> None:
        await wire.head()
        wire.stream.reset()

    async with daemons(dies) as (worlds, _):
        for at in (OTHER, HOLDER):
            async with Visitor(worlds[at]) as visitor:
                await visitor.send(PATH)
                assert (await visitor.read()).code == "AGENT_UNREACHABLE"


async def test_a_box_that_says_it_is_at_work_is_waited_for_there_too() -> None:
    """Interim answers are the pull's; whoever waits at another daemon has to hear of them, or gives the box up."""

    async def works(wire: Wire) -> None:
        await wire.head()
        while not enough.is_set():
            await wire.send(b"HTTP/1.1 102 Processing\r\n\r\n")
            with trio.move_on_after(0.1):
                await enough.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone")
        await wire.gone()

    enough = trio.Event()
    async with daemons(works) as (worlds, _), Visitor(worlds[OTHER]) as visitor:
        lane = worlds[OTHER].daemon.parts.lane
        running = lane.running
        await visitor.send(PATH)
        await worlds[OTHER].until(
            lambda: any(isinstance(run, SharedExchange) and run._interim() > 2 for run in running)
        )
        enough.set()
        got = await visitor.read()
        assert (got.status, got.body) == (200, b"done")
