"""What the daemon tells Django, and what it does when Django is not there to be told."""

from __future__ import annotations

import io
from typing import Any

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, Control, reply, world
from tunnel.contract import TunnelEvent
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.daemon.control.events import BATCH, EventQueue
from tunnel.logs import JsonLog


async def test_it_is_ready_after_the_first_accepted_heartbeat_only() -> None:
    async with world(start_control=False) as w:
        status, fields, body = await w.http("/readyz", secret=None)
        assert (status, body["error"]["code"], fields["retry-after"]) == (503, "TUNNEL_UNAVAILABLE", "1")
        assert (await w.http("/healthz", secret=None))[0] == 200
        w.control.open()
        await w.control.wait(lambda: w.control.heartbeats)
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        assert (await w.http("/readyz", secret=None))[0] == 200
        beat = w.control.heartbeats[0]
        assert beat["node"] == w.daemon.config.node
        assert beat["url"] == f"http://localhost:{w.internal}"
        assert (beat["sessions"], beat["sessions_count"], beat["draining"]) == (None, 0, False)
        assert w.logged("heartbeat_failed")


async def test_a_heartbeat_tells_which_sessions_there_are() -> None:
    async with world(heartbeat_seconds=0.05) as w:
        none = (await w.control.wait(lambda: w.control.heartbeats))[0]["digest"]
        await w.agent()
        held = w.daemon.parts.sessions.digest
        assert held != none
        await w.control.wait(lambda: w.control.heartbeats[-1]["digest"] == held)


async def test_two_missed_heartbeats_make_it_not_ready_until_one_is_accepted() -> None:
    """Its tunnels live on and it is healthy: nobody must restart it for what the API lacks."""
    async with world(heartbeat_seconds=0.1, call_seconds=0.2) as w:
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        w.control.frozen = True
        await w.until(lambda: not w.daemon.parts.heartbeat.accepted)
        status, _, body = await w.http("/readyz", secret=None)
        assert (status, body["error"]["code"]) == (503, "TUNNEL_UNAVAILABLE")
        assert (await w.http("/healthz", secret=None))[0] == 200
        w.control.frozen = False
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        assert (await w.http("/readyz", secret=None))[0] == 200


async def test_it_is_not_healthy_when_no_heartbeat_is_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(heartbeat_seconds=0.02, call_seconds=0.05) as w:
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)

        async def never(*_: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(ControlPlane, "heartbeat", never)
        await w.until(lambda: not w.daemon.parts.heartbeat.accepted)
        while (await w.http("/healthz", secret=None))[0] == 200:
            await trio.sleep(0.01)


async def test_a_failure_is_told_again_when_its_cause_changes() -> None:
    async with world(heartbeat_seconds=0.02) as w:
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        for status in (503, 500, 503):
            w.control.status = status
            await w.until(
                lambda status=status: (
                    w.logged("heartbeat_failed")[-1:] and str(status) in w.logged("heartbeat_failed")[-1]["error"]
                )
            )
        told = [line["error"].split()[1] for line in w.logged("heartbeat_failed") if line["failures"] % 30]
        assert told == ["503", "500", "503"]


async def test_an_api_that_refuses_the_heartbeat_does_not_make_it_ready() -> None:
    async with world(start_control=False) as w:
        w.control.status = 401
        w.control.open()
        await w.control.wait(lambda: w.control.calls)
        await w.until(lambda: w.logged("heartbeat_failed"))
        assert w.logged("heartbeat_failed")[0]["level"] == "error"
        assert (await w.http("/readyz", secret=None))[0] == 503
        w.control.status = 200
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)


@pytest.mark.parametrize(
    "answer", [{}, {"close": 1, "send_sessions": False}, {"close": [{}], "send_sessions": 0}, None]
)
async def test_a_heartbeats_answer_that_makes_no_sense_is_no_answer(answer: Any) -> None:
    async with world(start_control=False) as w:
        w.control.heartbeat_answers = [answer]
        w.control.open()
        await w.control.wait(lambda: len(w.control.heartbeats) >= 2)  # tried again, and then accepted
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        assert w.logged("heartbeat_failed")


