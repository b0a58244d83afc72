"""The loop of a process: what lasts is moved by one thread, each for itself, and ends with its daemon."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from apps.proxy.exchanges import long_exchanges
from apps.proxy.exchanges.long_exchanges import LongExchange, LongExchanges
from tests.apps.proxy.kit import reset, until
from tests.apps.tunnels.carriage_kit import ANSWER, World
from tunnel.contract import DATA, record
from tunnel.http.body import LengthReader

WAIT = 10


@pytest.fixture
def worlds() -> Iterator[list[World]]:
    made = [World() for _ in range(3)]
    yield made
    for each in made:
        each.close()


def loop(*, dead: set[str] | None = None, limit: int = 8) -> LongExchanges:
    return LongExchanges(limit, dead=lambda urls: urls & (dead or set()), tidy=lambda: None)


def adopted(into: LongExchanges, world: World) -> threading.Event:
    """The world's exchange in the loop; the event is set once it is over."""
    over = threading.Event()
    carriage = world.carriage(LengthReader(0))
    world.told()
    into.adopt(LongExchange(carriage, over.set))
    return over


def test_each_is_moved_and_ends_for_itself(worlds: list[World]) -> None:
    one = loop()
    ends = [adopted(one, world) for world in worlds]
    for world in worlds:
        world.daemon.sendall(record(DATA, ANSWER))
        assert world.client.recv(1000) == ANSWER
    worlds[1].end()
    assert ends[1].wait(WAIT)
    assert not ends[0].is_set()
    reset(worlds[0].client)
    assert ends[0].wait(WAIT)
    assert not ends[2].is_set()


def test_a_client_that_reads_nothing_holds_nobody_up(worlds: list[World]) -> None:
    one = loop()
    for world in worlds:
        adopted(one, world)
    worlds[0].daemon.settimeout(0.2)
    with pytest.raises(TimeoutError):
        worlds[0].daemon.sendall(record(DATA, bytes(8 << 20)))
    worlds[1].daemon.sendall(record(DATA, ANSWER))
    assert worlds[1].client.recv(1000) == ANSWER


def test_what_is_over_already_is_let_go_at_once(worlds: list[World]) -> None:
    over = threading.Event()
    carriage = worlds[0].carriage(LengthReader(0))
    carriage.lost = True
    loop().adopt(LongExchange(carriage, over.set))
    assert over.wait(WAIT)


def test_no_owner_takes_all_places() -> None:
    one = loop(limit=8)
    taken = 0
    while one.claim("greedy"):
        taken += 1
    assert taken == 6
    assert one.claim("modest")
    one.leave("modest")
    one.leave("greedy")
    assert one.claim("greedy")


def test_a_daemon_that_is_gone_ends_those_that_stand_still(
    worlds: list[World], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TICK_SECONDS", "LOOK_SECONDS", "SILENT_SECONDS"):
        monkeypatch.setattr(long_exchanges, name, 0.05)
    worlds[1].node.node_url = "http://other:3801"
    one = loop(dead={"http://daemon:3801"})
    silent, other = adopted(one, worlds[0]), adopted(one, worlds[1])
    assert silent.wait(WAIT)
    assert not other.is_set()


def test_a_bug_in_one_ends_that_one_alone(worlds: list[World], monkeypatch: pytest.MonkeyPatch) -> None:
    one = loop()
    first, second = adopted(one, worlds[0]), adopted(one, worlds[1])
    until(lambda: len(one) == 2)
    [broken] = [each for each in one._running if each.carriage.client is worlds[0].lent]
    monkeypatch.setattr(broken.carriage, "turn", lambda *_: 1 / 0)
    worlds[0].daemon.sendall(record(DATA, ANSWER))
    assert first.wait(WAIT)
    worlds[1].daemon.sendall(record(DATA, ANSWER))
    assert worlds[1].client.recv(1000) == ANSWER
    assert not second.is_set()


def test_a_reset_waits_until_the_client_has_all(worlds: list[World]) -> None:
    one, done, left = loop(), threading.Event(), [3, 2, 1]
    one.when_flushed(lambda: left.pop(0) if left else 0, done.set)
    assert done.wait(WAIT)
    assert not left
