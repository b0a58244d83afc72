"""The fast lane while a box is on its way from one daemon to another: who asks for it waits, and is told the truth."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import trio

from tests.runtime.daemon.daemonworld import World, world
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, box, fast_world, ok
from tunnel.daemon.upstream.interfaces import NotOpened
from tunnel.daemon.upstream.remote import PeerUpstream
from tunnel.daemon.upstream.remote_stream import PeerRefused, Peers, PeerStream
from tunnel.net.sockets import ByteStream

AWAY = {"node_url": "", "session": "", "moving": True, "ttl": 0.0}
UNTIL = 20.0


async def asked(w: World, path: str, meanwhile: Callable[[], Any], **fields: str) -> tuple[int, str]:
    """The status and code that a caller gets; `meanwhile` runs once Django was asked about him."""
    async with Visitor(w) as visitor:
        await visitor.send(f"GET /d/{DEVICE}{path}", **fields)
        with trio.fail_after(UNTIL):
            await w.control.wait(lambda: w.control.authorizations)
            await meanwhile()
            got = await visitor.read()
    return got.status, got.code if got.status != 200 else ""


async def comes_back(w: World) -> None:
    await box(w, ok(b"x"))
    w.control.grant = {"node_url": w.daemon.node_url, "session": w.daemon.parts.sessions.all()[0].id}


async def test_a_spent_ticket_is_not_shown_again() -> None:
    async with fast_world() as w:
        w.control.grant = AWAY

        async def meanwhile() -> None:
            await w.control.wait(lambda: len(w.control.authorizations) > 1)
            await comes_back(w)

        assert await asked(w, "/x?ticket=t", meanwhile, token="") == (200, "")
        first, *more = w.control.authorizations
        assert first["kind"] == "ticket"
        assert {each["kind"] for each in more} == {"login"}


async def test_a_look_up_that_fails_is_made_again() -> None:
    async with fast_world() as w:
        w.control.grant = AWAY

        async def meanwhile() -> None:
            w.control.status = 503
            await w.control.wait(lambda: [path for path, _ in w.control.calls if path == "/internal/authorize!refused"])
            w.control.status = 200
            await comes_back(w)

        assert await asked(w, "/x", meanwhile) == (200, "")


@pytest.mark.parametrize(("status", "code"), [(401, "UNAUTHENTICATED"), (503, "TUNNEL_DISCONNECTED")])
async def test_a_word_that_ends_the_wait_is_told(status: int, code: str) -> None:
    async with fast_world() as w:
        w.control.grant = AWAY

        async def meanwhile() -> None:
            w.control.forbid = {"status": status, "code": code, "message": "no"}

        assert await asked(w, "/x", meanwhile) == (status, code)


async def test_one_that_moves_twice_is_found() -> None:
    """Both times its daemon takes no more streams before it is back."""
    async with fast_world() as w, world() as other:
        w.control.grant = AWAY | {"node_url": other.daemon.node_url, "session": "first"}

        async def meanwhile() -> None:
            for session in ("second", "third"):
                so_far = len(w.control.authorizations)
                await w.control.wait(lambda count=so_far: len(w.control.authorizations) > count)
                w.control.grant |= {"session": session}
            so_far = len(w.control.authorizations)
            await w.control.wait(lambda: len(w.control.authorizations) > so_far)
            await comes_back(w)

        assert await asked(w, "/x", meanwhile) == (200, "")


class Nodes(Peers):
    """Another daemon that opens one stream and no more: the box is about to go."""

    def __init__(self) -> None:
        super().__init__("secret")
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.theirs.settimeout(UNTIL)
        self.stream = PeerStream(ByteStream(ours), "s", frozenset({"keepalive"}), b"")
        self.opened = 0

    async def open(
        self, node_url: str, session: str, *, request_id: str, deadline: float, share: str = ""
    ) -> PeerStream:
        await trio.lowlevel.checkpoint()
        self.opened += 1
        if self.opened > 1:
            raise PeerRefused("TUNNEL_DISCONNECTED", "going away", elsewhere=True)
        return self.stream


async def test_a_daemon_that_takes_no_more_is_not_kept_waiting_by_idle_streams(
    autojump_clock: trio.testing.MockClock,
) -> None:
    nodes = Nodes()
    with nodes.theirs:
        line = PeerUpstream(nodes, "http://other", "s", open_seconds=1)
        line.give(await line.open("req-1"), reusable=True)
        assert line.take(repeatable=True) is nodes.stream
        line.give(nodes.stream, reusable=True)
        with pytest.raises(NotOpened):
            await line.open("req-2")
        assert nodes.theirs.recv(1) == b""


@pytest.mark.parametrize("idle", [True, False])
async def test_a_stream_too_old_for_another_request_is_closed(
    autojump_clock: trio.testing.MockClock, idle: bool
) -> None:
    nodes = Nodes()
    with nodes.theirs:
        line = PeerUpstream(nodes, "http://other", "s", open_seconds=1)
        stream = await line.open("req-1")
        if idle:
            line.give(stream, reusable=True)
        await trio.sleep(2.5)
        if idle:
            line.expire()
        else:
            line.give(stream, reusable=True)
        assert nodes.theirs.recv(1) == b""
