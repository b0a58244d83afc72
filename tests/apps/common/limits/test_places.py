"""Places for threads: whoever waits is called, gives up in time, or is pushed out; every place comes back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest
from prometheus_client import REGISTRY

from apps.common.limits import places
from apps.common.limits.places import Places


def until(true: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(2000):
        if true():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come about")


def queued(pool: Places, count: int) -> bool:
    return pool._shares.waiting == count


def holds(pool: Places, owner: str) -> bool:
    return pool._shares.held(owner) == 1


def test_who_holds_least_is_next_and_who_waits_in_vain_leaves_nothing() -> None:
    pool = Places("test", lambda: 3)
    got: list[str] = []

    def ask(owner: str) -> None:
        with pool.place(owner, seconds=20) as held:
            got.append(owner if held else "-")

    assert [pool.enter("a"), pool.enter("a"), pool.enter("b")] == [True, True, True]
    assert not pool.enter("c", seconds=0.01)
    threads = []
    for owner in ("a", "b", "c"):
        threads.append(threading.Thread(target=ask, args=(owner,)))
        threads[-1].start()
        until(partial(queued, pool, len(threads)))
    pool.leave("a")
    threads[2].join(20)
    assert got == ["c"], "the others have one each, and the last place is for who has none"
    pool.leave("a")
    for thread in threads:
        thread.join(20)
    assert sorted(got) == ["a", "b", "c"]
    pool.leave("b")
    assert repr(pool) == "<Places test <Shares 0 of 3 owners=0 waiting=0>>"


def test_a_place_comes_back_where_its_holder_is_collected_amid_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the same thread, with the lock held: it would wait for itself."""
    pool = Places("test", lambda: 4)
    pool.enter("a")
    told = pool._tell

    def collect() -> None:
        monkeypatch.setattr(pool, "_tell", told)
        pool.leave("a")

    monkeypatch.setattr(pool, "_tell", collect)
    pool.enter("b")
    assert (pool.taken, holds(pool, "b")) == (1, True)


def test_a_crowd_pushes_out_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "QUEUE", 2)
    pool = Places("test", lambda: 1)
    pool.enter("a")
    answers: list[bool] = []
    crowd = [threading.Thread(target=lambda: answers.append(pool.enter("a", seconds=20))) for _ in range(2)]
    for number, thread in enumerate(crowd):
        thread.start()
        until(partial(queued, pool, number + 1))
    assert not pool.enter("a", seconds=20), "of whoever crowds the queue the next is refused at once"
    other = threading.Thread(target=lambda: answers.append(pool.enter("b", seconds=20)))
    other.start()
    until(lambda: answers == [False])
    for owner in ("a", "b", "a"):
        until(partial(holds, pool, owner))
        pool.leave(owner)
    for thread in (*crowd, other):
        thread.join(20)
    assert sorted(answers) == [False, True, True]


def test_the_limit_is_the_one_of_now_and_metrics_tell_who_holds_what() -> None:
    limit = 1
    pool = Places("told", lambda: limit)
    assert pool.enter("a")
    assert not pool.may_enter("b")
    limit = 4
    assert pool.may_enter("b")
    assert pool.enter("a")
    told = {"pool": "told", "owners": "user"}
    assert REGISTRY.get_sample_value("visiona_api_places", told) == 2
    assert REGISTRY.get_sample_value("visiona_api_places_largest", {"pool": "told"}) == 2
    assert [pool.enter("a") for _ in range(2)] == [True, False], "the last place is for others"
    assert REGISTRY.get_sample_value("visiona_api_places_refused_total", told) == 1
