"""Whom the public port holds when it is full, and who gives way to whom."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tunnel.daemon.http.capacity import ConnectionLimit

AGENTS, HERE, THERE = "192.0.2.1", "192.0.2.2", "2001:db8:0:1::1"


class Client:
    """A client's connection; `since` None: it is at work."""

    def __init__(self, since: float | None) -> None:
        self.since = since
        self.closed = False

    def idle_since(self) -> float | None:
        return self.since

    def close(self) -> None:
        self.closed = True


def held(room: ConnectionLimit, address: str, since: float | None) -> Client | None:
    """A connection whose first request was read; None: there was no place for it."""
    client = Client(since)
    key = object()
    if not room.take(key, address, client.close):
        return None
    room.read(key)
    room.heard(key, client)
    return client


async def test_the_longest_idle_one_gives_way_and_none_at_work(autojump_clock: trio.testing.MockClock) -> None:
    room = ConnectionLimit(1000, 40)  # 30 for clients
    room.prove(HERE)
    clients = [held(room, HERE, None if n % 2 else 100.0 - n) for n in range(30)]
    assert None not in clients
    newest = [held(room, HERE, 200.0 + n) for n in range(15)]
    assert None not in newest
    assert [c.closed for c in clients if c] == [n % 2 == 0 for n in range(30)]
    assert room.gave_way == 15
    # The next ones to go are the first of those that came now.
    await trio.sleep(1)
    assert held(room, HERE, None)
    assert [c.closed for c in newest if c] == [True] + [False] * 14


async def test_what_has_begun_to_work_or_has_worked_since_is_passed_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    room = ConnectionLimit(1000, 40)
    room.prove(HERE)
    clients = [held(room, HERE, float(n)) for n in range(30)]
    first, second, third, *_ = [c for c in clients if c]
    assert held(room, HERE, 99.0)  # now it is known who idles longest
    assert first.closed
    second.since, third.since = None, 150.0
    assert held(room, HERE, 99.0)
    assert (second.closed, third.closed) == (False, False)
    assert sum(c.closed for c in clients if c) == 2


async def test_an_address_that_has_not_proved_itself_has_a_share(autojump_clock: trio.testing.MockClock) -> None:
    room = ConnectionLimit(1000, 200)  # 150 for clients, 18 for such an address
    others = [held(room, f"198.51.100.{n}", float(n)) for n in range(50)]
    mine = [held(room, f"2001:db8:0:1::{n}", float(n)) for n in range(60)]  # one /64 is one
    assert None not in mine
    assert not any(c.closed for c in others if c)
    assert sum(not c.closed for c in mine if c) == 18
    assert all(not c.closed for c in mine[-18:] if c)
    room.prove(THERE)
    assert all(held(room, THERE, 100.0) for _ in range(60))
    assert not any(c.closed for c in others if c)
    assert room.gave_way == 42


async def test_a_proxy_that_speaks_for_many_has_no_share(autojump_clock: trio.testing.MockClock) -> None:
    room = ConnectionLimit(1000, 200, trusts=lambda address: address == HERE)
    assert all(held(room, HERE, 1.0) for _ in range(150))
    assert room.gave_way == 0


async def test_newcomers_are_heard_for_a_second_before_they_give_way(autojump_clock: trio.testing.MockClock) -> None:
    room = ConnectionLimit(1000, 40)
    room.prove(HERE)
    ended: list[int] = []
    taken = [room.take(n, HERE, lambda n=n: ended.append(n)) for n in range(40)]  # type: ignore[misc]  # each its own
    assert taken == [True] * 35 + [False] * 5  # 30, and some more: one may be an agent
    assert ended == []
    await trio.sleep(1)
    assert room.take(40, HERE, lambda: ended.append(40))
    assert ended == [0]


async def test_what_was_read_and_waits_for_us_does_not_idle(autojump_clock: trio.testing.MockClock) -> None:
    room = ConnectionLimit(1000, 40)
    room.prove(HERE)
    for n in range(35):
        assert room.take(n, HERE, lambda: pytest.fail("it was closed"))
        room.read(n)
    await trio.sleep(10)
    assert not room.take(99, HERE, lambda: None)
    assert not room.enter(), "a client: there is no room for it"
    room.admitted(0)
    for n in range(1, 6):
        room.leave(n)
    assert room.enter()


async def test_agents_have_a_reserve_and_push_out_clients_beyond_it() -> None:
    elsewhere = 0
    room = ConnectionLimit(1000, 40, elsewhere=lambda: elsewhere)
    assert (room.most_clients, room.most_agents) == (30, 30)
    for n in range(10):
        assert room.take(n, AGENTS, lambda: None)
        room.admitted(n)
    assert room.most_clients == 30
    for n in range(10, 20):
        assert room.take(n, AGENTS, lambda: None)
        room.admitted(n)
    assert room.most_clients == 20
    elsewhere = 5  # the API's calls
    assert room.most_clients == 15
    for n in range(20):
        room.leave(n)
        room.leave(n)
    assert room.most_clients == 30
    assert repr(room) == "<ConnectionLimit clients=0 of 30 agents=0>"


async def test_without_descriptors_one_gives_way_below_the_limit() -> None:
    room = ConnectionLimit(1000, 1000)
    assert not room.make_room()
    first, second = held(room, HERE, 2.0), held(room, HERE, 1.0)
    await trio.sleep(0.2)
    assert room.make_room()
    assert first
    assert second
    assert (first.closed, second.closed) == (False, True)


async def test_looking_for_who_idles_costs_little() -> None:
    """A crowd of newcomers at a full port does not make it look through all connections each time."""
    looked = 0

    class Counted(Client):
        def idle_since(self) -> float | None:
            nonlocal looked
            looked += 1
            return self.since

    room = ConnectionLimit(10_000, 4000)  # 3000 for clients
    room.prove(HERE)
    for n in range(3000):
        assert room.take(n, HERE, lambda: None)
        room.read(n)
        room.heard(n, Counted(float(n) if n % 2 else None))
    for _ in range(1400):
        assert held(room, HERE, None)
    assert room.gave_way == 1400
    assert looked < 10 * 3000 + 1400
    looked = 0
    for _ in range(1000):
        held(room, HERE, None)
    assert looked < 100 * 1000
