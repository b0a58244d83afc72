"""Who takes a request: shares by weight, bounded load, benches; shown over made-up histories."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.clusters.dispatch import BENCH_FIRST_MS, BENCH_MAX_MS, Member, bench_ms, choose

WEIGHTS = st.lists(st.integers(1, 100), min_size=1, max_size=8)


class Cluster:
    """Members and the queue's time, changed by what is chosen, as the counters in Redis are."""

    def __init__(self, weights: list[int]) -> None:
        self.members = {f"m{index}": Member(f"m{index}", weight) for index, weight in enumerate(weights)}
        self.time = 0.0
        self.given = dict.fromkeys(self.members, 0)
        self.running: list[str] = []

    def take(self, *, among: set[str] | None = None) -> str:
        there = [member for name, member in self.members.items() if among is None or name in among]
        choice = choose(there, time=self.time, now_ms=0)
        assert choice is not None
        name, member = choice.device_id, self.members[choice.device_id]
        self.time = choice.start
        self.members[name] = replace(member, outstanding=member.outstanding + 1, tag=choice.tag)
        self.given[name] += 1
        self.running.append(name)
        return name

    def finish(self, index: int) -> None:
        name = self.running.pop(index)
        self.members[name] = replace(self.members[name], outstanding=self.members[name].outstanding - 1)

    def share(self, name: str) -> float:
        return self.given[name] / self.members[name].weight


@settings(deadline=None, max_examples=50)
@given(WEIGHTS, st.integers(1, 300))
def test_one_request_at_a_time_is_shared_by_weight(weights: list[int], requests: int) -> None:
    cluster = Cluster(weights)
    for _ in range(requests):
        cluster.take()
        cluster.finish(0)
    for one in cluster.members:
        for other in cluster.members:
            bound = 1 / cluster.members[one].weight + 1 / cluster.members[other].weight
            assert abs(cluster.share(one) - cluster.share(other)) <= bound + 1e-9


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 16))
def test_many_at_a_time_are_shared_by_weight(weights: list[int], at_once: int) -> None:
    """Requests of equal length: each round the oldest ends and another begins."""
    cluster = Cluster(weights)
    for _ in range(at_once):
        cluster.take()
    for _ in range(20 * sum(weights)):
        cluster.finish(0)
        cluster.take()
    rounds = sum(cluster.given.values()) / sum(weights)
    for name in cluster.members:
        assert cluster.share(name) == pytest.approx(rounds, abs=2 + at_once / cluster.members[name].weight)


@settings(deadline=None, max_examples=50)
@given(WEIGHTS, st.lists(st.integers(0, 1000), max_size=300))
def test_none_is_loaded_far_beyond_the_others(weights: list[int], history: list[int]) -> None:
    """Whatever ends when: who is given a request never stands more than one request above the least loaded."""
    cluster = Cluster(weights)
    for move in history:
        if move % 3 and cluster.running:
            cluster.finish(move % len(cluster.running))
            continue
        before = {name: member.outstanding / member.weight for name, member in cluster.members.items()}
        name = cluster.take()
        least = min((member.outstanding - (one == name) + 1) / member.weight for one, member in cluster.members.items())
        assert before[name] < least


def test_one_that_answers_nothing_gets_no_more_than_it_can_bear() -> None:
    cluster = Cluster([1, 1, 1])
    for _ in range(100):
        name = cluster.take()
        if name != "m0":
            cluster.finish(cluster.running.index(name))
    assert cluster.given["m0"] == 1
    assert abs(cluster.given["m1"] - cluster.given["m2"]) <= 2


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 100), st.integers(1, 100))
def test_one_that_comes_back_is_not_flooded(light: int, heavy: int) -> None:
    cluster = Cluster([light, heavy, heavy])
    for _ in range(200):
        cluster.take(among={"m1", "m2"})
        cluster.finish(0)
    cluster.given = dict.fromkeys(cluster.given, 0)
    for _ in range(3 * (light + 2 * heavy)):
        cluster.take()
        cluster.finish(0)
    assert cluster.given["m0"] == pytest.approx(3 * light, abs=3 + light / heavy)


def test_with_nobody_there_nobody_is_chosen() -> None:
    assert choose([], time=0, now_ms=0) is None


def test_a_benched_member_waits_and_is_probed() -> None:
    benched = Member("a", 100, failures=1, benched_until=500)
    for now, chosen, probe in ((499, "b", False), (500, "a", True)):
        choice = choose([benched, Member("b", 1, tag=9.0)], time=0, now_ms=now)
        assert choice is not None
        assert (choice.device_id, choice.probe) == (chosen, probe)


def test_when_all_are_benched_the_first_to_come_off_is_asked() -> None:
    members = [Member("a", 1, failures=3, benched_until=900), Member("b", 1, failures=1, benched_until=700)]
    choice = choose(members, time=0, now_ms=0)
    assert choice is not None
    assert (choice.device_id, choice.probe) == ("b", True)


def test_benches_grow_and_are_bounded() -> None:
    times = [bench_ms(failures) for failures in range(1, 80)]
    assert times[0] == BENCH_FIRST_MS
    assert times[1] == 2 * BENCH_FIRST_MS
    assert times == sorted(times)
    assert times[-1] == BENCH_MAX_MS
