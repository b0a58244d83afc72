"""`tunnel.mux.connection`: the life of a session under Trio, with transports in memory and a clock that jumps."""

import hashlib
import random

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.protocol.lab import ACK, FIN, RST, SYN, Frame, decode, ping, window
from tests.runtime.mux.mux_pipes import against_raw, connected, echo_forever, transport_pair, wait_idle
from tunnel.mux.connection import Connection
from tunnel.mux.errors import GoingAway, OpenTimeout, StreamRefused, TooManyStreams
from tunnel.mux.stream import Stream
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig

# Opening


async def test_open_waits_for_the_ack() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:
        opened: list[Stream] = []

        async def opener() -> None:
            opened.append(await client.open_stream())

        nursery.start_soon(opener)
        await wait_all_tasks_blocked()
        assert not opened
        await server.accept_stream()
        await wait_all_tasks_blocked()
        assert opened[0].acknowledged


async def test_without_waiting_data_follows_the_syn_in_one_message() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        stream = await connection.open_stream(wait_ack=False)
        await stream.send_all(b"early")
        frames = decode(await peer.receive_some())
        assert [(frame.kind, frame.flags, frame.body) for frame in frames] == [(1, SYN, b""), (0, 0, b"early")]
        await connection.aclose()


async def test_an_open_that_nobody_accepts_times_out_alone(autojump_clock: MockClock) -> None:
    async with connected() as (client, server):
        begun = trio.current_time()
        with pytest.raises(OpenTimeout):
            await client.open_stream()
        assert 10 <= trio.current_time() - begun < 11.5
        with pytest.raises(OpenTimeout):
            await client.open_stream(timeout=2)
        assert client.end_reason is None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(echo_forever, server)
            async with await client.open_stream() as stream:
                await stream.send_all(b"works")
                assert await stream.receive_some() == b"works"
            await server.aclose()


async def test_unanswered_opens_do_not_end_the_session(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)

        async def chatter() -> None:
            while not peer.ended:
                await trio.sleep(1)
                await peer.send_all(window(77))  # bytes come, so it is not silent

        nursery.start_soon(chatter)
        for _ in range(5):
            began = trio.current_time()
            with pytest.raises(OpenTimeout):
                await connection.open_stream()
            assert 10 <= trio.current_time() - began <= 12
        assert connection.end_reason is None
        nursery.cancel_scope.cancel()


async def test_opens_that_were_given_up_early_say_nothing_of_the_session(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        for _ in range(5):
            with pytest.raises(OpenTimeout):
                await connection.open_stream(timeout=2)
        await trio.sleep(1)
        assert connection.end_reason is None
        assert [frame.flags for frame in decode(await peer.receive_some()) if frame.kind == 1][:2] == [SYN, RST]
        await connection.aclose()


async def test_a_refusal_is_told_from_a_timeout() -> None:
    ours, theirs = transport_pair()
    one = Connection(ours, role=Role.CLIENT, accept_streams=False)
    two = Connection(theirs, role=Role.SERVER, accept_streams=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.run)
        nursery.start_soon(two.run)
        with pytest.raises(StreamRefused):
            await one.open_stream()
        with pytest.raises(StreamRefused):
            await two.open_stream()
        assert (one.streams, two.streams) == (0, 0)
        await one.aclose()


async def test_a_cancelled_open_is_reset() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)
        with trio.CancelScope() as scope:
            nursery.start_soon(_cancel_when_blocked, scope)
            await connection.open_stream()
        await wait_all_tasks_blocked()
        frames = decode(bytes(peer.arrived))
        assert [frame.flags for frame in frames] == [SYN, RST]
        assert connection.streams == 0
        await connection.aclose()


async def _cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_too_many_streams() -> None:
    async with connected(client=SessionConfig(max_outbound_streams=2)) as (client, _server):
        for _ in range(2):
            await client.open_stream(wait_ack=False)
        with pytest.raises(TooManyStreams):
            await client.open_stream()


async def test_a_peer_that_goes_away_keeps_its_streams() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo_forever, server)
        stream = await client.open_stream()
        server.go_away()
        await wait_all_tasks_blocked()
        assert client.peer_going_away
        with pytest.raises(GoingAway):
            await client.open_stream()
        await stream.send_all(b"still here")
        assert await stream.receive_some() == b"still here"
        await stream.aclose()
        await wait_idle(client)
        await server.aclose()


# Carrying


