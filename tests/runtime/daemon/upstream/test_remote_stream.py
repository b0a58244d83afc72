"""A stream of a box whose tunnel ends at another daemon: bytes, every end, every refusal, and never twice round."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.runtime.daemon.daemonworld import SECRET, TOKEN, World, echo, world
from tunnel.daemon.upstream import remote_stream as remote
from tunnel.daemon.upstream.remote_stream import PeerRefused, Peers, PeerStream
from tunnel.mux.errors import StreamReset
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream, accept, listen, tune


async def opened(w: World, *, session: str = "", secret: str = SECRET, seconds: float = 5.0) -> PeerStream:
    return await Peers(secret).open(
        f"http://127.0.0.1:{w.internal}",
        session or w.daemon.parts.sessions.all()[0].id,
        request_id="req-1",
        deadline=trio.current_time() + seconds,
    )


async def refused(node_url: str, *, secret: str = SECRET, session: str = "s", seconds: float = 0.2) -> PeerRefused:
    with pytest.raises(PeerRefused) as caught:
        await Peers(secret).open(node_url, session, request_id="req-1", deadline=trio.current_time() + seconds)
    return caught.value


async def test_bytes_go_both_ways_and_half_closes_pass() -> None:
    async with world() as w:
        agent, _ = await w.agent(
            headers=[("Authorization", f"Bearer {TOKEN}"), ("X-VisionA-Agent", "a/1; features=keepalive")]
        )
        await w.serve(agent, echo)
        stream = await opened(w)
        assert stream.features == {"keepalive"}
        assert stream.acknowledged
        await stream.wait_acknowledged()
        sent, got = b"x" * 3_000_000, bytearray()

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while data := await stream.receive_some():
                got += data
        assert got == sent
        assert await stream.receive_some() == b""
        with pytest.raises(trio.ClosedResourceError):
            await stream.send_all(b"more")
        await stream.aclose()
        await w.until(lambda: not len(w.daemon.parts.relay))
        (line,) = w.logged("forward")
        assert (line["request_id"], line["outcome"]) == ("req-1", "done")


async def test_without_waiting_it_says_what_is_there() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        stream = await opened(w)
        assert stream.receive_nowait() is None
        before = stream.last_progress
        assert stream.send_nowait(b"hello") == 5
        assert await stream.receive_some(2) == b"he"
        assert stream.receive_nowait() == b"llo"
        assert stream.last_progress > before
        await stream.wait_send_all_might_not_block()
        await stream.aclose()
        for call in (stream.receive_nowait, lambda: stream.send_nowait(b"x")):
            with pytest.raises(trio.ClosedResourceError):
                call()


async def test_a_reset_of_the_agent_is_no_end() -> None:
    async with world() as w:
        agent, _ = await w.agent()

        async def break_off(stream: Stream) -> None:
            await stream.send_all(b"half an ans")
            assert await stream.receive_some() == b"go"
            stream.reset()

        await w.serve(agent, break_off)
        stream = await opened(w)
        assert await stream.receive_some() == b"half an ans"
        await stream.send_all(b"go")
        for _ in range(2):
            with pytest.raises(StreamReset):
                await stream.receive_some()
        with pytest.raises(StreamReset):
            await stream.send_all(b"more")


async def test_our_reset_reaches_the_agent_as_one() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        seen: list[type[BaseException]] = []

        async def look(stream: Stream) -> None:
            try:
                while await stream.receive_some():
                    pass
            except StreamReset as error:
                seen.append(type(error))

        await w.serve(agent, look)
        stream = await opened(w)
        await stream.send_all(b"half a requ")
        stream.reset()
        stream.reset()
        await w.until(lambda: seen)
        await stream.aclose()


async def test_a_wait_ends_when_the_stream_is_reset_here() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        stream = await opened(w)
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await stream.receive_some()

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            stream.reset()


async def test_a_session_that_the_other_node_does_not_hold_goes_no_further() -> None:
    """Whom the registry named in vain is not asked to look elsewhere: it answers, and we ask the registry again."""
    async with world(open_seconds=0.2) as w:
        with pytest.raises(PeerRefused) as caught:
            await opened(w, session="0191-of-another-node")
        assert (caught.value.code, caught.value.elsewhere) == ("TUNNEL_DISCONNECTED", True)


async def test_an_agent_that_does_not_accept_is_a_timeout() -> None:
    async with world(open_seconds=0.2) as w:
        await w.agent()  # it runs, but nobody accepts streams
        with pytest.raises(PeerRefused) as caught:
            await opened(w, seconds=0.2)
        assert (caught.value.code, caught.value.status, caught.value.elsewhere) == ("TUNNEL_TIMEOUT", 504, False)


async def test_a_wrong_secret_is_our_fault_not_the_clients() -> None:
    async with world() as w:
        error = await refused(f"http://127.0.0.1:{w.internal}", secret="another")
        assert (error.code, error.status, error.elsewhere) == ("TUNNEL_UNAVAILABLE", 503, False)


async def test_a_tunnel_without_room_is_overloaded() -> None:
    async with world(max_streams=1) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        first = await opened(w)
        with pytest.raises(PeerRefused) as caught:
            await opened(w)
        assert (caught.value.code, caught.value.retry_after) == ("OVERLOADED", 1)
        await first.aclose()


@asynccontextmanager
async def daemon_that(answers: Callable[[ByteStream], Any]) -> AsyncIterator[str]:
    listener = listen("127.0.0.1", 0)

    async def serve() -> None:
        sock, _ = await accept(listener)
        stream = ByteStream(sock)
        try:
            await answers(stream)
        finally:
            stream.close()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve)
            try:
                yield f"http://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                nursery.cancel_scope.cancel()
                listener.close()


@pytest.mark.parametrize(
    ("answer", "code", "elsewhere"),
    [
        (b"", "TUNNEL_UNAVAILABLE", True),
        (b"SSH-2.0-x\r\n\r\n", "TUNNEL_UNAVAILABLE", True),
        (b"HTTP/1.1 xx\r\n\r\n", "TUNNEL_UNAVAILABLE", True),
        (b"HTTP/1.1 101 X\r\n" + b"x" * 20_000, "TUNNEL_UNAVAILABLE", True),
        (b"HTTP/1.1 503 X\r\n\r\nnot json", "OVERLOADED", True),
        (
            b'HTTP/1.1 503 X\r\nRetry-After: 7\r\n\r\n{"error":{"code":"TUNNEL_DISCONNECTED","message":"m"}}',
            "TUNNEL_DISCONNECTED",
            True,
        ),
        (b'HTTP/1.1 503 X\r\n\r\n{"error":{"code":"SECRET_PLAN","message":"m"}}', "OVERLOADED", True),
        (b"HTTP/1.1 502 X\r\n\r\n", "AGENT_UNREACHABLE", False),
        (b"HTTP/1.1 418 X\r\n\r\n", "TUNNEL_UNAVAILABLE", False),
    ],
)
async def test_a_strange_answer_is_told_as_what_it_means(answer: bytes, code: str, elsewhere: bool) -> None:
    async def say(stream: ByteStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        stream.close()

    async with daemon_that(say) as url:
        error = await refused(url, seconds=5)
    assert (error.code, error.elsewhere) == (code, elsewhere)


async def test_bytes_behind_the_answers_head_are_the_boxs_first() -> None:
    async def say(stream: ByteStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 101 Switching Protocols\r\nX: y\r\n\r\nearly ")
        await stream.send_all(b"late")
        stream.send_eof()
        await trio.sleep_forever()

    async with daemon_that(say) as url:
        stream = await Peers(SECRET).open(url, "s", request_id="r", deadline=trio.current_time() + 5)
        got = await stream.receive_some(3)
        while data := await stream.receive_some():
            got += data
        await stream.aclose()
    assert got == b"early late"


async def test_a_daemon_that_stays_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "ANSWER_GRACE", 0.1)

    async def nothing(_stream: ByteStream) -> None:
        await trio.sleep_forever()

    async with daemon_that(nothing) as url:
        error = await refused(url, seconds=0.2)
    assert (error.code, error.elsewhere) == ("TUNNEL_UNAVAILABLE", True)


async def test_nobody_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        error = await refused(f"http://127.0.0.1:{free.getsockname()[1]}", seconds=5)
    assert (error.code, error.elsewhere, error.retry_after) == ("TUNNEL_UNAVAILABLE", True, 1)


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://", "ftp://x", "http://no-such-host.invalid:1"])
async def test_a_url_that_leads_nowhere(url: str) -> None:
    assert (await refused(url, seconds=5)).code == "TUNNEL_UNAVAILABLE"


async def test_a_write_that_fails_takes_nothing_away_from_what_the_box_said_before() -> None:
    """The kernel tells a reset once. Told to a write, what is read behind the bytes is still no clean end."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as sock:
        tune(sock)
        peer, _ = listener.accept()
        peer.sendall(b"answer")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        stream = PeerStream(ByteStream(sock), "s", frozenset(), b"")
        with pytest.raises(StreamReset):
            stream.send_nowait(b"more of an upload")
        assert await stream.receive_some() == b"answer"
        with pytest.raises(StreamReset):
            await stream.receive_some()
        stream.reset()
