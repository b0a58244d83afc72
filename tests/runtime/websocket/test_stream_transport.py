"""The WebSocket on a stream that cannot be written without waiting (TLS): its two tasks beside each other."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnel.mux.connection import Connection
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import StreamTransport


class Slow:
    """A transport in memory, as the agent has it, whose writes wait until they are let through, one by one."""

    def __init__(self) -> None:
        self.near, self.far = trio.testing.memory_stream_pair()
        self.gate = trio.Semaphore(0)
        self.writing = 0
        deliver = self.near.send_stream.send_all_hook
        assert deliver is not None
        self._deliver = deliver
        self.near.send_stream.send_all_hook = self._wait
        self.transport = StreamTransport(self.near, WebSocketCodec(client=True))

    async def _wait(self) -> None:
        self.writing += 1
        await self.gate.acquire()
        await self._deliver()

    def let_through(self) -> None:
        self.gate.release()


def close_frame(code: int) -> bytes:
    return bytes([0x88, 2]) + code.to_bytes(2)


@pytest.mark.parametrize("code", [4401, 4409, 1012])
async def test_a_session_that_has_something_to_say_obeys_the_close_that_is_being_answered(code: int) -> None:
    slow = Slow()
    connection = Connection(
        slow.transport, role=Role.SERVER, config=SessionConfig.for_agent(), accept_streams=True, name="agent"
    )
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            await slow.far.send_all(close_frame(code))
            await trio.testing.wait_all_tasks_blocked()
            assert slow.writing == 1, "the answer to the close is under way"
            connection.go_away()
            await trio.testing.wait_all_tasks_blocked()
            assert slow.writing == 1
            slow.let_through()
    assert connection.end_reason is not None
    assert (connection.end_reason.close_code, connection.end_reason.remote) == (code, True)


async def test_a_message_waits_for_the_answer_to_a_ping() -> None:
    slow = Slow()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow.transport.receive_some)
            await slow.far.send_all(b"\x89\x02hi")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(slow.transport.send_all, b"message")
            await trio.testing.wait_all_tasks_blocked()
            assert slow.writing == 1
            slow.let_through()
            slow.let_through()
            await trio.testing.wait_all_tasks_blocked()
            peer = WebSocketCodec(client=False)
            assert [bytes(each) for each in peer.receive(await slow.far.receive_some())] == [b"message"]
            nursery.cancel_scope.cancel()


async def test_neither_a_message_nor_the_goodbye_waits_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    """Both wait for the same answer, which never goes out."""
    slow = Slow()
    told: list[str] = []

    async def send() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await slow.transport.send_all(b"message")
        told.append("sender")

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await slow.transport.receive_some()
        told.append("reader")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await slow.far.send_all(b"\x89\x02hi")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await slow.transport.aclose(1001)
        assert trio.current_time() - began <= 1.001
        await trio.sleep(100)
        assert set(told) == {"sender", "reader"}
        nursery.cancel_scope.cancel()


async def test_two_messages_at_once_are_one_too_many() -> None:
    slow = Slow()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.transport.send_all, b"message")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await slow.transport.send_all(b"another")
        nursery.cancel_scope.cancel()
