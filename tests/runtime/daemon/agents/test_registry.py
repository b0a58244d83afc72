"""Which session of a device counts: all orders of arrival and departure."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from tunnel.daemon.agents.registry import Registry


@dataclass(frozen=True)
class One:
    id: str
    device_id: str
    epoch: int


@pytest.mark.parametrize("order", list(itertools.permutations([1, 2, 3])))
def test_the_highest_epoch_counts_in_every_order_of_arrival(order: tuple[int, ...]) -> None:
    registry: Registry[One] = Registry()
    closed: set[int] = set()
    for epoch in order:
        closed |= {one.epoch for one in registry.add(One(f"s{epoch}", "d", epoch))}
        newest = registry.of_device("d")
        assert newest is not None
        assert newest.epoch == max(one.epoch for one in registry.all())
    assert closed == {1, 2}


@pytest.mark.parametrize("leaving", list(itertools.permutations(["s1", "s2", "s3"])))
def test_whoever_leaves_in_whatever_order_nothing_is_left_over(leaving: tuple[str, ...]) -> None:
    registry: Registry[One] = Registry()
    for epoch in (1, 2, 3):
        registry.add(One(f"s{epoch}", "d", epoch))
    left = {1, 2, 3}
    for session in leaving:
        gone = registry.remove(session)
        assert gone is not None
        left.discard(gone.epoch)
        newest = registry.of_device("d")
        assert (newest.epoch if newest else 0) == max(left, default=0)
        assert registry.get(session) is None
        assert registry.remove(session) is None
    assert len(registry) == 0
    assert repr(registry) == "<Registry 0 sessions of 0 devices>"


def test_devices_do_not_touch_each_other() -> None:
    registry: Registry[One] = Registry()
    assert registry.add(One("a", "d1", 5)) == []
    assert registry.add(One("b", "d2", 1)) == []
    assert registry.of_device("d3") is None


@pytest.mark.parametrize("limit", [1, 2, 3, 10])
def test_pages_hold_every_session_once(limit: int) -> None:
    registry: Registry[One] = Registry()
    for name in "dacbe":
        registry.add(One(name, name, 1))
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        page, after = registry.page(after, limit)
        assert len(page) <= limit
        seen += [one.id for one in page]
    assert seen == list("abcde")


def test_the_digest_is_of_what_is_held_and_of_nothing_else() -> None:
    registry: Registry[One] = Registry()
    other: Registry[One] = Registry()
    empty = registry.digest
    for epoch in (1, 2, 3):
        registry.add(One(f"s{epoch}", f"d{epoch}", epoch))
        other.add(One(f"s{4 - epoch}", f"d{4 - epoch}", epoch))
    assert registry.digest == other.digest != empty
    registry.remove("s2")
    assert registry.digest != other.digest
    registry.remove("nobody")
    other.remove("s2")
    assert registry.digest == other.digest
    for session in ("s1", "s3"):
        registry.remove(session)
    assert registry.digest == empty
