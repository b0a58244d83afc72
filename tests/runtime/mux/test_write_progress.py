"""A writer that waits: a slow line gets on and lives, one that takes nothing is dead after the limit."""

from __future__ import annotations

import socket
import ssl
import time
from pathlib import Path

import pytest
import trio

from tests.tls import Authority, make_authority
from tunnel.mux.connection import Connection
from tunnel.mux.transport import Transport
from tunnel.mux.write_progress import WriteProgress
from tunnel.net.sockets import acknowledged, tune, unsent
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind
from tunnel.protocol.limits import SessionConfig
from tunnel.websocket.codec import WebSocketCodec
from tunnel.websocket.transports import SocketTransport, StreamTransport


class Line:
    """What of the message under way is left, as told one after the other."""

    def __init__(self, *left: int | None) -> None:
        self.left = list(left)

    def unsent(self) -> int | None:
        return self.left.pop(0)


def looked_at(*left: int | None) -> list[float]:
    """Told each second, from 1 s after the write began at 100 s: how long it is stuck by then."""
    writing, line = WriteProgress(), Line(*left)
    writing.since = 100.0
    return [writing.stuck(101.0 + number, line) for number in range(len(left))]


def test_who_gets_on_is_never_stuck_for_long() -> None:
    assert looked_at(900, 800, 700, 650) == [1.0, 0.0, 0.0, 0.0]


def test_who_does_not_is() -> None:
    assert looked_at(900, 900, 900, 900) == [1.0, 2.0, 3.0, 4.0]


def test_time_is_counted_from_the_last_progress() -> None:
    assert looked_at(900, 900, 500, 500, 500) == [1.0, 2.0, 0.0, 1.0, 2.0]


def test_where_nobody_can_tell_the_whole_write_counts() -> None:
    assert looked_at(None, None, None) == [1.0, 2.0, 3.0]


def test_nothing_is_asked_while_nothing_is_written() -> None:
    assert WriteProgress().stuck(100.0, Line()) == 0.0


def test_what_a_socket_still_holds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            near.setblocking(False)
            assert unsent(near) == 0
            near.send(bytes(10))
            assert unsent(near) in (0, 10)  # until it is acknowledged
    assert unsent(near) is None


def test_what_a_peer_has_acknowledged() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as near:
        far, _ = server.accept()
        with far:
            before = acknowledged(near)
            assert before is not None
            near.send(bytes(1000))
            assert len(far.recv(1000)) == 1000
            deadline = time.monotonic() + 30
            while acknowledged(near) != before + 1000 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert acknowledged(near) == before + 1000
    assert acknowledged(near) is None
    left, right = socket.socketpair()
    with left, right:
        assert acknowledged(left) is None


async def encrypted(near: socket.socket, far: socket.socket, authority: Authority) -> StreamTransport:
    """The agent's side of wss. What `far` reads from then on it need not understand."""
    trusting = ssl.create_default_context(cafile=authority.file)
    streams = [trio.SocketStream(trio.socket.from_stdlib_socket(sock)) for sock in (near, far.dup())]
    ours = trio.SSLStream(streams[0], trusting, server_hostname="127.0.0.1")
    theirs = trio.SSLStream(streams[1], authority.context, server_side=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.do_handshake)
        nursery.start_soon(theirs.do_handshake)
    await trio.aclose_forcefully(streams[1])
    return StreamTransport(ours, WebSocketCodec(client=True))


async def narrow_line(
    nursery: trio.Nursery, limit: float, authority: Authority | None = None
) -> tuple[Connection, socket.socket]:
    """A connection that gives its peer `limit` seconds, and the peer's end, whose kernel takes little; by TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.socket()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        far.connect(server.getsockname())
        near, _ = server.accept()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    tune(near)
    far.setblocking(False)
    config = SessionConfig(write_timeout=limit)
    transport: Transport = SocketTransport(near, WebSocketCodec(client=False))
    if authority is not None:
        transport = await encrypted(near, far, authority)
    connection = Connection(transport, role=Role.CLIENT, config=config, accept_streams=False, name="narrow")
    await nursery.start(connection.run)
    return connection, far


async def fill(connection: Connection) -> None:
    """Have more to say than the line takes."""
    stream = await connection.open_stream(wait_ack=False)
    while stream.send_nowait(bytes(64 * 1024)):
        await trio.lowlevel.checkpoint()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by_tls", [False, True])
async def test_a_slow_line_lives_though_a_message_takes_longer_than_the_limit(by_tls: bool, tmp_path: Path) -> None:
    """6 s of a line that takes a little four times a second, with a limit of 3 s for each progress."""
    async with trio.open_nursery() as nursery:
        connection, far = await narrow_line(nursery, 3.0, make_authority(tmp_path) if by_tls else None)
        with far:
            await fill(connection)
            for _ in range(24):
                await trio.sleep(0.25)
                with trio.move_on_after(0.2):
                    await trio.lowlevel.wait_readable(far)
                    far.recv(2400)
            assert connection.end_reason is None
            assert connection._writing.since is not None, "the line was wider than that"
            nursery.cancel_scope.cancel()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("by_tls", [False, True])
async def test_a_line_that_takes_nothing_is_dead(by_tls: bool, tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        connection, far = await narrow_line(nursery, 2.0, make_authority(tmp_path) if by_tls else None)
        with far:
            await fill(connection)
            with trio.fail_after(60):
                while connection.end_reason is None:
                    await trio.sleep(0.1)
        assert connection.end_reason.kind is EndKind.LIVENESS
        assert "no progress in writing" in connection.end_reason.text
