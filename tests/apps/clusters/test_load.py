"""The counters of clusters on a real Valkey: what processes share, what ends by itself, who is benched."""

from __future__ import annotations

import threading
import time
from collections import Counter

import pytest

from apps.clusters import dispatcher, load
from apps.clusters.dispatch import BENCH_FIRST_MS, BENCH_MAX_MS, PROBE_MS
from apps.clusters.dispatcher import Dispatcher
from apps.clusters.models import Cluster, ClusterMember
from apps.clusters.selectors import Share, shares_of
from apps.common import redis
from apps.common.errors import DomainError
from apps.devices.models import Device
from apps.tunnels import registry
from tests.apps.internal.kit import issue, named

SHARES = [Share("a", 1), Share("b", 3)]


class Clock:
    """Redis' time in Unix ms, moved by the test."""

    def __init__(self, monkeypatch):
        self._monkeypatch = monkeypatch
        self.set(1_000_000)

    def set(self, now):
        self.now = now
        self._monkeypatch.setattr(load, "_CLOCK", f"local now = {now} ")


@pytest.fixture
def clock(monkeypatch):
    yield Clock(monkeypatch)
    load.leases.forget()


def take(cluster="c", shares=SHARES):
    lease = load.take(cluster, shares, dispatcher._decide)
    assert lease is not None
    return lease


def member(name, cluster="c", shares=SHARES):
    seen = load.look(cluster, shares)
    return next(one for one in seen.members if one.device_id == name)


def test_requests_under_way_are_counted_and_shared_by_weight(clock):
    held = [take() for _ in range(40)]
    assert Counter(lease.device_id for lease in held) == {"a": 10, "b": 30}
    assert (member("a").outstanding, member("b").outstanding) == (10, 30)
    for lease in held:
        load.leave(lease)
        load.leave(lease)
    assert (member("a").outstanding, member("b").outstanding) == (0, 0)


def test_a_device_bears_what_all_its_clusters_send(clock):
    take("one", [Share("a", 1)])
    assert member("a", "two").outstanding == 1
    assert take("two", [Share("a", 1), Share("z", 1)]).device_id == "z"


def test_the_counts_of_a_killed_process_vanish(clock):
    lost, kept = take(), take()
    load.leases.discard(lost)  # as if its process were gone
    clock.set(clock.now + load.LEASE_MS - 1)
    assert load.leases.renew() == 1
    clock.set(clock.now + 2)
    assert member(lost.device_id).outstanding + member(kept.device_id).outstanding == 1
    assert member(kept.device_id).outstanding == 1


def test_one_that_ends_while_it_is_renewed_is_not_counted_again(clock, monkeypatch):
    lease, run = take(), load._run

    def late(*args):
        monkeypatch.setattr(load, "_run", run)
        load.leave(lease)
        return run(*args)

    monkeypatch.setattr(load, "_run", late)
    assert load.leases.renew() == 1
    assert member(lease.device_id).outstanding == 0


@pytest.mark.parametrize("off", [-3600, 3600])
def test_a_host_whose_clock_is_off_drops_nobodys_counts_and_ends_no_bench(monkeypatch, off):
    shares = [Share("a", 1)]
    lease = take(shares=shares)
    load.bench(lease)
    real, real_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: real() + off)
    monkeypatch.setattr(time, "time_ns", lambda: real_ns() + off * 10**9)
    try:
        seen = member("a", shares=shares)
        assert (seen.outstanding, seen.failures) == (1, 1)
        until = seen.benched_until
        assert load.leases.renew() == 1
        probe = take(shares=shares)
        load.bench(probe)
        assert 0 < member("a", shares=shares).benched_until - until < 60_000
        ends = redis.client().zrange(f"{load.PREFIX}out:a", 0, -1, withscores=True)
        assert max(end for _, end in ends) - min(end for _, end in ends) < 60_000
    finally:
        load.leases.forget()


def test_many_threads_at_once_lose_no_count(clock):
    held, shares = [], [Share(f"d{index}", index + 1) for index in range(4)]

    def work():
        for _ in range(25):
            held.append(take("many", shares))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    given = Counter(lease.device_id for lease in held)
    assert sum(given.values()) == 200
    for share in shares:
        assert member(share.device_id, "many", shares).outstanding == given[share.device_id]
        assert given[share.device_id] == pytest.approx(20 * share.weight, abs=12)


