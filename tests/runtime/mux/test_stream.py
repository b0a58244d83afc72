"""`tunnel.mux.stream`: what Trio expects of a stream, kept by ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from tests.runtime.mux.mux_pipes import connected
from tunnel.mux.errors import StreamReset
from tunnel.mux.stream import Stream
from tunnel.protocol.limits import FILLING


@asynccontextmanager
async def stream_pair() -> AsyncIterator[tuple[Stream, Stream]]:
    async with connected() as (client, server):
        near = await client.open_stream(wait_ack=False)
        far = await server.accept_stream()
        yield near, far


async def test_trios_own_check_of_a_half_closeable_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with connected() as (client, server):

        async def make() -> tuple[Stream, Stream]:
            near = await client.open_stream(wait_ack=False)
            return near, await server.accept_stream()

        async def make_clogged() -> tuple[Stream, Stream]:
            near, far = await make()
            for stream in (near, far):
                with trio.move_on_after(1):
                    await stream.send_all(bytes(1024 * 1024))
                while stream.send_nowait(bytes(1024)):
                    pass
            return near, far

        await check_half_closeable_stream(make, make_clogged)


async def test_a_reset_is_never_an_end() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"part")
        near.reset()
        await wait_all_tasks_blocked()
        with suppress(StreamReset):
            assert await far.receive_some() == b"part", "it may have gone out before"
        with pytest.raises(StreamReset):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


async def test_what_was_sent_before_a_clean_close_arrives() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(bytes(300_000))
        await near.aclose()
        got = 0
        while piece := await far.receive_some():
            got += len(piece)
        assert got == 300_000
        await far.send_eof()


async def test_closing_with_unread_bytes_resets() -> None:
    async with stream_pair() as (near, far):
        await near.send_all(b"nobody reads this")
        await wait_all_tasks_blocked()
        await far.aclose()
        await wait_all_tasks_blocked()
        with pytest.raises(StreamReset):
            await near.send_all(b"x")


async def test_bytes_for_a_closed_stream_reset_it_instead_of_stalling_the_peer() -> None:
    async with stream_pair() as (near, far):
        await far.aclose()
        assert await near.receive_some() == b""
        with pytest.raises(StreamReset):
            await near.send_all(bytes(1024 * 1024))


async def test_without_waiting_nothing_is_taken_twice_or_lost() -> None:
    async with stream_pair() as (near, far):
        assert far.receive_nowait() is None
        assert near.send_nowait(b"abc") == 3
        await wait_all_tasks_blocked()
        assert far.receive_nowait(2) == b"ab"
        assert far.receive_nowait() == b"c"
        await near.send_eof()
        await wait_all_tasks_blocked()
        assert far.receive_nowait() == b""
        with pytest.raises(trio.ClosedResourceError):
            near.send_nowait(b"d")
        taken = 0
        while piece := far.send_nowait(bytes(1000)):
            taken += piece
        assert taken == 4 * FILLING


async def test_a_cancelled_receive_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with stream_pair() as (near, far):
        with trio.move_on_after(1):
            await far.receive_some()
        await near.send_all(b"later")
        assert await far.receive_some() == b"later"


async def test_reset_wakes_who_waits_and_is_idempotent(autojump_clock: trio.testing.MockClock) -> None:
    async with stream_pair() as (near, _far):

        async def waits_to_receive() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        async def waits_to_send() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.send_all(bytes(1024 * 1024))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(waits_to_receive)
            nursery.start_soon(waits_to_send)
            await wait_all_tasks_blocked()
            near.reset()
            near.reset()
        await near.aclose()


async def test_the_repr_tells_the_state() -> None:
    async with stream_pair() as (near, far):
        await wait_all_tasks_blocked()
        assert "OPEN" in repr(near)
        await near.send_eof()
        await wait_all_tasks_blocked()
        assert "LOCAL_CLOSED" in repr(near)
        assert "REMOTE_CLOSED" in repr(far)
