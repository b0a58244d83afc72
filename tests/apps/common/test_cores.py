"""Which core a worker's threads run on."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from apps.common import cores as module
from apps.common.cores import Cores, free_number

GIVEN = frozenset(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(GIVEN) < 2, reason="this machine gives us one core")


def alone(work: Callable[[], Any]) -> Any:
    """In a thread of its own: where it runs is a thread's own matter."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(30)


@pytest.mark.parametrize(
    ("used", "number"), [([], 0), ([0], 1), ([1], 0), ([0, 1], 2), ([2, 0], 1), ([0, 1, 2, 4], 3), ([5], 0)]
)
def test_the_number_of_who_is_gone_is_given_again(used: list[int], number: int) -> None:
    assert free_number(used) == number


@several
def test_a_thread_stays_and_those_that_it_starts_do() -> None:
    def work() -> None:
        mine = Cores(GIVEN, first=0)
        mine.stay(1)
        assert os.sched_getaffinity(0) == {sorted(GIVEN)[1]} == {mine.home}
        assert alone(lambda: os.sched_getaffinity(0)) == {mine.home}
        with mine.anywhere():
            assert os.sched_getaffinity(0) == GIVEN
        with pytest.raises(ZeroDivisionError), mine.anywhere():
            1 / 0  # noqa: B018 - the fault is what is wanted
        assert os.sched_getaffinity(0) == {mine.home}

    alone(work)


@several
def test_neighbours_have_different_cores_whatever_the_first_is() -> None:
    for first in range(5):

        def home(number: int, first: int = first) -> int | None:
            mine = Cores(GIVEN, first)
            alone(lambda: mine.stay(number))
            return mine.home

        assert {home(number) for number in range(len(GIVEN))} == GIVEN


def test_where_there_is_no_choice_nothing_is_chosen() -> None:
    for given in (frozenset[int](), frozenset({0})):
        mine = Cores(given)
        mine.stay(3)
        assert mine.home is None
        with mine.anywhere():
            assert frozenset(os.sched_getaffinity(0)) == GIVEN


def test_a_kernel_that_forbids_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: int, _cores: object) -> None:
        raise PermissionError

    monkeypatch.setattr(module.os, "sched_setaffinity", refuse)
    mine = Cores(frozenset({0, 1}))
    mine.stay(0)
    assert mine.home is None
    with mine.anywhere():
        assert mine.home is None
