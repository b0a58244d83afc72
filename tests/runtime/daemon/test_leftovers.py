"""No request is refused for streams that only we still hold: kept for the next request, or closed here and not yet by
the box. The limit is that of streams in use."""

from __future__ import annotations

import trio

from tests.runtime.daemon.daemonworld import World
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world
from tunnel.mux.connection import Connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
STREAMS = 4


async def lingers(wire: Wire) -> None:
    """A box that answers and never ends a stream, whatever its other end does."""
    while await wire.head() is not None:
        await wire.send(OK)
    await trio.sleep_forever()


def session_of(w: World) -> Connection:
    (session,) = w.daemon.parts.sessions.all()
    return session.connection


async def test_posts_to_a_silent_agent_are_not_refused_for_the_streams_kept() -> None:
    """A POST may not be repeated, so it takes a new stream; each is kept for a request that may, and none comes."""
    async with fast_world(max_streams=STREAMS) as w:
        await box(w, lingers, features="")
        async with Visitor(w) as visitor:
            for _ in range(5 * STREAMS):
                assert (await visitor.ask(f"POST /d/{DEVICE}/x", "Content-Length: 0")).status == 200
        assert session_of(w).streams <= STREAMS
        assert [line["outcome"] for line in w.logged("forward")] == ["ok"] * (5 * STREAMS)


async def test_nor_for_streams_that_the_box_has_not_ended_yet() -> None:
    """None is kept: the answers say so. Ours are closed; the box takes its time."""

    async def closing(wire: Wire) -> None:
        await wire.head()
        await wire.send(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        await trio.sleep_forever()

    async with fast_world(max_streams=STREAMS) as w:
        await box(w, closing)
        async with Visitor(w) as visitor:
            for _ in range(5 * STREAMS):
                assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
        assert session_of(w).streams <= STREAMS


async def test_nor_on_the_other_lane() -> None:
    """What the API asks for takes the places of the fast lane's idle streams, and not of those in use."""
    async with fast_world(max_streams=STREAMS) as w:
        await box(w, lingers, features="")
        async with Visitor(w) as visitor:
            for _ in range(STREAMS):
                assert (await visitor.ask(f"POST /d/{DEVICE}/x", "Content-Length: 0")).status == 200
        assert session_of(w).streams == STREAMS
        held = [await w.forward() for _ in range(STREAMS)]
        assert [status for status, *_ in held] == [101] * STREAMS
        assert (await w.forward())[0] == 503
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (503, "OVERLOADED")
        for _, _, raw, _ in held:
            raw.close()


async def test_streams_in_use_are_never_given_up() -> None:
    async with fast_world(max_streams=2) as w:
        hold = trio.Event()

        async def slow(wire: Wire) -> None:
            while (head := await wire.head()) is not None:
                if b"/slow" in head:
                    await hold.wait()
                await wire.send(OK)
            await trio.sleep_forever()

        await box(w, slow, features="")
        async with Visitor(w) as one, Visitor(w) as two:
            await one.send(f"POST /d/{DEVICE}/slow", "Content-Length: 0")
            await w.until(lambda: session_of(w).streams == 1)
            for _ in range(6):
                assert (await two.ask(f"POST /d/{DEVICE}/x", "Content-Length: 0")).status == 200
            await two.send(f"POST /d/{DEVICE}/slow", "Content-Length: 0")
            async with Visitor(w) as third:
                await w.until(lambda: len(w.daemon.parts.lane or ()) == 2)
                got = await third.ask(f"POST /d/{DEVICE}/x", "Content-Length: 0")
                assert (got.status, got.code) == (503, "OVERLOADED")
            hold.set()
            assert ((await one.read()).status, (await two.read()).status) == (200, 200)
