"""What one agent does to the others: nothing. Crashes, wedged agents, slow readers, a plain transport."""

from __future__ import annotations

import errno
import socket
from typing import Any

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, World, dial, echo, read_all, world
from tests.runtime.websocket.test_transports import dial as dial_transport
from tests.runtime.websocket.test_transports import serving
from tunnel.daemon.http import accept as server
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.mux.transport import Transport
from tunnel.protocol.core import Role
from tunnel.protocol.session import Session


async def still_fine(w: World, device: str) -> None:
    status, _, raw, rest = await w.forward(headers=[("X-Device-Id", device)], first=b"hello")
    assert status == 101
    raw.send_eof()
    assert rest + await read_all(raw) == b"hello"


async def test_a_crash_of_one_session_ends_that_session_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(crashes=1) as w:
        agent, _ = await w.agent(TOKEN)
        other, _ = await w.agent(OTHER)
        await w.serve(agent, echo)
        await w.serve(other, echo)
        _, _, raw, _ = await w.forward(headers=[("X-Device-Id", "device-0")], first=b"x")
        session = w.daemon.parts.sessions.of_device("device-0")
        assert session is not None

        victim, whole = session.connection.session, Session.receive_data

        def bug(this: Session, *args: Any) -> Any:
            if this is victim:
                raise RuntimeError("a bug of ours")
            return whole(this, *args)

        monkeypatch.setattr(Session, "receive_data", bug)
        await raw.send_all(b"go")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(raw)
        await w.until(lambda: w.logged("disconnect"))
        line = w.logged("disconnect")[0]
        assert line["reason"] == "error"
        assert "a bug of ours" in line["text"]
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert ended[0]["reason"] == "error"
        await still_fine(w, "device-1")


async def test_an_agent_that_reads_nothing_costs_its_window_and_nobody_else() -> None:
    async with world(open_seconds=0.5) as w:
        wedged, _ = await w.agent(TOKEN, run=False)  # its socket is open, and nobody looks at it
        other, _ = await w.agent(OTHER)
        await w.serve(other, echo)
        status, _, raw, _ = await w.forward(headers=[("X-Device-Id", "device-0")])
        assert status == 504
        raw.close()
        await still_fine(w, "device-1")
        await wedged.aclose()


async def test_an_upload_that_the_agent_does_not_take_stops_at_the_window() -> None:
    async with world() as w:
        agent, _ = await w.agent(TOKEN)
        release = trio.Event()

        async def hold(stream: Stream) -> None:
            await release.wait()
            await echo(stream)

        await w.serve(agent, hold)
        _, _, raw, _ = await w.forward()
        sent = 0

        async def pour() -> None:
            nonlocal sent
            while True:
                await raw.send_all(b"z" * 65_536)
                sent += 65_536

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            forward = next(iter(w.daemon.parts.relay._forwards))
            await w.until(lambda: forward.up >= 256 * 1024)
            before = -1
            while before != forward.up:
                before = forward.up
                await trio.sleep(0.1)
            # the window, the send buffer and one read
            assert forward.up <= (256 + 128 + 128) * 1024
            nursery.cancel_scope.cancel()
        raw.reset()
        release.set()
        await w.until(lambda: w.logged("forward"))


async def test_many_streams_at_once_keep_their_bytes_apart() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)

        async def one(number: int) -> None:
            body = bytes([number]) * (number * 5_000 + 1)
            _, _, raw, rest = await w.forward()

            async def send() -> None:
                await raw.send_all(body)
                raw.send_eof()

            async with trio.open_nursery() as inner:
                inner.start_soon(send)
                assert rest + await read_all(raw) == body

        async with trio.open_nursery() as nursery:
            for number in range(60):
                nursery.start_soon(one, number)
        await w.until(lambda: not len(w.daemon.parts.relay))
        assert w.daemon.parts.sessions.all()[0].connection.streams == 0
        assert {line["outcome"] for line in w.logged("forward")} == {"done"}


@pytest.mark.parametrize("plain", [False, True])
async def test_the_plain_transport_carries_the_same_session(plain: bool) -> None:
    """trio-websocket's own path is the check of the hot one: the same exchange over either, with the same result."""
    size = 1_000_000

    async def daemon(transport: Transport) -> None:
        connection = Connection(transport, role=Role.CLIENT, accept_streams=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            stream = await connection.open_stream()

            async def send() -> None:
                await stream.send_all(b"p" * size)
                await stream.send_eof()

            nursery.start_soon(send)
            got = b""
            while data := await stream.receive_some():
                got += data
            assert got == b"p" * size
            await connection.aclose(4409, "replaced")

    async with serving(daemon, plain=plain) as port:
        transport, _ = await dial_transport(port)
        agent = Connection(transport, role=Role.SERVER, accept_streams=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await echo(await agent.accept_stream())
            while agent.end_reason is None:
                await trio.sleep(0.01)
        assert (agent.end_reason.close_code, agent.end_reason.remote) == (4409, True)


async def test_a_connection_that_was_closed_may_be_closed_again() -> None:
    async with world() as w:
        raw = await dial(w.internal)
        raw.reset()
        raw.reset()
        raw.close()
        assert raw.broken()


async def test_a_process_out_of_descriptors_accepts_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world() as w:
        whole, failures = server.accept, [errno.EMFILE, errno.ENETDOWN]

        async def accept(listener: socket.socket) -> tuple[socket.socket, str]:
            sock, address = await whole(listener)
            if failures:
                sock.close()
                raise OSError(failures.pop(0), "as if")
            return sock, address

        monkeypatch.setattr(server, "accept", accept)
        for _ in range(4):  # the accept that waits already is the true one
            stream = await dial(w.internal)
            try:
                await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: d\r\n\r\n")
                await read_all(stream)
            except trio.BrokenResourceError:
                stream.close()
        assert len(w.logged("accept_failed")) == 2
        assert (await w.http("/healthz"))[0] == 200


async def test_a_bug_in_the_background_is_logged_and_survived() -> None:
    async with world() as w:

        async def bug() -> None:
            raise RuntimeError("a bug of ours")

        w.daemon.parts.background.spawn(bug)
        await w.until(lambda: w.logged("background_crashed"))
        agent, _ = await w.agent(OTHER)
        await w.serve(agent, echo)
        await still_fine(w, "device-1")
