"""Tickets: what stands for a login where a browser can send no header (api.md, "Tickets").

One use, 60 s, for one device and the paths below a prefix; dies with the login session that it was made by. A reusable
one, for what a browser asks for again and again, lives for 15 minutes. Redis holds it under its hash. `find` looks
without spending, `spend` is a DEL: of many that race, one is told that it was there.
"""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote_to_bytes

from apps.common import redis
from apps.common.redis import scripts
from tunnel.contract import hash_token

SECONDS: Final = 60
REUSABLE_SECONDS: Final = 900
REUSABLE_MAX: Final = 100
"""Reusable ones of a user that live at once."""
PREFIX_MAX: Final = 2048
_KEY: Final = redis.PREFIX + "ticket:"
_LIVE: Final = redis.PREFIX + "tickets:"
"""Per user: the keys of the reusable ones by the second in which they end."""
_ISSUE: Final = """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then
  return math.ceil(redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] - ARGV[1])
end
redis.call('HSET', KEYS[1], 'u', ARGV[4], 'l', ARGV[5], 'd', ARGV[6], 'p', ARGV[7], 'r', '1')
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[1] + ARGV[2], KEYS[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return 0
"""


class TooMany(Exception):
    """The user has as many as may live at once; `seconds` until the first of them ends."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"the first ends in {seconds} s")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket is good for. `login` is the token hash of its login session, empty for the static user's."""

    key: str
    user_id: uuid.UUID
    login: str
    device_id: str
    path_prefix: str
    reusable: bool = False
    """Good for any number of GET and HEAD without an upgrade, till it ends."""

    def covers(self, path: bytes) -> bool:
        """Whether `path` (raw, as the box will see it, without a query) lies under the prefix, by whole segments.

        Segments are compared decoded, but split raw: `%2F` makes no segment.
        """
        wanted = [unquote_to_bytes(part) for part in self.path_prefix.encode().split(b"/")]
        while wanted and not wanted[-1]:
            wanted.pop()
        found = [unquote_to_bytes(part) for part in path.split(b"/")]
        return found[: len(wanted)] == wanted


def issue(
    *,
    user_id: uuid.UUID,
    login: str,
    device_id: uuid.UUID,
    path_prefix: str,
    now: dt.datetime,
    reusable: bool = False,
) -> tuple[str, dt.datetime]:
    """A new ticket and when it ends. Raises TooMany, of reusable ones; the errors of Redis."""
    text = secrets.token_hex(16)
    key = _KEY + hash_token(text)
    if reusable:
        live, moment = f"{_LIVE}{user_id}", now.timestamp()
        of = (str(user_id), login, str(device_id), path_prefix)
        wait = scripts.run(_ISSUE, (key, live), (moment, REUSABLE_SECONDS, REUSABLE_MAX, *of))
        if wait:
            raise TooMany(int(wait))
        return text, now + dt.timedelta(seconds=REUSABLE_SECONDS)
    pipe = redis.client().pipeline()
    pipe.hset(key, mapping={"u": str(user_id), "l": login, "d": str(device_id), "p": path_prefix})
    pipe.expire(key, SECONDS)
    pipe.execute()
    return text, now + dt.timedelta(seconds=SECONDS)


def find(text: str) -> Ticket | None:
    """Look a ticket up without spending it; None: unknown, spent or expired. Raises the errors of Redis."""
    key = _KEY + hash_token(text)
    fields = cast("dict[str, str]", redis.client().hgetall(key))
    if not fields:
        return None
    return Ticket(key, uuid.UUID(fields["u"]), fields["l"], fields["d"], fields["p"], reusable="r" in fields)


def spend(ticket: Ticket) -> bool:
    """Spend the ticket. Returns whether this call was the one that did. Raises the errors of Redis."""
    return bool(redis.client().delete(ticket.key))
