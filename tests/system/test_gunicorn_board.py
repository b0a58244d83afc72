"""Workers of the API share the connections that come: who holds the fewest takes the next one."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace

import pytest

from cloud.server.board import FREE_SECONDS, FRESH_SECONDS, PATIENCE_SECONDS, Board, Place
from tests.system.gunicorn_worker_kit import ROOT, Server, read_answer

NOW = 1000.0
LATER = NOW + PATIENCE_SECONDS / 2


def places(count: int, *held: int) -> list[Place]:
    board = Board(count)
    made = [place for _ in range(count) if (place := board.place(NOW)) is not None]
    assert len(made) == count
    for place, number in zip(made, held, strict=False):
        place.tell(number)
    return made


@pytest.mark.parametrize(("mine", "others", "gives_way"), [
    (0, (0,), False), (3, (3,), False), (3, (4,), False), (4, (3,), True), (1, (0, 9), True), (9, (9, 9), False),
    (9, (), False),
])  # fmt: skip
def test_a_worker_gives_way_to_one_that_holds_fewer(mine: int, others: tuple[int, ...], gives_way: bool) -> None:
    me, *_rest = places(1 + len(others), mine, *others)
    assert me.gives_way(mine, NOW) is gives_way


def test_it_takes_the_connection_when_the_other_one_has_not_in_time() -> None:
    me, _other = places(2, 5, 1)
    assert me.gives_way(5, NOW)
    assert me.gives_way(5, LATER)
    assert not me.gives_way(5, NOW + PATIENCE_SECONDS * 1.5)
    assert not me.gives_way(6, NOW + PATIENCE_SECONDS * 1.6), "and all that waits beside it: the other one is busy"
    me.none_waits()
    assert me.gives_way(7, NOW + PATIENCE_SECONDS * 1.7), "the next connection is another one's again"


def test_patience_ends_however_seldom_a_worker_looks() -> None:
    """A turn of a busy worker's loop may take longer than its patience."""
    me, _other = places(2, 5, 1)
    assert me.gives_way(5, NOW)
    assert not me.gives_way(5, NOW + 10 * PATIENCE_SECONDS)


def test_what_the_other_one_took_in_the_end_counts_for_nothing() -> None:
    me, other = places(2, 5, 1)
    assert me.gives_way(5, NOW)
    other.tell(7)
    assert not me.gives_way(5, LATER), "this one is mine"
    assert me.gives_way(8, NOW + 1), "and the next is not the one that was left a second ago"


def test_who_is_not_heard_of_or_takes_none_is_not_waited_for() -> None:
    me, hung = places(2, 5, 0)
    late = NOW + FRESH_SECONDS + 1
    assert not me.gives_way(5, late)
    hung.live(late)
    assert me.gives_way(5, late)
    hung.leave()
    assert not me.gives_way(5, late)
    assert me.least(late) is None


def test_a_worker_that_begins_is_not_waited_for_until_it_says_how_many_it_holds() -> None:
    me, newborn = places(2, 5)
    assert not me.gives_way(5, NOW)
    newborn.tell(0)
    assert me.gives_way(5, NOW)


def test_the_place_of_one_long_gone_is_another_s() -> None:
    board = Board(2)
    first, second = board.place(NOW), board.place(NOW)
    assert first is not None
    assert second is not None
    assert board.place(NOW + FREE_SECONDS - 1) is None
    second.live(NOW + FREE_SECONDS)
    third = board.place(NOW + FREE_SECONDS + 1)
    assert third is not None
    third.tell(7)
    assert second.least(NOW + FREE_SECONDS + 1) == 7


def test_a_dead_worker_holds_nothing_and_its_place_is_free_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hook in gunicorn's settings, in the master, which holds the same place."""
    monkeypatch.setattr(resource, "setrlimit", lambda *_limits: None)
    child_exit = run_path(str(ROOT / "cloud" / "gunicorn.conf.py"))["child_exit"]
    board = Board(2)
    me, dead = board.place(NOW), board.place(NOW)
    assert me is not None
    assert dead is not None
    dead.tell(0)
    assert me.gives_way(5, NOW)
    child_exit(None, SimpleNamespace(place=dead, pid=0))
    assert me.least(NOW) is None
    assert not me.gives_way(5, NOW)
    assert board.place(NOW) is not None
    child_exit(None, SimpleNamespace(place=None, pid=0))  # it came when all places were taken


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Server]:
    """A server of two workers, both of which have answered."""
    server = Server(tmp_path / "gunicorn.log", workers=2)
    try:
        server.wait_ready()
        seen: Counter[int] = Counter()
        while len(seen) < 2:
            seen += asked(server, 2)
        yield server
    finally:
        server.stop()


def asked(server: Server, count: int) -> Counter[int]:
    """So many connections at once, and one request on each: which process answered how many."""
    found: Counter[int] = Counter()
    with contextlib.ExitStack() as held:
        socks = [held.enter_context(server.connect()) for _ in range(count)]
        for sock in socks:
            sock.sendall(b"GET /facts HTTP/1.1\r\nHost: a\r\n\r\n")
        for sock in socks:
            found[json.loads(read_answer(sock)[2])["pid"]] += 1
    return found


@pytest.mark.system
def test_connections_that_come_at_once_are_shared(pair: Server) -> None:
    """Where the first to wake takes all, the other one has a quarter of its half; ten rounds in a row tell.

    On a machine so busy that a worker is not run for 20 ms some rounds are uneven too.
    """
    fewer: list[int] = []
    while len(fewer) < 10 or (sum(fewer[-10:]) < 60 and len(fewer) < 60):
        each = asked(pair, 20)
        fewer.append(min(each.values()) if len(each) == 2 else 0)
    assert sum(fewer[-10:]) >= 60, fewer


@pytest.mark.system
def test_a_worker_that_hangs_holds_up_no_connection(pair: Server) -> None:
    hung, other = list(asked(pair, 20) + asked(pair, 20))
    os.kill(hung, signal.SIGSTOP)
    try:
        assert asked(pair, 20) == {other: 20}
    finally:
        os.kill(hung, signal.SIGCONT)
