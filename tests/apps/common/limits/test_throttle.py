"""Throttles: exact under concurrency, windows that end, addresses that count together, no fallback."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import redis.exceptions

from apps.common import redis as our_redis
from apps.common.errors import DomainError
from apps.common.limits import throttle
from apps.common.limits.throttle import Window


def window(limit: int = 3, name: str = "one") -> Window:
    return Window(f"visiona:throttle:test:{name}", limit)


def passed(*windows: Window) -> bool:
    try:
        throttle.take(*windows)
    except DomainError:
        return False
    return True


def end(each: Window) -> None:
    our_redis.client().pexpire(each.key, 1)
    while our_redis.client().exists(each.key):
        pass


def test_no_more_than_the_limit_pass_and_the_next_window_is_open():
    assert [passed(window()) for _ in range(5)] == [True] * 3 + [False] * 2
    end(window())
    assert passed(window())


def test_of_many_at_once_just_the_limit_pass():
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: passed(window(limit=20)), range(60))) == 20


def test_the_refusal_tells_when():
    for _ in range(3):
        throttle.take(window())
    our_redis.client().pexpire(window().key, 41_500)
    with pytest.raises(DomainError, match="RATE_LIMITED") as refused:
        throttle.take(window())
    assert refused.value.retry_after == 42
    assert refused.value.headers == {"RateLimit-Limit": "3", "RateLimit-Remaining": "0", "RateLimit-Reset": "42"}


def test_of_several_windows_none_is_counted_in_when_one_is_full():
    narrow, wide = window(1, "narrow"), window(5, "wide")
    assert [passed(narrow, wide) for _ in range(9)] == [True] + [False] * 8
    assert our_redis.client().get(wide.key) == "1"


def test_what_is_given_back_was_never_counted():
    for _ in range(9):
        throttle.take(window()).give_back()
    assert our_redis.client().get(window().key) == "0"
    assert our_redis.client().pttl(window().key) > 0


def test_nothing_is_given_back_to_a_later_window():
    taken = throttle.take(window())
    end(window())
    throttle.take(window())
    our_redis.client().pexpire(window().key, 50_000)
    taken.give_back()
    assert our_redis.client().get(window().key) == "1"


def test_looking_counts_nothing():
    for _ in range(9):
        throttle.check(window())
    assert throttle.full([window(), window(0)]) == [None, None]
    for _ in range(3):
        throttle.count([window()])
    with pytest.raises(DomainError):
        throttle.check(window())
    assert throttle.full([window(), window(9, "wide"), window(0, "off"), window(3, "other")]) == [60, None, None, None]


def test_no_limit_asks_nobody(monkeypatch):
    with monkeypatch.context() as without:
        without.setattr(throttle.scripts, "client", None)
        throttle.take(window(0)).give_back()
        throttle.check(window(0))
        throttle.count([window(0)])
        assert throttle.full([window(0)]) == [None]


def test_without_redis_nothing_passes(monkeypatch):
    def broken(*args, **kwargs):
        raise redis.exceptions.ConnectionError("away")

    monkeypatch.setattr(throttle.scripts, "run", broken)
    with pytest.raises(redis.exceptions.ConnectionError):
        throttle.take(window())


def test_a_secret_is_not_to_be_read_in_redis():
    assert "alice" not in throttle.by_secret("alice@example.com")
    assert throttle.by_secret("a") != throttle.by_secret("b")