async def exchange(client: Connection, server: Connection, size: int) -> None:
    """Both ends send `size` bytes at once, and read only beside it."""
    body = random.Random(size).randbytes(65536) * (size // 65536)
    expected = hashlib.sha256(body).digest()

    async def send(stream: Stream) -> None:
        with memoryview(body) as view:
            for pos in range(0, size, 200_000):
                await stream.send_all(view[pos : pos + 200_000])
        await stream.send_eof()

    async def receive(stream: Stream) -> None:
        digest = hashlib.sha256()
        while piece := await stream.receive_some():
            digest.update(piece)
        assert digest.digest() == expected

    near = await client.open_stream(wait_ack=False)
    far = await server.accept_stream()
    async with trio.open_nursery() as nursery:
        for stream in (near, far):
            nursery.start_soon(send, stream)
            nursery.start_soon(receive, stream)
    await near.aclose()
    await far.aclose()


async def test_case_60_mutual_stall() -> None:
    async with connected(capacity=4096) as (client, server):
        await exchange(client, server, 64 * 1024 * 1024)
        assert (client.streams, server.streams) == (0, 0)


async def test_any_cut_of_the_bytes_carries_the_same() -> None:
    async with connected(chunk=5000) as (client, server):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(exchange, client, server, 1024 * 1024)
        assert client.session.counters.glitches == server.session.counters.glitches == 0


async def test_case_61_cancel_mid_send() -> None:
    small = SessionConfig(send_buffer=1024, max_batch=512)
    async with connected(client=small, capacity=600) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo_forever, server)
        cancelled = 0
        for turns in range(1000):
            stream = await client.open_stream(wait_ack=False)
            async with trio.open_nursery() as sending:
                sending.start_soon(_cancel_after, turns % 40, sending.cancel_scope)
                await stream.send_all(bytes(20_000))
            cancelled += sending.cancel_scope.cancelled_caught
            stream.reset()
        assert cancelled > 900
        async with await client.open_stream() as stream:
            await stream.send_all(b"framing intact")
            assert await stream.receive_some() == b"framing intact"
        assert client.end_reason is None
        assert client.session.counters.glitches == server.session.counters.glitches == 0
        await server.aclose()


async def test_case_41_never_fin_twice_whatever_is_cancelled() -> None:
    async with trio.open_nursery() as nursery:
        connection, peer = await against_raw(nursery)

        async def close_thrice(stream: Stream) -> None:
            await stream.send_all(b"all")
            await stream.send_eof()
            await stream.send_eof()
            await stream.aclose()

        for turns in range(60):
            stream = await connection.open_stream(wait_ack=False)
            async with trio.open_nursery() as closing:
                closing.start_soon(_cancel_after, turns % 6, closing.cancel_scope)
                closing.start_soon(close_thrice, stream)
            await stream.aclose()
            await stream.aclose()
        await peer.send_all(ping(7))
        frames: list[Frame] = []
        while Frame(2, ACK, 0, 7) not in frames:
            frames += decode(await peer.receive_some())
        ends = [frame.stream_id for frame in frames if frame.flags == FIN]
        assert sorted(ends) == list(range(1, 121, 2))
        assert not [frame for frame in frames if frame.flags == RST]
        await connection.aclose()


async def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_slow_reader_stalls_its_own_stream_only() -> None:
    async with connected() as (client, server), trio.open_nursery() as nursery:
        slow = await client.open_stream(wait_ack=False)
        await server.accept_stream()  # and never reads

        async def flood() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await slow.send_all(bytes(10 * 1024 * 1024))

        nursery.start_soon(flood)
        await wait_all_tasks_blocked()
        await exchange(client, server, 2 * 1024 * 1024)
        assert server.statistics().buffered == 262_144
        assert client.statistics().window_stalls >= 1
        slow.reset()


async def test_a_thousand_streams_at_once() -> None:
    async with connected(chunk=20_000) as (client, server), trio.open_nursery() as nursery:
        nursery.start_soon(echo_forever, server)

        async def ask(number: int) -> None:
            async with await client.open_stream() as stream:
                await stream.send_all(b"%d" % number * 50)
                await stream.send_eof()
                got = b""
                while piece := await stream.receive_some():
                    got += piece
                assert got == b"%d" % number * 50

        async with trio.open_nursery() as askers:
            for number in range(1000):
                askers.start_soon(ask, number)
        await wait_idle(client)
        assert client.session.streams_unacked == 0
        assert client.session.counters.glitches == 0
        await server.aclose()
