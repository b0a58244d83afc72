"""A request for a session that Django has told before its handshake is over waits for it, and no longer than that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, World, echo, world
from tunnel.daemon import internal
from tunnel.daemon.lane.authorizer import Grant
from tunnel.http import ProxyError
from tunnel.websocket.handshake import HandshakeRefused

UNAUTHENTICATED = {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}


class Knock:
    """An agent of which Django has been asked and about which it has not answered."""

    def __init__(self, w: World) -> None:
        self.w = w
        self.session = ""
        self.over = trio.Event()
        self.hold = w.control.hold = trio.Event()

    async def agent(self) -> None:
        try:
            agent, _ = await self.w.agent()
            await self.w.serve(agent, echo)
        except HandshakeRefused:
            pass
        self.over.set()

    async def answered(self) -> None:
        """Django answers, and the handshake goes on to its end."""
        self.hold.set()
        await self.over.wait()


async def knock(w: World) -> Knock:
    coming = Knock(w)
    w.nursery.start_soon(coming.agent)
    asked = await w.control.wait(lambda: w.control.authentications[-1:])
    coming.session = asked[0]["credentials"][0]["session"]
    return coming


@pytest.mark.parametrize("by", ["X-Tunnel-Session", "X-Device-Id"])
async def test_it_waits_until_the_session_is_in(by: str) -> None:
    async with world() as w:
        coming = await knock(w)
        answers: list[tuple[int, dict[str, str], Any, bytes]] = []

        async def ask() -> None:
            answers.append(await w.forward(headers=[(by, coming.session if by == "X-Tunnel-Session" else "device-0")]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.05)  # time enough for the refusal that there must not be
            assert answers == []
            await coming.answered()
        status, fields, raw, rest = answers[0]
        assert (status, fields["x-tunnel-session"]) == (101, coming.session)
        await raw.send_all(b"hello")
        assert rest + await raw.receive_some() == b"hello"


@pytest.mark.parametrize("by", ["X-Tunnel-Session", "X-Device-Id"])
async def test_a_handshake_that_fails_is_no_such_session(by: str) -> None:
    async with world() as w:
        w.control.refuse[TOKEN] = UNAUTHENTICATED
        coming = await knock(w)
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                name = coming.session if by == "X-Tunnel-Session" else "device-0"
                status, _, raw, _ = await w.forward(headers=[(by, name)])
                raw.close()
                assert status == 404
                assert coming.hold.is_set(), "it was answered before the handshake was over"

            nursery.start_soon(ask)
            await trio.sleep(0.05)
            await coming.answered()


async def test_the_wait_is_bounded_by_the_open_timeout() -> None:
    async with world(open_seconds=0.1) as w:
        coming = await knock(w)
        status, _, raw, _ = await w.forward(headers=[("X-Tunnel-Session", coming.session)])
        assert status == 504
        raw.close()
        await coming.answered()


async def test_a_session_is_closed_as_soon_as_it_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal, "_ARRIVAL_SECONDS", 15)  # nothing is closed too late on a busy machine
    async with world() as w:
        coming = await knock(w)
        closed: list[int] = []

        async def close() -> None:
            closed.append((await w.http(f"/internal/session/{coming.session}?code=4401", method="DELETE"))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(close)
            await trio.sleep(0.05)  # time enough for the 404 that there must not be
            assert closed == []
            await coming.answered()
        assert closed == [200]
        await w.until(lambda: not len(w.daemon.parts.sessions))


async def test_a_handshake_is_not_waited_for_longer_than_django_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internal, "_ARRIVAL_SECONDS", 0.01)
    async with world() as w:
        coming = await knock(w)
        assert (await w.http(f"/internal/session/{coming.session}?code=4401", method="DELETE"))[0] == 404
        await coming.answered()
        assert len(w.daemon.parts.sessions) == 1


async def test_another_session_does_not_wait() -> None:
    async with world() as w:
        coming = await knock(w)
        status, _, raw, _ = await w.forward(headers=[("X-Tunnel-Session", "another")])
        assert status == 404
        raw.close()
        await coming.answered()


async def test_a_device_that_is_in_does_not_wait_for_another_that_comes() -> None:
    async with world() as w:
        agent, _ = await w.agent(OTHER)
        await w.serve(agent, echo)
        w.control.calls.clear()
        coming = await knock(w)
        status, _, raw, _ = await w.forward(headers=[("X-Device-Id", "device-1")])
        assert status == 101
        raw.close()
        await coming.answered()


async def test_the_fast_lane_does_not_wait_for_it_beyond_the_requests_own_time() -> None:
    """Of the time that an open may take, a part was spent on a session before this one."""
    async with world(open_seconds=1000.0, admit_seconds=1000.0, call_seconds=1000.0) as w:
        coming = await knock(w)
        fast = w.daemon.parts.lane
        grant = SimpleNamespace(device_id="device-0", session=coming.session, node_url=w.daemon.node_url, epoch=1)
        with pytest.raises(ProxyError, match="no daemon holds") as told:
            await fast.upstreams.wait_reach(cast("Grant", grant), trio.current_time() + 0.05)
        assert told.value.code == "TUNNEL_DISCONNECTED"
        await coming.answered()
