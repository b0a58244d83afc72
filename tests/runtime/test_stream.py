"""`tunnel.runtime.stream`: what Trio expects of a stream, kept by ours."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import check_half_closeable_stream

from tests.runtime.mux_pipes import connected
from tunnel.runtime.connection import Stream, StreamReset


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
        with pytest.raises(StreamReset):
            await far.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()
