"""The pool of idle streams: what is kept, what is given out, and that nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest

from apps.proxy.raw import child_traceparent
from apps.tunnels.forwarder_pool import FRESH_SECONDS, StreamPool


class Fake:
    def __init__(self) -> None:
        self.alive = True
        self.node_url = "http://node"
        self.closed = False

    def close(self) -> None:
        assert not self.closed
        self.closed = True


def give(pool: StreamPool[Fake], now: float = 0.0, **fields: Any) -> Fake:
    stream = Fake()
    pool.give("s", stream, **{"announced": True, "reusable": True, "now": now} | fields)
    return stream


def test_the_last_one_used_comes_first() -> None:
    pool: StreamPool[Fake] = StreamPool()
    first, second = give(pool), give(pool)
    assert pool.take("s", idempotent=True, now=1) is second
    assert pool.take("s", idempotent=True, now=1) is first
    assert pool.take("s", idempotent=True, now=1) is None
    assert pool.take("other", idempotent=True, now=1) is None
    assert repr(pool) == "<StreamPool sessions=1 idle=0>"


def test_what_is_not_clean_is_closed() -> None:
    pool: StreamPool[Fake] = StreamPool()
    assert give(pool, reusable=False).closed
    assert len(pool) == 0


def test_what_died_or_idled_too_long_is_closed_and_passed_over() -> None:
    pool: StreamPool[Fake] = StreamPool(idle_seconds=10)
    old, fresh, dead = give(pool, 0), give(pool, 5), give(pool, 6)
    dead.alive = False
    assert pool.take("s", idempotent=True, now=11) is fresh
    assert dead.closed
    assert pool.take("s", idempotent=True, now=11) is None
    assert old.closed


def test_what_cannot_be_repeated_wants_a_fresh_one() -> None:
    pool: StreamPool[Fake] = StreamPool()
    stream = give(pool, 0)
    assert pool.take("s", idempotent=False, now=FRESH_SECONDS + 0.1) is None
    assert not stream.closed
    assert pool.take("s", idempotent=True, now=FRESH_SECONDS + 0.1) is stream


def test_a_silent_agent_must_show_it_first() -> None:
    pool: StreamPool[Fake] = StreamPool()
    stream = give(pool, 0, announced=False)
    assert pool.take("s", idempotent=True, now=0.05) is None
    assert pool.take("s", idempotent=False, now=0.2) is None
    assert pool.take("s", idempotent=True, now=0.2) is stream
    pool.give("s", stream, announced=False, reusable=True, now=1)
    assert pool.take("s", idempotent=True, now=1) is stream


def test_a_silent_agent_that_fails_once_is_done_with() -> None:
    pool: StreamPool[Fake] = StreamPool()
    give(pool, 0, announced=False)
    taken = pool.take("s", idempotent=True, now=1)
    assert taken is not None
    waiting = give(pool, 1, announced=False)
    pool.unanswered("s")
    assert waiting.closed
    assert give(pool, 2, announced=False).closed
    assert len(pool) == 0


def test_an_agent_that_named_keepalive_may_fail() -> None:
    pool: StreamPool[Fake] = StreamPool()
    give(pool)
    pool.unanswered("s")
    pool.unanswered("unknown")
    assert len(pool) == 1


@pytest.mark.parametrize(("per_session", "total", "kept"), [(2, 100, 2), (100, 3, 3)])
def test_it_is_bounded(per_session: int, total: int, kept: int) -> None:
    pool: StreamPool[Fake] = StreamPool(per_session=per_session, total=total)
    streams = [give(pool) for _ in range(5)]
    assert len(pool) == kept
    assert sum(not stream.closed for stream in streams) == kept


def test_the_housekeeper_closes_what_nobody_asks_for() -> None:
    pool: StreamPool[Fake] = StreamPool(idle_seconds=10)
    old, young, dead = give(pool, 0), give(pool, 8), give(pool, 9)
    dead.alive = False
    assert pool.expire(11) == 1
    assert (old.closed, young.closed, dead.closed) == (True, False, True)


def test_after_a_fork_nothing_is_touched() -> None:
    pool: StreamPool[Fake] = StreamPool()
    stream = give(pool)
    pool.abandon()
    assert (len(pool), stream.closed) == (0, False)
    assert pool.take("s", idempotent=True, now=0) is None


@pytest.mark.parametrize(
    "inbound",
    [
        None,
        "",
        "junk",
        "00-" + "0" * 32 + "-" + "b" * 16 + "-01",
        "00-" + "a" * 32 + "-" + "0" * 16 + "-01",
        "ff-a-b-c",
    ],
)
def test_a_new_trace_begins_where_there_is_none(inbound: str | None) -> None:
    one, two = child_traceparent(inbound), child_traceparent(inbound)
    assert one != two
    assert one.startswith("00-")
    assert one.endswith("-00")
    assert len(one) == 55


def test_a_trace_is_carried_on() -> None:
    parent = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"
    child = child_traceparent(parent)
    assert child.startswith("00-" + "a" * 32 + "-")
    assert child.endswith("-01")
    assert child != parent


def test_streams_of_a_daemon_that_drains_are_not_kept() -> None:
    pool: StreamPool[Fake] = StreamPool()
    idle, other = give(pool), Fake()
    other.node_url = "http://other"
    pool.give("t", other, announced=True, reusable=True, now=0)
    pool.leave(frozenset({"http://node"}))
    assert idle.closed
    assert not other.closed
    assert give(pool).closed, "one whose exchange ended later"
    assert pool.take("s", idempotent=True, now=1) is None
    assert pool.take("t", idempotent=True, now=1) is other
    pool.leave(frozenset())
    assert not give(pool).closed
    assert len(pool) == 1


def test_what_idles_of_a_session_that_takes_no_more_is_dropped() -> None:
    pool: StreamPool[Fake] = StreamPool()
    idle, other = give(pool), Fake()
    pool.give("t", other, announced=True, reusable=True, now=0)
    pool.drop("s")
    pool.drop("s")
    pool.drop("unknown")
    assert (idle.closed, other.closed, len(pool)) == (True, False, 1)
    assert not give(pool).closed, "its daemon may have been full only"
