"""TCP keepalive at both ends of a tunnel: a machine that vanished is noticed even where nobody sends."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest
import trio

from tunnel.agent import dial
from tunnel.agent.addresses import Endpoint
from tunnel.net import sockets

GIVEN_UP_AFTER = 45
"""Seconds of silence, at the daemon's end; the agent promises to notice within 40 (tunnel.md, "The agent")."""


def patience(sock: socket.socket | trio.socket.SocketType) -> int:
    """Seconds after which the kernel gives up a peer that says nothing; 0: never."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return 0
    idle, interval, count = (
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    )
    return idle + interval * count


pytestmark = pytest.mark.skipif(not hasattr(socket, "TCP_KEEPIDLE"), reason="this system names the options otherwise")


async def test_the_daemon_keeps_what_it_accepts_alive() -> None:
    with closing(sockets.listen("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as far:
        with trio.fail_after(30):
            near, _ = await sockets.accept(listener)
        with near:
            assert 0 < patience(near) <= GIVEN_UP_AFTER
        assert patience(far) == 0  # nobody has it by itself


async def test_the_agent_keeps_its_tunnel_alive() -> None:
    with closing(sockets.listen("127.0.0.1", 0)) as listener:
        tunnel = await dial.dial(Endpoint("127.0.0.1", listener.getsockname()[1], "/", tls=False), None, None)
        async with tunnel:
            assert isinstance(tunnel, trio.SocketStream)
            assert 0 < patience(tunnel.socket) <= 40