def test_benches_grow_until_a_probe_goes_well(clock):
    shares = [Share("a", 1)]
    first = take(shares=shares)
    load.bench(first)
    assert (member("a").failures, member("a").benched_until) == (1, clock.now + BENCH_FIRST_MS)
    load.bench(first)  # another request that was under way and fails with it
    assert member("a").failures == 1
    clock.set(clock.now + BENCH_FIRST_MS)
    probe = take(shares=shares)
    assert probe.probe
    assert member("a").benched_until == clock.now + PROBE_MS  # no second one meanwhile
    load.bench(probe)
    assert (member("a").failures, member("a").benched_until) == (2, clock.now + 2 * BENCH_FIRST_MS)
    for _ in range(10):
        clock.set(member("a").benched_until)
        load.bench(take(shares=shares))
    assert member("a").benched_until == clock.now + BENCH_MAX_MS
    load.clear(first)
    assert (member("a").failures, member("a").benched_until) == (0, 0)


# --- one request's way ------------------------------------------------------------------------------------------------
@pytest.fixture
def served(daemon, alice):
    """A cluster of three, all online."""
    cluster = Cluster.objects.create(owner=alice, name="Hall")
    admitted = daemon.ask_all(*[named(issue(alice), f"b{index}", serial=f"S-{index}") for index in range(3)])
    for one in admitted:
        ClusterMember.objects.create(cluster=cluster, device_id=one["device_id"])
    yield cluster
    load.leases.forget()


def test_each_member_is_offered_a_request_once(served, alice):
    way = Dispatcher(alice.pk, served.pk)
    asked = [way.first().device_id]
    while (entry := way.next("AGENT_UNREACHABLE")) is not None:
        asked.append(entry.device_id)
    assert len(asked) == len(set(asked)) == 3
    way.over()
    shares = shares_of(alice.pk, served.pk)
    seen = load.look(str(served.pk), shares).members
    assert [(one.outstanding, one.failures) for one in seen] == [(0, 1)] * 3
    again = Dispatcher(alice.pk, served.pk)
    assert again.first().device_id in asked  # all are benched: one is asked all the same
    again.answered()
    again.over()
    seen = load.look(str(served.pk), shares).members
    assert sorted(one.failures for one in seen) == [0, 1, 1]


def test_while_all_are_on_their_way_whoever_is_back_first_is_given_and_counted(served, alice):
    entries = registry.lookup(str(one.device_id) for one in served.members.all())
    registry.remove([(entry.device_id, entry.session) for entry in entries.values()], drained=True)
    way = Dispatcher(alice.pk, served.pk)
    waited_for = way.first()
    assert waited_for.session == ""
    assert way.next("TUNNEL_DISCONNECTED") is None
    back = next(entry for entry in entries.values() if entry.device_id != waited_for.device_id)
    again = registry.Session(back.device_id, "again", back.epoch + 1, back.user_id, back.connected_at)
    assert registry.put(back.node, [again])[0].verdict == "ok"
    found = way.next("TUNNEL_DISCONNECTED")
    assert found is not None
    assert (found.device_id, found.session) == (back.device_id, "again")
    seen = load.look(str(served.pk), shares_of(alice.pk, served.pk)).members
    assert {one.device_id: (one.outstanding, one.failures) for one in seen}[back.device_id] == (1, 0)
    assert way.next("AGENT_UNREACHABLE") is None, "it is asked once"
    way.over()


def test_what_is_no_fault_of_the_member_benches_nobody(served, alice):
    for code in ("", "PAYLOAD_TOO_LARGE", "OVERLOADED", "UNAUTHENTICATED"):
        way = Dispatcher(alice.pk, served.pk)
        way.first()
        way.over(code)
        way.over("TUNNEL_DISCONNECTED")  # it is over already
    seen = load.look(str(served.pk), shares_of(alice.pk, served.pk)).members
    assert [(one.outstanding, one.failures) for one in seen] == [(0, 0)] * 3


def test_who_is_not_there_is_not_asked(served, alice, bob, alice_api):
    with pytest.raises(DomainError) as caught:
        Dispatcher(bob.pk, served.pk)
    assert caught.value.code == "NOT_FOUND"
    gone, *left = (str(one.device_id) for one in served.members.order_by("device_id"))
    assert alice_api("DELETE", f"/api/devices/{gone}").status == 200
    assert {share.device_id for share in shares_of(alice.pk, served.pk)} == set(left)
    for device in left:
        Device.objects.filter(pk=device).update(deleted_at="2026-01-01T00:00:00Z")
    with pytest.raises(DomainError) as caught:
        Dispatcher(alice.pk, served.pk).first()
    assert (caught.value.code, caught.value.retry_after) == ("TUNNEL_DISCONNECTED", 5)
