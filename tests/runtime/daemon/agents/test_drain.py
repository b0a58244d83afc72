"""The orderly end: what still finishes, what is refused, who is told what, and that it does end."""

from __future__ import annotations

import pytest
import trio

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, dial, echo, parse, read_all, world
from tunnel.daemon.agents import drain as departures
from tunnel.websocket.handshake import HandshakeRefused


async def test_streams_in_flight_finish_and_nothing_new_begins() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, rest = await w.forward(first=b"before ")
        w.daemon.drain()
        await w.until(lambda: agent.peer_going_away)
        assert (await w.http("/readyz", secret=None))[0] == 503
        status, fields, refused, _ = await w.forward(headers=[("X-Device-Id", "device-0")])
        assert (status, fields["retry-after"]) == (503, "1")
        refused.close()
        with pytest.raises(OSError, match="connect"):
            await w.agent(OTHER)
        beat = await w.control.wait(lambda: [one for one in w.control.heartbeats if one["draining"]])
        assert (beat[0]["sessions_count"], beat[0]["streams_count"]) == (1, 1)
        assert agent.end_reason is None
        await raw.send_all(b"and after")
        raw.send_eof()
        assert rest + await read_all(raw) == b"before and after"
        await w.ended.wait()
        assert agent.end_reason is not None
        assert (agent.end_reason.close_code, agent.end_reason.remote) == (1012, True)
        ended = [e for e in w.control.events if e["type"] == "disconnected"]
        assert (ended[0]["reason"], ended[0]["code"]) == ("drain", 1012)
        assert w.logged("drained")[0]["cut"] == 0
        assert w.logged("stopped")[0]["events_lost"] == 0


async def test_without_streams_it_ends_at_once() -> None:
    async with world(drain_seconds=60) as w:
        agent, _ = await w.agent()
        start = trio.current_time()
        w.daemon.drain()
        await w.ended.wait()
        assert trio.current_time() - start < 25  # not the grace
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012


async def test_what_does_not_finish_within_the_grace_is_reset() -> None:
    async with world(drain_seconds=0.3) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        w.daemon.drain()
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()
        await w.ended.wait()
        assert w.logged("forward")[0]["outcome"] == "session_ended"
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012


async def test_a_second_request_cuts_the_grace_short() -> None:
    async with world(drain_seconds=1000) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        w.daemon.drain()
        await w.until(lambda: agent.peer_going_away)
        w.daemon.drain()
        await w.ended.wait()
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()


async def test_a_second_request_does_not_wait_for_django_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.node._GOODBYE_SECONDS", 1000.0)
    async with world(drain_seconds=1000) as w:
        await w.agent()
        w.control.frozen = True
        w.daemon.drain()
        await w.until(lambda: w.daemon.parts.metrics.draining)
        w.daemon.drain()
        await w.ended.wait()
        assert w.logged("draining"), "what follows is done all the same"


async def test_a_lame_duck_is_not_ready_and_serves_everything() -> None:
    """Load balancers learn late: until the time is up, or a second signal came, agents and streams are taken."""
    async with world(lameduck_seconds=1000) as w:
        first, _ = await w.agent()
        await w.control.wait(lambda: w.control.heartbeats)
        w.daemon.drain()
        await w.until(lambda: w.logged("lameduck"))
        status, _, body = await w.http("/readyz", secret=None)
        assert (status, body["error"]["code"]) == (503, "TUNNEL_UNAVAILABLE")
        assert (await w.http("/healthz", secret=None))[0] == 200
        agent, _ = await w.agent(OTHER)
        await w.serve(agent, echo)
        _, _, raw, rest = await w.forward(first=b"taken ")
        assert not [beat for beat in w.control.heartbeats if beat["draining"]], "Django may still send what it has"
        assert not first.peer_going_away
        w.daemon.drain()
        await w.until(lambda: agent.peer_going_away and first.peer_going_away)
        await raw.send_all(b"and finished")
        raw.send_eof()
        assert rest + await read_all(raw) == b"taken and finished"
        await w.ended.wait()
        assert w.logged("drained")[0]["cut"] == 0


async def test_the_time_of_a_lame_duck_ends_by_itself_and_an_interrupt_has_none() -> None:
    for ask, seconds in (("drain", 0.05), ("interrupt", 1000.0)):
        async with world(lameduck_seconds=seconds) as w:
            await w.agent()
            getattr(w.daemon, ask)()
            await w.ended.wait()
            assert len(w.logged("lameduck")) == (ask == "drain")


