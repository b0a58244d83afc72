"""Tickets: what stands for a login where a browser can send no header (api.md, "Tickets").

One use, 60 s, for one device and the paths below a prefix; dies with the login session that it was made by. Redis holds
it under its hash. `find` looks without spending, `spend` is a DEL: of many that race, one is told that it was there.
"""

from __future__ import annotations

import datetime as dt
import secrets
import uuid
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import unquote_to_bytes

from apps.common import redis
from tunnel.contract import hash_token

SECONDS: Final = 60
PREFIX_MAX: Final = 2048
_KEY: Final = redis.PREFIX + "ticket:"


@dataclass(frozen=True, slots=True)
class Ticket:
    """What a ticket is good for. `login` is the token hash of its login session, empty for the static user's."""

    key: str
    user_id: uuid.UUID
    login: str
    device_id: str
    path_prefix: str

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
    *, user_id: uuid.UUID, login: str, device_id: uuid.UUID, path_prefix: str, now: dt.datetime
) -> tuple[str, dt.datetime]:
    """A new ticket and when it ends. Raises the errors of Redis."""
    text = secrets.token_hex(16)
    pipe = redis.client().pipeline()
    key = _KEY + hash_token(text)
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
    return Ticket(key, uuid.UUID(fields["u"]), fields["l"], fields["d"], fields["p"])


def spend(ticket: Ticket) -> bool:
    """Spend the ticket. Returns whether this call was the one that did. Raises the errors of Redis."""
    return bool(redis.client().delete(ticket.key))