async def test_asked_for_the_list_it_sends_it_at_once() -> None:
    async with world(heartbeat_seconds=0.3) as w:
        await w.agent(headers=[("X-Relay-Token", TOKEN), ("X-VisionA-Agent", "a/1; features=keepalive")])
        await w.agent(OTHER)
        await w.until(lambda: len(w.daemon.parts.sessions) == 2)
        w.control.heartbeat_answers = [{"close": [], "send_sessions": True}]
        full = (await w.control.wait(lambda: [one for one in w.control.heartbeats if one["sessions"] is not None]))[0]
        by_device = {one["device_id"]: one for one in full["sessions"]}
        assert set(by_device) == {"device-0", "device-1"}
        fact = by_device["device-0"]
        assert (fact["agent"], fact["features"], fact["epoch"]) == ("a/1", ["keepalive"], 1)
        assert fact["session"] == w.daemon.parts.sessions.of_device("device-0").id  # type: ignore[union-attr]  # it is there
        count = len(w.control.heartbeats)
        await w.control.wait(lambda: len(w.control.heartbeats) > count)
        assert w.control.heartbeats[-1]["sessions"] is None


@pytest.mark.parametrize("code,reason", [(4401, "revoked"), (4403, "disabled"), (4409, "replaced")])
async def test_it_closes_what_django_orders(code: int, reason: str) -> None:
    async with world(heartbeat_seconds=0.2) as w:
        agent, answer = await w.agent()
        kept, _ = await w.agent(OTHER)
        order = {"session": answer["x-visiona-tunnel-session"], "code": code, "reason": "as ordered"}
        gone = {"session": "nobody", "code": 4401, "reason": ""}
        w.control.heartbeat_answers = [{"close": [gone, order], "send_sessions": False}]
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == code
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["code"]) == (reason, code)
        assert kept.end_reason is None


async def test_a_code_that_may_not_travel_still_closes() -> None:
    async with world(heartbeat_seconds=0.2) as w:
        agent, answer = await w.agent()
        order = {"session": answer["x-visiona-tunnel-session"], "code": 7, "reason": "odd"}
        w.control.heartbeat_answers = [{"close": [order], "send_sessions": False}]
        await w.until(lambda: agent.end_reason is not None)
        assert agent.end_reason is not None
        assert agent.end_reason.close_code == 1000


async def test_events_wait_while_the_api_is_down_and_streams_go_on() -> None:
    async with world(call_seconds=0.5) as w:
        agent, _ = await w.agent()
        await w.control.wait(lambda: w.control.events)
        w.control.close()
        await agent.aclose(1000, "bye")
        await w.until(lambda: w.logged("events_delayed"))
        w.control.open()
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["code"]) == ("closed", 1000)
        assert [line["reason"] for line in w.logged("disconnect")] == ["closed"]


async def test_an_agent_that_vanishes_is_told_as_lost() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        agent._transport._sock.shutdown(2)  # type: ignore[attr-defined]  # this transport has a socket
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["code"]) == ("lost", 1006)


class Api:
    """A control plane of the outbox alone."""

    def __init__(self) -> None:
        self.got: list[list[str]] = []
        self.errors: list[ControlUnavailable] = []
        self.seconds = 0.01  # that a call takes

    async def events(self, node: str, events: list[TunnelEvent]) -> None:
        await trio.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        self.got.append([event["session"] for event in events])


def event(name: str) -> TunnelEvent:
    return {"session": name}  # type: ignore[typeddict-item]  # the outbox looks at nothing else


def outbox(api: Api, limit: int = 1000) -> EventQueue:
    return EventQueue(api, "n", JsonLog(io.BytesIO()), limit=limit)  # type: ignore[arg-type]  # all that it calls