async def test_after_a_lame_duck_a_further_request_cuts_the_grace_short() -> None:
    async with world(lameduck_seconds=0.05, drain_seconds=1000) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        w.daemon.drain()
        await w.until(lambda: agent.peer_going_away)
        w.daemon.drain()
        await w.ended.wait()
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()


async def test_an_interrupt_has_a_short_grace_and_says_shutdown() -> None:
    async with world(drain_seconds=1000, interrupt_seconds=0.1) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        w.daemon.interrupt()
        await w.ended.wait()
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1001
        raw.close()


async def test_the_internal_api_begins_it_too() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        status, _, body = await w.http("/internal/drain", method="POST")
        assert (status, body["data"]) == (200, {"draining": True, "streams": 0})
        await w.ended.wait()
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012


async def test_it_ends_though_the_api_is_away() -> None:
    async with world(call_seconds=0.2) as w:
        await w.agent()
        await w.control.wait(lambda: w.control.events)
        w.control.close()
        start = trio.current_time()
        w.daemon.drain()
        await w.ended.wait()
        assert trio.current_time() - start < 25  # not the grace
        assert w.logged("stopped")[0]["events_lost"] == 1


async def test_an_agent_in_the_handshake_is_turned_away() -> None:
    async with world() as w:
        w.control.hold = trio.Event()
        codes: list[int] = []

        async def knock() -> None:
            try:
                await w.agent()
            except HandshakeRefused as error:
                codes.append(error.status)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            await w.control.wait(lambda: w.control.authentications)
            w.daemon.parts.metrics.draining = True  # the moment after the drain began
            w.control.hold.set()
        assert codes == [503]
        ended = await w.control.wait(lambda: w.control.events)
        assert (ended[0]["type"], ended[0]["reason"]) == ("disconnected", "drain")


async def test_who_has_knocked_is_let_in_and_nobody_after_that() -> None:
    """Connections that the kernel has taken before the port closes are answered, so that they need not be made anew."""
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        knocked = await dial(w.public)  # nothing is said yet
        w.daemon.drain()
        await w.until(lambda: w.daemon._ports.public.fileno() < 0)
        with pytest.raises(OSError, match="connect"):
            await dial(w.public)
        await knocked.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        status, _, _ = parse(await read_all(knocked))
        assert status == 404  # nothing of ours, but an answer
        assert (await w.http("/healthz", secret=None))[0] == 200  # the internal port stays to the end
        raw.close()
        await w.ended.wait()


async def test_many_tunnels_go_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tunnel.daemon.agents.drain._TURN_SECONDS", 0.5
    )  # a machine that stalls for long looks the same
    async with world(drain_seconds=20.0) as w:
        agents = [(await w.agent(f"vAs_{number:032d}"))[0] for number in range(9)]
        await w.until(lambda: len(w.daemon.parts.sessions) == 9)
        w.daemon.drain()
        await w.until(lambda: any(each.peer_going_away for each in agents))
        told = sum(each.peer_going_away for each in agents)
        assert told < 9
        await w.ended.wait()
        await w.until(lambda: all(each.end_reason is not None for each in agents))
        assert {each.end_reason.close_code for each in agents if each.end_reason} == {1012}


async def test_a_tunnel_ends_with_its_own_streams() -> None:
    """It does not wait for the streams of others: its agent is needed elsewhere."""
    async with world(drain_seconds=60) as w:
        busy, _ = await w.agent()
        await w.serve(busy, echo)
        _, _, raw, _ = await w.forward()
        free, _ = await w.agent(OTHER)
        w.daemon.drain()
        await w.until(lambda: free.end_reason is not None)
        assert busy.end_reason is None
        raw.send_eof()
        await read_all(raw)
        await w.ended.wait()


HANDS_OVER = [("Authorization", f"Bearer {TOKEN}"), ("X-VisionA-Agent", "visiona-agent/1; features=handover")]


async def test_an_agent_that_hands_over_takes_streams_until_it_has() -> None:
    async with world(drain_seconds=60) as w:
        agent, _ = await w.agent(headers=HANDS_OVER)
        await w.serve(agent, echo)
        session = w.daemon.parts.sessions.all()[0]
        _, _, held, _ = await w.forward()
        w.daemon.drain()
        await w.until(lambda: agent.peer_going_away)
        status, _, raw, rest = await w.forward(first=b"still")
        assert status == 101
        raw.send_eof()
        assert rest + await read_all(raw) == b"still"
        done = await w.http(f"/internal/session/{session.id}?code=1012&handover=1", method="DELETE")
        assert done[0] == 200
        status, fields, refused, _ = await w.forward()
        assert (status, fields["retry-after"]) == (503, "1")
        refused.close()
        assert agent.end_reason is None
        await held.send_all(b"in flight")
        held.send_eof()
        assert await read_all(held) == b"in flight"
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012
        await w.ended.wait()


