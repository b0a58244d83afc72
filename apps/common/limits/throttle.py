"""Throttles that all processes share (api.md, "Throttles"): how often something may happen in a minute.

A window begins with the first thing counted in it and ends a minute later, by Redis's own clock, so that `Retry-After`
is exact and all hosts agree. Two windows may touch: at worst twice the limit falls into one minute. The counters are
changed by scripts, so that of any number at once no more than the limit pass. With Redis down nothing passes: its
errors become CACHE_UNAVAILABLE, and nothing falls back to a memory of its own.

It knows Redis and the settings `VISIONA_THROTTLE_*` (0: no limit), and neither users nor HTTP.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.conf import settings

from apps.common import redis
from apps.common.errors import DomainError
from apps.common.redis import scripts

WINDOW_SECONDS: Final = 60
_KEY: Final = redis.PREFIX + "throttle:"

# KEYS: counters. ARGV: 1 to count or 0 to look, window ms, then each limit. Answers {0, when each window ends (ms)…}
# if none is full, else {which, ms left}: of several full ones that which stays so for longest.
_TAKE: Final = """
local full, left = 0, -1
for i, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or 0) >= tonumber(ARGV[i + 2]) then
    local rest = redis.call('PTTL', key)
    if rest > left then full, left = i, rest end
  end
end
if full > 0 then return {full, left} end
local answer = {0}
if ARGV[1] == '1' then
  for i, key in ipairs(KEYS) do
    if redis.call('INCR', key) == 1 then redis.call('PEXPIRE', key, ARGV[2]) end
    answer[i + 1] = redis.call('PEXPIRETIME', key)
  end
end
return answer
"""
# KEYS: counters. ARGV: when the window that was counted in ends (ms). One that has ended meanwhile is left alone.
_GIVE_BACK: Final = """
for i, key in ipairs(KEYS) do
  if redis.call('PEXPIRETIME', key) == tonumber(ARGV[i]) then redis.call('DECR', key) end
end
"""


@dataclass(frozen=True, slots=True)
class Window:
    """One counter: at most `limit` in WINDOW_SECONDS; 0: no limit."""

    key: str
    limit: int


@dataclass(frozen=True, slots=True)
class Taken:
    """The count that `take` made, to be given back if the call turns out not to count."""

    keys: tuple[str, ...]
    ends: tuple[int, ...]

    def give_back(self) -> None:
        """Takes the count back from the windows that still run. Raises the errors of Redis."""
        if self.keys:
            scripts.run(_GIVE_BACK, self.keys, self.ends)


def window(scope: str, *parts: str) -> Window:
    """The counter of `VISIONA_THROTTLE_<scope>` for whoever `parts` name. They stand in Redis as they are."""
    limit: int = settings.VISIONA[f"THROTTLE_{scope}"]
    return Window(_KEY + ":".join((scope.lower(), *parts)), limit)


def take(*windows: Window) -> Taken:
    """Counts one in each window. Raises DomainError RATE_LIMITED, having counted none, if one of them is full."""
    real = [each for each in windows if each.limit]
    answer = _ask(real, count=True)
    return Taken(tuple(each.key for each in real), tuple(answer))


def check(*windows: Window) -> None:
    """Raises DomainError RATE_LIMITED if one of the windows is full; counts nothing."""
    _ask([each for each in windows if each.limit], count=False)


def full(windows: Sequence[Window]) -> list[int | None]:
    """For each window the seconds until it ends if it is full, else None. Counts nothing. One or two calls to Redis."""
    if not any(each.limit for each in windows):
        return [None] * len(windows)
    used = redis.client().mget([each.key for each in windows])
    over = {
        each.key: 0
        for each, count in zip(windows, used, strict=True)
        if each.limit and count is not None and int(count) >= each.limit
    }
    if over:
        pipe = redis.client().pipeline(transaction=False)
        for key in over:
            pipe.pttl(key)
        over = {key: _seconds(left) for key, left in zip(over, pipe.execute(), strict=True)}
    return [over.get(each.key) for each in windows]


def count(windows: Sequence[Window]) -> None:
    """Counts one in each that has a limit, whether it is full or not. One call to Redis."""
    real = [each for each in windows if each.limit]
    if not real:
        return
    pipe = redis.client().pipeline(transaction=False)
    for each in real:
        pipe.incr(each.key)
        pipe.expire(each.key, WINDOW_SECONDS, nx=True)
    pipe.execute()


def refusal(limit: int, milliseconds: float) -> DomainError:
    """The RATE_LIMITED error, with its headers, for a window of `limit` that ends in so many milliseconds."""
    seconds = _seconds(milliseconds)
    headers = {"RateLimit-Limit": str(limit), "RateLimit-Remaining": "0", "RateLimit-Reset": str(seconds)}
    return DomainError("RATE_LIMITED", retry_after=seconds, headers=headers)


def by_secret(text: str) -> str:
    """A hash of a text that must not be readable in Redis (an e-mail, a token), for use in a window's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def count_user(request: Any, scope: str) -> None:
    """Counts a DRF request of a known user, unless its credential's look-up did so already. Raises RATE_LIMITED.

    `request.counted` tells so: `apps.accounts` counts in the one call to Redis that finds the login.
    """
    user_id = getattr(request.user, "pk", None)
    if user_id is not None and not getattr(request, "counted", False):
        take(window(scope, str(user_id)))


def _ask(real: Sequence[Window], *, count: bool) -> list[int]:
    if not real:
        return []
    limits = [each.limit for each in real]
    answer: list[int] = scripts.run(_TAKE, [each.key for each in real], [int(count), WINDOW_SECONDS * 1000, *limits])
    if answer[0]:
        raise refusal(limits[answer[0] - 1], answer[1])
    return answer[1:]


def _seconds(milliseconds: float) -> int:
    return max(1, math.ceil(milliseconds / 1000))
