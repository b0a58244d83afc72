"""Small requests beside bulk, over a link of fixed speed and delay under a virtual clock."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from tests.runtime.mux.mux_pipes import PipeTransport, transport_pair
from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig

LINK = 16 << 20  # bytes a second, each way
DELAY = 0.005


class SlowLink:
    """A transport in front of a pipe, of a speed and a delay.

    `queue` takes all that is written at once and sends it in that order: so does hashicorp's agent, where each stream
    writes as much as its window allows. Without it little waits below `send_all`.
    """

    def __init__(self, pipe: PipeTransport, *, queue: bool) -> None:
        self._pipe = pipe
        self._queue = queue
        self._free_at = 0.0  # when all that was written has left
        self._into, self._outof = trio.open_memory_channel[tuple[float, bytes]](4096)

    @property
    def close_code(self) -> int | None:
        return self._pipe.close_code

    @property
    def close_reason(self) -> str:
        return self._pipe.close_reason

    async def carry(self) -> None:
        async for due, data in self._outof:
            await trio.sleep_until(due)
            with suppress(trio.BrokenResourceError):
                await self._pipe.send_all(data)

    async def receive_some(self) -> bytes:
        return await self._pipe.receive_some()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._free_at = max(self._free_at, trio.current_time()) + len(data) / LINK
        if not self._queue:
            await trio.sleep_until(self._free_at)
        await self._into.send((self._free_at + DELAY, bytes(data)))

    def try_send(self, data: bytes | bytearray | memoryview) -> bool:
        return False

    def unsent(self) -> int | None:
        return None

    @property
    def bytes_in(self) -> int:
        return self._pipe.bytes_in

    def kernel_socket(self) -> None:
        return None

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        await self._pipe.aclose(code, reason)


@asynccontextmanager
async def over_a_link(config: SessionConfig) -> AsyncIterator[tuple[Connection, Connection]]:
    left, right = transport_pair(capacity=1 << 20)
    near, far = SlowLink(left, queue=False), SlowLink(right, queue=True)
    daemon = Connection(near, role=Role.CLIENT, config=config, accept_streams=False, name="daemon")
    agent = Connection(far, role=Role.SERVER, config=SessionConfig.for_agent(), accept_streams=True, name="agent")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.carry)
        nursery.start_soon(far.carry)
        await nursery.start(daemon.run)
        await nursery.start(agent.run)
        yield daemon, agent
        await daemon.aclose()
        await agent.aclose()
        nursery.cancel_scope.cancel()


async def serve(agent: Connection, bulk: bytes = bytes(32 * 1024)) -> None:
    """`v`: endless bytes; `u`: takes all; anything else is echoed."""

    async def one(stream: Stream) -> None:
        async with stream:
            with suppress(TunnelError):
                asked = await stream.receive_some()
                while asked[:1] == b"v":
                    await stream.send_all(bulk)
                while asked:
                    if asked[:1] != b"u":
                        await stream.send_all(asked)
                    asked = await stream.receive_some()

    with suppress(trio.EndOfChannel):
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(one, await agent.accept_stream())


async def drink(stream: Stream, got: list[int], n: int) -> None:
    with suppress(TunnelError):
        while data := await stream.receive_some():
            got[n] += len(data)


async def pour(stream: Stream, got: list[int], n: int) -> None:
    with suppress(TunnelError):
        while True:
            await stream.send_all(b"u" * 32768)
            got[n] += 32768


async def ask(daemon: Connection, times: int) -> list[float]:
    """Round trips of small requests, one stream each, sorted."""
    took = []
    for _ in range(times):
        began = trio.current_time()
        stream = await daemon.open_stream(wait_ack=False)
        await stream.send_all(b"scan")
        assert await stream.receive_some() == b"scan"
        await stream.aclose()
        took.append(trio.current_time() - began)
        await trio.sleep(0.05)
    return sorted(took)


async def measure(kind: str, config: SessionConfig) -> tuple[float, float, list[int]]:
    """p99 alone, p99 beside 8 bulk streams, and what these moved meanwhile."""
    got = [0] * 8
    async with over_a_link(config) as (daemon, agent), trio.open_nursery() as nursery:
        nursery.start_soon(serve, agent)
        alone = await ask(daemon, 100)
        for n in range(8):
            stream = await daemon.open_stream()
            if kind == "down":
                await stream.send_all(b"v")
                nursery.start_soon(drink, stream, got, n)
            else:
                nursery.start_soon(pour, stream, got, n)
        await trio.sleep(3)
        before = list(got)
        began = trio.current_time()
        beside = await ask(daemon, 100)
        rates = [int((now - then) / (trio.current_time() - began)) for now, then in zip(got, before, strict=True)]
        nursery.cancel_scope.cancel()
    return alone[98], beside[98], rates


@pytest.mark.parametrize("way", ["down", "up"])
async def test_small_requests_beside_eight_bulk_streams_stay_quick(way: str, autojump_clock: MockClock) -> None:
    alone, beside, rates = await measure(way, SessionConfig())
    assert beside <= 3 * alone
    assert sum(rates) >= 0.9 * LINK  # and the link is full all the while
    assert min(rates) >= 0.5 * max(rates)


@pytest.mark.nightly
async def test_without_smaller_credit_they_wait_behind_whole_windows(autojump_clock: MockClock) -> None:
    alone, beside, _ = await measure("down", replace(SessionConfig(), bulk_window=0))
    assert beside > 10 * alone