async def test_an_agent_that_finds_no_other_daemon_is_not_waited_for() -> None:
    async with world(drain_seconds=60) as w:
        await w.agent(headers=HANDS_OVER)
        start = trio.current_time()
        w.daemon.drain()
        await w.ended.wait()
        assert trio.current_time() - start < 30


async def test_a_handover_outside_of_a_drain_ends_the_old_tunnel_too() -> None:
    async with world() as w:
        agent, _ = await w.agent(headers=HANDS_OVER)
        session = w.daemon.parts.sessions.all()[0]
        await w.http(f"/internal/session/{session.id}?code=1012&handover=1", method="DELETE")
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012


async def test_a_revoked_session_does_not_wait_behind_those_that_were_handed_over() -> None:
    async with world(drain_seconds=1000) as w:
        w.daemon.parts.background._limit.total_tokens = 1
        agent, _ = await w.agent(headers=HANDS_OVER)
        await w.serve(agent, echo)
        await w.forward()  # held
        parted = w.daemon.parts.sessions.all()[0]
        revoked, _ = await w.agent(OTHER)
        await w.until(lambda: len(w.daemon.parts.sessions) == 2)
        (other,) = (each for each in w.daemon.parts.sessions.all() if each is not parted)
        await w.http(f"/internal/session/{parted.id}?code=1012&handover=1", method="DELETE")
        await w.until(lambda: agent.peer_going_away)
        await w.http(f"/internal/session/{other.id}?code=4401", method="DELETE")
        await w.until(lambda: revoked.end_reason is not None)
        assert revoked.end_reason is not None
        assert revoked.end_reason.close_code == 4401
        assert agent.end_reason is None


async def test_a_handover_to_the_same_daemon_cuts_nothing() -> None:
    async with world() as w:
        agent, _ = await w.agent(headers=HANDS_OVER)
        await w.serve(agent, echo)
        session = w.daemon.parts.sessions.all()[0]
        _, _, held, _ = await w.forward()
        successor, _ = await w.agent(headers=[*HANDS_OVER, ("X-VisionA-Handover", session.id)])
        await w.serve(successor, echo)
        status, fields, raw, rest = await w.forward(first=b"new", headers=[("X-Device-Id", "device-0")])
        assert (status, fields["x-tunnel-session"]) == (101, w.daemon.parts.sessions.all()[-1].id)
        raw.send_eof()
        assert rest + await read_all(raw) == b"new"
        assert (await w.forward(headers=[("X-Tunnel-Session", session.id)]))[0] == 503
        assert agent.end_reason is None
        await held.send_all(b"in flight")
        held.send_eof()
        assert await read_all(held) == b"in flight"
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012
        assert successor.end_reason is None


@pytest.mark.parametrize("named", ["another", "itself"])
async def test_only_an_agent_that_hands_over_its_own_session_is_spared(named: str) -> None:
    plain = [("Authorization", f"Bearer {TOKEN}"), ("X-VisionA-Agent", "visiona-agent/1; features=keepalive")]
    async with world() as w:
        agent, _ = await w.agent(headers=HANDS_OVER if named == "another" else plain)
        said = "another" if named == "another" else w.daemon.parts.sessions.all()[0].id
        await w.agent(headers=[*HANDS_OVER, ("X-VisionA-Handover", said)])
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 4409


@pytest.mark.parametrize("hands_over", [True, False])
async def test_a_tunnel_whose_stream_ids_run_out_is_replaced_in_time(
    hands_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(departures, "_LOOK_SECONDS", 0.02)
    async with world() as w:
        agent, _ = await w.agent(headers=HANDS_OVER if hands_over else None)
        await w.serve(agent, echo)
        session = w.daemon.parts.sessions.all()[0]
        _, _, held, _ = await w.forward()
        await trio.sleep(0.1)
        assert not agent.peer_going_away
        session.connection.session._core.next_id = 0xF000_0001
        await w.until(lambda: agent.peer_going_away)
        status = (await w.forward(headers=[("X-Tunnel-Session", session.id)]))[0]
        assert status == (101 if hands_over else 503)  # where a successor is to be expected, it serves until then
        assert agent.end_reason is None
        await held.send_all(b"in flight")
        held.send_eof()
        assert await read_all(held) == b"in flight"
        if hands_over:
            await w.agent(headers=[*HANDS_OVER, ("X-VisionA-Handover", session.id)])
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1012
