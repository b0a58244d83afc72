"""Time limits are of progress, never of the total (tunnel.md): what moves a little outlives each of them."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, fast_world

STEP = 10.0
"""Seconds by which the clock is set forward between two pieces: less than what a silent tunnel is given up after."""
LONG = 65 * 60.0
"""Seconds: more than the longest limit of the product, the hour of a silent WebSocket."""
PIECE, END = b"1\r\n.\r\n", b"0\r\n\r\n"


@pytest.mark.parametrize("way", ["down", "up"])
async def test_a_stream_that_moves_goes_on(mock_clock: MockClock, way: str) -> None:
    """With the product's own limits. The client's next piece, or the box's, comes after ten seconds each."""
    async with fast_world(seconds=2 * LONG) as w:
        here, there = trio.open_memory_channel[bytes](0)

        async def film(wire: Wire) -> None:
            assert await wire.head() is not None
            await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            async for piece in there:
                await wire.send(piece)

        async def take(wire: Wire) -> None:
            assert await wire.head() is not None
            while (piece := await wire.body(len(END))) != END:
                await here.send(piece + await wire.body(len(PIECE) - len(END)))
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        await box(w, film if way == "down" else take)
        (session,) = w.daemon.parts.sessions.all()
        async with Visitor(w) as visitor:

            async def pass_on(piece: bytes) -> None:
                if way == "down":
                    await here.send(piece)
                    assert await visitor.until(piece)
                else:
                    await visitor.stream.send_all(piece)
                    assert piece == END or await there.receive() == piece

            if way == "down":
                await visitor.send(f"GET /d/{DEVICE}/film")
                assert (await visitor.read_head()).status == 200
            else:
                await visitor.send(f"PUT /d/{DEVICE}/file", "Transfer-Encoding: chunked")
            for _ in range(int(LONG / STEP)):
                mock_clock.jump(STEP)
                await wait_all_tasks_blocked()  # whoever looks at the time has looked
                await pass_on(PIECE)
            await pass_on(END)
            if way == "up":
                assert (await visitor.read()).body == b"ok"
        assert w.daemon.parts.sessions.all() == [session]
