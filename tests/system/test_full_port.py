"""A daemon that may open few files, and more idle connections than that: users and agents get in all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, ok
from tests.system.test_many_daemons_workers import Parent, workers

pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(120)]

FILES = 256
CROWD = 300


@asynccontextmanager
async def small(folder: Path) -> AsyncIterator[tuple[Parent, trio.Nursery]]:
    """A daemon with a box, whose strangers (no credential) are refused."""
    async with workers(folder, 1, [], descriptors=FILES) as daemon, trio.open_nursery() as nursery:
        daemon.control.extra[f"vAs_{7:032x}"] = {"device_id": DEVICE}
        daemon.control.grant = {"epoch": 1}
        daemon.control.forbid_tokens = {"": {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}}
        agent = await daemon.agent(7)
        nursery.start_soon(agent.run)

        async def serve() -> None:
            while True:
                nursery.start_soon(ok(b"hello"), Wire(await agent.accept_stream()))

        nursery.start_soon(serve)
        await daemon.control.wait(lambda: daemon.control.events)
        yield daemon, nursery
        nursery.cancel_scope.cancel()


async def asks(daemon: Parent) -> bool:
    """Whether a user gets an answer on a new connection."""
    async with Visitor(daemon) as visitor:
        try:
            with trio.fail_after(20):
                return (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
        except (AssertionError, trio.BrokenResourceError):
            return False


@pytest.mark.parametrize("kind", ["silent", "refused", "of a user"])
async def test_idle_connections_shut_nobody_out(tmp_path: Path, kind: str) -> None:
    """Of strangers who say nothing, who were refused, and of a user who keeps more than there is room for."""
    async with small(tmp_path) as (daemon, nursery), AsyncExitStack() as stack:
        working = await stack.enter_async_context(Visitor(daemon))
        assert (await working.ask(f"GET /d/{DEVICE}/x")).status == 200 if kind == "of a user" else True
        for _ in range(CROWD):
            visitor = await stack.enter_async_context(Visitor(daemon))
            if kind != "silent":
                token = {} if kind == "of a user" else {"token": ""}
                got = await visitor.ask(f"GET /d/{DEVICE}/x", **token)
                assert got.status == (200 if kind == "of a user" else 401)
        if kind == "silent":
            await trio.sleep(1.2)  # what has just come is no idler yet
        assert await asks(daemon)
        agent = await daemon.agent(8)
        nursery.start_soon(agent.run)
        await daemon.control.wait(lambda: len(daemon.control.events) >= 2)
        assert await asks(daemon)
        assert await daemon.is_ready(0)
    assert not daemon.lines("accept_failed"), "there were descriptors left"