async def test_the_outbox_keeps_the_order_over_failures(autojump_clock: trio.testing.MockClock) -> None:
    api = Api()
    api.errors = [ControlUnavailable("down"), ControlUnavailable("down")]
    box = outbox(api)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.run)
        for number in range(3):
            box.put(event(str(number)))
        await trio.sleep(0.1)
        box.put(event("3"))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert [name for batch in api.got for name in batch] == ["0", "1", "2", "3"]
    assert len(box) == 0


async def test_a_full_outbox_drops_the_oldest_and_counts(autojump_clock: trio.testing.MockClock) -> None:
    api = Api()
    api.errors = [ControlUnavailable("down")]
    box = outbox(api, limit=3)
    for number in range(5):
        box.put(event(str(number)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.run)
        await trio.sleep(0.055)  # the first batch is on its way
        box.put(event("5"))
        await trio.sleep(5)
        nursery.cancel_scope.cancel()
    assert api.got == [["3", "4", "5"]]
    assert box.dropped == 3


async def test_a_batch_is_bounded_and_one_that_is_refused_for_good_is_dropped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    api = Api()
    api.errors = [ControlUnavailable("bad", status=400)]
    box = outbox(api, limit=10_000)
    for number in range(BATCH + 7):
        box.put(event(str(number)))
    assert await box.flush(10) == 0
    assert [len(batch) for batch in api.got] == [7]
    assert box.dropped == BATCH


async def test_flushing_is_bounded_and_loses_nothing_of_what_it_holds(autojump_clock: trio.testing.MockClock) -> None:
    api = Api()
    api.errors = [ControlUnavailable("down")] * 100
    box = outbox(api)
    box.put(event("x"))
    start = trio.current_time()
    assert await box.flush(3) == 1
    assert trio.current_time() - start <= 3.01


@pytest.mark.parametrize(("errors", "told"), [(0, ["a", "b"]), (1, ["a", "b"]), (1000, [])])
async def test_what_is_under_way_is_flushed_too(
    autojump_clock: trio.testing.MockClock, errors: int, told: list[str]
) -> None:
    """The daemon ends while its sender waits for Django: what it holds is neither lost nor taken for told."""
    api = Api()
    api.errors = [ControlUnavailable("down")] * errors
    box = outbox(api)
    box.put(event("a"))
    box.put(event("b"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.run)
        await trio.sleep(0.055)
        assert len(box) == 0  # both are on their way
        assert await box.flush(3) == 2 - len(told)
        nursery.cancel_scope.cancel()
    assert [name for batch in api.got for name in batch] == told


async def test_a_call_that_hangs_counts_as_not_told(autojump_clock: trio.testing.MockClock) -> None:
    api = Api()
    api.seconds = 1000.0
    box = outbox(api)
    box.put(event("a"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(box.run)
        await trio.sleep(0.055)
        assert await box.flush(3) == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "results",
    [
        None,
        {},
        {"results": []},
        {"results": [{"ok": True}]},
        {"results": [{"ok": True, "device_id": 1, "user_id": "u", "epoch": 1}]},
        {"results": [{"ok": False, "code": "X"}]},
        {"results": ["yes"]},
    ],
)
async def test_an_answer_to_authenticate_that_breaks_the_contract_admits_nobody(results: Any) -> None:
    control = Control()
    control.open()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run)

            async def answer(path: str, body: Any) -> bytes:
                return reply(200, {"success": True, "data": results})

            control._answer = answer  # type: ignore[method-assign]  # of this one object
            async with ControlPlane(f"http://127.0.0.1:{control.port}", "s", call_seconds=2) as plane:
                with pytest.raises(ControlUnavailable):
                    await plane.authenticate("n", [{"token": "t", "session": "s", "address": "a"}])
            nursery.cancel_scope.cancel()
    control.close()
