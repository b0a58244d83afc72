"""A request that comes alone is written where it is handed over, without the turn of the tunnel's writer (`hurry`)."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.runtime.mux.mux_pipes import PipeTransport, connected
from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream
from tunnel.net.poller import AVAILABLE, Poller

WORD = b"GET / HTTP/1.1\r\n\r\n"


class Willing(PipeTransport):
    """A pipe that takes `takes` messages at once; of one more it has a part, and the rest comes by `send_all`."""

    takes = 0
    broken_at_once = False
    begun = 0

    def try_send(self, data: bytes | bytearray | memoryview) -> bool:
        if self.broken_at_once:
            self.broken = True
            raise trio.BrokenResourceError("pipe broke")
        if self.takes:
            self.takes -= 1
            self.sent += data
            self.peer.arrived += data
            self.peer.changed.unpark_all()
            return True
        self.begun += 1
        return False


def willing(connection: Connection, takes: int) -> Willing:
    transport = connection._transport
    assert isinstance(transport, PipeTransport)
    transport.__class__ = Willing
    assert isinstance(transport, Willing)
    transport.takes = takes
    return transport


async def opened(client: Connection, server: Connection) -> tuple[Stream, Stream]:
    """A stream that has been used, while nothing is left to say."""
    stream = await client.open_stream(wait_ack=False)
    far = await server.accept_stream()
    await stream.send_all(b"x")
    assert await far.receive_some() == b"x"
    await trio.testing.wait_all_tasks_blocked()
    return stream, far


async def test_a_word_that_comes_alone_is_written_where_it_is_handed_over() -> None:
    async with connected() as (client, server):
        stream, far = await opened(client, server)
        transport = willing(client, takes=1)
        before = len(transport.sent)
        client.hurry()
        assert stream.send_nowait(WORD) == len(WORD)
        assert bytes(transport.sent[before:]).endswith(WORD)
        assert await far.receive_some() == WORD


async def test_without_it_the_writer_has_its_turn() -> None:
    async with connected() as (client, server):
        stream, far = await opened(client, server)
        transport = willing(client, takes=9)
        before = len(transport.sent)
        stream.send_nowait(WORD)
        assert len(transport.sent) == before
        assert await far.receive_some() == WORD
        assert transport.takes == 9


async def test_it_is_for_one_word_alone() -> None:
    async with connected() as (client, server):
        stream, far = await opened(client, server)
        transport = willing(client, takes=9)
        client.hurry()
        stream.send_nowait(WORD)
        await trio.testing.wait_all_tasks_blocked()
        before = len(transport.sent)
        stream.send_nowait(WORD)
        assert len(transport.sent) == before
        got = b""
        while len(got) < 2 * len(WORD):
            got += await far.receive_some()
        assert got == WORD * 2


async def test_what_the_socket_does_not_take_is_written_by_the_writer_once_and_in_order() -> None:
    async with connected() as (client, server):
        stream, far = await opened(client, server)
        transport = willing(client, takes=0)
        client.hurry()
        stream.send_nowait(b"one ")
        client.hurry()  # the writer is at it: nothing may overtake
        stream.send_nowait(b"two")
        assert transport.begun == 1
        got = b""
        while len(got) < 7:
            got += await far.receive_some()
        assert got == b"one two"


async def test_nothing_is_no_message() -> None:
    """A stream that was opened and reset before its turn came is still on the list, with nothing to say."""
    async with connected() as (client, server):
        await opened(client, server)
        transport = willing(client, takes=9)
        client.session.reset(client.session.open(trio.current_time()))
        assert client.session.wants_to_send
        client.hurry()
        client.kick()
        await trio.testing.wait_all_tasks_blocked()
        assert transport.takes == 9
        assert not client.session.wants_to_send


async def test_a_long_body_goes_out_whole() -> None:
    body = bytes(100_000)
    async with connected() as (client, server):
        stream, far = await opened(client, server)
        willing(client, takes=1)
        client.hurry()
        sent = stream.send_nowait(body)
        got = 0
        while got < sent:
            got += len(await far.receive_some())
        assert got == sent


async def test_a_connection_that_is_gone_ends_the_session() -> None:
    async with connected() as (client, server):
        stream, _far = await opened(client, server)
        willing(client, takes=0).broken_at_once = True
        client.hurry()
        assert stream.send_nowait(WORD) == len(WORD)
        told: list[str] = []
        stream.listener = lambda: told.append("something came or ended")
        with pytest.raises(TunnelError):
            await stream.receive_some()
        assert client.end_reason is not None
        assert told, "whoever listens from then on hears of the end"


async def test_a_hurry_that_nothing_followed_delays_no_end(autojump_clock: trio.testing.MockClock) -> None:
    """What was to be sent met a closed stream, say; then the connection goes, and the writer has to hear of it."""
    async with connected() as (client, server):
        await opened(client, server)
        transport = willing(client, takes=9)
        client.hurry()
        began = trio.current_time()
        transport.break_()
        await client._finished.wait()
        assert trio.current_time() - began < 0.5 * client._config.flush_timeout


@pytest.mark.skipif(not AVAILABLE, reason="epoll is Linux's")
async def test_the_poller_tells_who_came_alone() -> None:
    poller = Poller()
    pairs = [trio.socket.socketpair() for _ in range(2)]
    alone: list[bool] = []

    def call(number: int) -> None:
        poller.remove(pairs[number][0].fileno())
        alone.append(poller.alone)

    for number, (near, _) in enumerate(pairs):
        poller.add(near.fileno(), lambda number=number: call(number))
    async with trio.open_nursery() as nursery:
        await pairs[0][1].send(b"x")
        await pairs[1][1].send(b"x")
        nursery.start_soon(poller.run)
        await trio.testing.wait_all_tasks_blocked()
        poller.add(pairs[0][0].fileno(), lambda: call(0))
        await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(30):
            while len(alone) < 3:
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert alone == [False, False, True]
    for near, far in pairs:
        near.close()
        far.close()
