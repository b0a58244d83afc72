"""One watchdog for many tunnels: the schedule by itself, the task on a virtual clock, and tunnels that share one."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from tests.runtime.daemon.daemonworld import OTHER, TOKEN, echo, world
from tests.runtime.daemon.test_isolation import still_fine
from tests.runtime.mux.mux_pipes import PipeTransport, transport_pair
from tunnel.mux.connection import Connection
from tunnel.net.watchdog import Schedule, Watchdog
from tunnel.protocol.core import Role
from tunnel.protocol.errors import EndKind
from tunnel.protocol.frames import ACK, HEADER, PING, SYN

# The schedule


def test_those_due_are_taken_in_order_and_no_more_than_asked_for() -> None:
    schedule: Schedule[str] = Schedule()
    for name, due in (("c", 3.0), ("a", 1.0), ("b", 2.0), ("a2", 1.0)):
        schedule.put(name, due)
    assert schedule.first() == 1.0
    assert schedule.take(0.9, 10) == []
    assert schedule.take(2.5, 2) == ["a", "a2"]
    assert schedule.take(2.5, 2) == ["b"]
    assert (len(schedule), schedule.first()) == (1, 3.0)
    assert schedule.take(3.0, 2) == ["c"]
    assert (len(schedule), schedule.first()) == (0, math.inf)


def test_the_earliest_date_counts_and_who_was_dropped_never_comes() -> None:
    schedule: Schedule[str] = Schedule()
    schedule.put("a", 9.0)
    schedule.put("b", 5.0)
    schedule.put("a", 2.0)
    schedule.put("a", 4.0)
    schedule.drop("b")
    schedule.drop("b")
    assert schedule.take(3.0, 10) == ["a"]
    assert schedule.take(100.0, 10) == []
    schedule.put("a", 9.0)
    assert schedule.take(9.0, 10) == ["a"]


def test_outdated_entries_are_cleared_away() -> None:
    """Tunnels whose streams come and go all the time do not make it grow."""
    schedule: Schedule[int] = Schedule()
    for step in range(20_000):
        schedule.put(step % 7, 1e6 - step)
    words = repr(schedule)
    entries = int(words.split(", ")[1].split()[0])
    assert entries <= 2 * 7 + 64, words
    assert sorted(schedule.take(1e6, 100)) == list(range(7))


@pytest.mark.parametrize("seed", range(20))
def test_it_does_as_a_dict_of_dates_would(seed: int) -> None:
    chance, schedule, model = random.Random(seed), Schedule[int](), dict[int, float]()
    now = 0.0
    for _ in range(600):
        who = chance.randrange(30)
        if (act := chance.random()) < 0.6:
            due = now + chance.randrange(20)
            schedule.put(who, due)
            model[who] = min(due, model.get(who, math.inf))
        elif act < 0.7:
            schedule.drop(who)
            model.pop(who, None)
        else:
            now += chance.randrange(5)
            most = chance.randrange(1, 6)
            taken = schedule.take(now, most)
            due_now = sorted(due for due in model.values() if due <= now)
            assert [model.pop(one) for one in taken] == due_now[:most]
        assert schedule.first() == min(model.values(), default=math.inf)
        assert len(schedule) == len(model)


# The task


class Noted:
    """Looked at each `every` seconds, `times` times; notes when."""

    def __init__(self, every: float = math.inf, times: int = 1, fault: Exception | None = None) -> None:
        self.every, self.times, self.fault = every, times, fault
        self.seen: list[float] = []
        self.told: list[Exception] = []

    def look(self, now: float) -> float:
        self.seen.append(now)
        if self.fault is not None:
            raise self.fault
        return now + self.every if len(self.seen) < self.times else math.inf

    def crashed(self, error: Exception) -> None:
        self.told.append(error)


async def looking(nursery: trio.Nursery) -> Watchdog:
    watchdog = Watchdog()
    nursery.start_soon(watchdog.run)
    await trio.testing.wait_all_tasks_blocked()
    return watchdog


async def test_it_comes_when_it_was_told_to_and_then_when_it_is_told_anew(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, one, begun = await looking(nursery), Noted(every=15.0, times=3), trio.current_time()
        watchdog.watch(one, begun + 40.0)
        watchdog.watch(one, begun + 10.0)
        watchdog.watch(one, begun + 30.0)
        await trio.sleep(100.0)
        assert [moment - begun for moment in one.seen] == pytest.approx([10.0, 25.0, 40.0])
        assert len(watchdog) == 0
        nursery.cancel_scope.cancel()


async def test_those_due_nearly_at_once_share_a_round(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, begun = await looking(nursery), trio.current_time()
        crowd = [Noted() for _ in range(1_000)]
        for number, one in enumerate(crowd):
            watchdog.watch(one, begun + 10.0 + number / 1_000)
        await trio.sleep(20.0)
        moments = {one.seen[0] for one in crowd}
        late = [one.seen[0] - begun - 10.0 - number / 1_000 for number, one in enumerate(crowd)]
        assert len(moments) <= 22
        assert min(late) > -0.001
        assert max(late) < 0.051
        nursery.cancel_scope.cancel()


async def test_a_crowd_lets_others_have_their_turn() -> None:
    async with trio.open_nursery() as nursery:
        watchdog, crowd = await looking(nursery), [Noted() for _ in range(200)]
        counts: list[int] = []

        async def other() -> None:
            while len(counts) < 4:
                counts.append(sum(len(one.seen) for one in crowd))
                await trio.lowlevel.checkpoint()

        now = trio.current_time()
        for one in crowd:
            watchdog.watch(one, now)
        with trio.fail_after(30):
            while not crowd[0].seen:
                await trio.lowlevel.checkpoint()
            await other()
        steps = [after - before for before, after in pairwise(counts)]
        assert max(steps) <= 64
        nursery.cancel_scope.cancel()


async def test_who_left_is_not_looked_at(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, one = await looking(nursery), Noted()
        watchdog.watch(one, trio.current_time() + 1.0)
        watchdog.leave(one)
        watchdog.leave(one)
        await trio.sleep(5.0)
        assert one.seen == []
        nursery.cancel_scope.cancel()


async def test_a_look_that_fails_is_told_to_its_own_only(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, fault = await looking(nursery), RuntimeError("a bug of ours")
        bad, good = Noted(fault=fault), Noted(every=1.0, times=5)
        for one in (bad, good):
            watchdog.watch(one, trio.current_time() + 1.0)
        await trio.sleep(10.0)
        assert (bad.told, len(bad.seen)) == ([fault], 1)
        assert (good.told, len(good.seen)) == ([], 5)
        nursery.cancel_scope.cancel()


# Tunnels


def pings(peer: PipeTransport) -> int:
    """How often `peer` was asked whether it is there."""
    data = bytes(peer.arrived)
    heads = [HEADER.unpack_from(data, at) for at in range(0, len(data), HEADER.size)]
    return sum((kind, flags) == (PING, SYN) for kind, flags, _, _ in heads)


async def test_many_tunnels_share_one_and_each_keeps_its_times(autojump_clock: MockClock) -> None:
    """A ping after 15 s of silence, dead after 40 s, whatever the others do; the shared one is told who is gone."""
    async with trio.open_nursery() as nursery:
        watchdog, held = await looking(nursery), list[tuple[Connection, PipeTransport]]()
        for number in range(50):
            ours, theirs = transport_pair()
            one = Connection(ours, role=Role.CLIENT, accept_streams=False, name=str(number), watchdog=watchdog)
            await nursery.start(one.run)
            held.append((one, theirs))
        await trio.sleep(14.9)
        assert {pings(peer) for _, peer in held} == {0}
        await trio.sleep(0.2)
        assert {pings(peer) for _, peer in held} == {1}
        for number, (_, peer) in enumerate(held):  # of each ten one says nothing more
            if number % 10:
                await peer.send_all(HEADER.pack(PING, SYN, 0, number))
        await trio.sleep(24.8)
        assert [one.end_reason for one, _ in held] == [None] * 50
        await trio.sleep(0.2)
        ends = [one.end_reason for one, _ in held[::10]]
        assert {(end.kind, end.close_code) for end in ends if end is not None} == {(EndKind.LIVENESS, 4408)}
        assert len(ends) == sum(end is not None for end in ends) == 5
        assert sum(one.end_reason is not None for one, _ in held) == 5
        await trio.sleep(3.0)  # they close
        assert len(watchdog) == 45
        nursery.cancel_scope.cancel()


async def test_a_tunnel_whose_pings_are_answered_is_asked_each_15_seconds(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, (ours, peer) = await looking(nursery), transport_pair()
        one = Connection(ours, role=Role.CLIENT, accept_streams=False, watchdog=watchdog)
        await nursery.start(one.run)
        begun, moments = trio.current_time(), list[float]()
        while len(moments) < 5:
            asked = await peer.receive_some()
            moments.append(trio.current_time() - begun)
            kind, flags, _, value = HEADER.unpack(asked)
            assert (kind, flags) == (PING, SYN)
            await trio.sleep(0.03)
            await peer.send_all(HEADER.pack(PING, ACK, 0, value))
        assert moments == pytest.approx([15.0, 30.0, 45.0, 60.0, 75.0], abs=0.4)
        nursery.cancel_scope.cancel()


async def test_a_stream_that_opens_on_a_resting_tunnel_is_watched_each_second(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, (ours, _theirs) = await looking(nursery), transport_pair()
        one = Connection(ours, role=Role.CLIENT, accept_streams=False, watchdog=watchdog)
        await nursery.start(one.run)
        await trio.sleep(2.0)
        begun = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # nobody accepts it: 10 s, not the 15 of a tunnel at rest
            await one.open_stream()
        assert trio.current_time() - begun < 11.1
        nursery.cancel_scope.cancel()


async def _ends_with(one: Connection) -> BaseException | None:
    try:
        await one.run()
    except Exception as error:  # noqa: BLE001 - whatever it raises is what is asked for
        return error
    return None


@pytest.mark.parametrize("shared", [False, True])
async def test_a_bug_in_a_look_ends_that_tunnel_with_its_reason(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, *, shared: bool
) -> None:
    async with trio.open_nursery() as nursery:
        watchdog, (ours, theirs) = await looking(nursery), transport_pair()
        one = Connection(ours, role=Role.CLIENT, accept_streams=False, watchdog=watchdog if shared else None)
        monkeypatch.setattr(one, "look", _failing)
        with trio.fail_after(60):
            error = await _ends_with(one)
        assert isinstance(error, ExceptionGroup)
        assert error.subgroup(RuntimeError) is not None
        assert theirs.close_code is not None
        nursery.cancel_scope.cancel()


def _failing(_now: float) -> float:
    raise RuntimeError("a bug of ours")


async def test_the_daemon_outlives_a_bug_in_one_tunnels_look(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(crashes=1) as w:
        victim, _ = await w.agent(TOKEN)
        other, _ = await w.agent(OTHER)
        await w.serve(victim, echo)
        await w.serve(other, echo)
        session = w.daemon.parts.sessions.of_device("device-0")
        assert session is not None
        monkeypatch.setattr(session.connection, "look", _failing)
        # A tunnel that carries something is looked at each second.
        status, _, raw, _ = await w.forward(headers=[("X-Device-Id", "device-0")], first=b"x")
        assert status == 101
        await w.until(lambda: w.logged("disconnect"))
        line = w.logged("disconnect")[0]
        assert (line["reason"], "a bug of ours" in line["text"]) == ("error", True)
        raw.close()
        await still_fine(w, "device-1")


def test_its_words_tell_how_many_it_watches() -> None:
    watchdog = Watchdog()
    watchdog.watch(Noted(), 1.0)
    assert (repr(watchdog), len(watchdog)) == ("<Watchdog of 1>", 1)
    assert repr(Schedule[int]()) == "<Schedule 0 due, 0 entries>"
