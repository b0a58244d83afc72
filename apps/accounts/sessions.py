"""Login sessions in Redis on two clocks (data.md, "Login sessions"): opaque tokens, keyed by their hash.

Every change of one is a Lua script, so that a use that races with a logout never brings a session back.
It knows no user but by id, and no HTTP.
"""

import datetime as dt
import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, cast

from django.conf import settings

from apps.common import redis
from apps.common.ids import uuid7
from apps.common.limits import throttle
from apps.common.redis import scripts
from tunnel.contract import LOGIN_PREFIX, hash_token, new_token

PUSH_SECONDS: Final = 60
"""A use pushes the idle clock at most this often, so that a busy client does not write on every call."""

_KEY: Final = redis.PREFIX + "login:"
_INDEX: Final = redis.PREFIX + "logins:"
_ADOPTED: Final = redis.PREFIX + "adopted:"
_ENDED: Final = redis.PREFIX + "adopted-ended:"
_FLOOR: Final = redis.PREFIX + "adopted-floor:"

# KEYS: session, index of the user. ARGV: hash, now, idle s, absolute s, then the hash's fields and values.
_CREATE: Final = """
redis.call('HSET', KEYS[1], unpack(ARGV, 5))
redis.call('PEXPIRE', KEYS[1], math.ceil(math.min(ARGV[3], ARGV[4]) * 1000))
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[2] + ARGV[4], ARGV[1])
redis.call('PEXPIRE', KEYS[2], math.ceil(ARGV[4] * 1000))
"""
# KEYS: session. ARGV: now, idle s, push s. Answers the fields, or nothing for a session that is over.
_USE: Final = """
local fields = redis.call('HGETALL', KEYS[1])
if #fields == 0 then return fields end
local now, idle = tonumber(ARGV[1]), tonumber(ARGV[2])
local used, ends = unpack(redis.call('HMGET', KEYS[1], 'last_used_at', 'expires_at'))
if now >= tonumber(ends) or now - tonumber(used) >= idle then
  redis.call('DEL', KEYS[1])
  return {}
end
if now - tonumber(used) >= tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[1], 'last_used_at', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], math.ceil(math.min(idle, tonumber(ends) - now) * 1000))
  return redis.call('HGETALL', KEYS[1])
end
return fields
"""
# As _USE, and the call is counted for the session's user. ARGV goes on: prefix of the counters, window ms, limit.
# Answers {fields, ms left of a window that is full, else -1}.
_USE_COUNTED: Final = (
    "local function use()"
    + _USE
    + """end
local fields = use()
if #fields == 0 then return {fields, -1} end
local counter = ARGV[4] .. redis.call('HGET', KEYS[1], 'user_id')
local used = redis.call('INCR', counter)
if used == 1 then redis.call('PEXPIRE', counter, ARGV[5]) end
return {fields, used > tonumber(ARGV[6]) and redis.call('PTTL', counter) or -1}
"""
)
# KEYS: index. ARGV: prefix of the session keys, now, idle s. Answers [hash, fields]…; what is over leaves the index.
_LIST: Final = """
local found = {}
for _, hash in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local fields = redis.call('HGETALL', ARGV[1] .. hash)
  local alive = #fields > 0
  if alive then
    local used, ends = unpack(redis.call('HMGET', ARGV[1] .. hash, 'last_used_at', 'expires_at'))
    alive = tonumber(ARGV[2]) < tonumber(ends) and tonumber(ARGV[2]) - tonumber(used) < tonumber(ARGV[3])
  end
  if alive then
    found[#found + 1] = {hash, fields}
  else
    redis.call('ZREM', KEYS[1], hash)
  end
end
return found
"""
# KEYS: session, index of the adopted, its own end, its holder's floor. ARGV: hash, now, idle s, issued at, ends at,
# then the fields. Answers 1; 0 if it was ended here, or with all of its holder's that were issued until then.
_ADOPT: Final = """
local floor = redis.call('GET', KEYS[4])
if redis.call('EXISTS', KEYS[3]) == 1 or (floor and tonumber(ARGV[4]) <= tonumber(floor)) then return 0 end
local left = math.ceil(math.min(tonumber(ARGV[3]), ARGV[5] - ARGV[2]) * 1000)
redis.call('HSET', KEYS[1], unpack(ARGV, 6))
redis.call('PEXPIRE', KEYS[1], left)
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[1])
redis.call('PEXPIRE', KEYS[2], math.max(left, redis.call('PTTL', KEYS[2])))
return 1
"""
# KEYS: session, index. ARGV: hash. Answers 1 if there was one.
_END: Final = """
redis.call('ZREM', KEYS[2], ARGV[1])
return redis.call('DEL', KEYS[1])
"""
# KEYS: index. ARGV: prefix of the session keys, the hash that stays or nothing. Answers the hashes that were ended.
_END_ALL: Final = """
local ended = {}
for _, hash in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  if hash ~= ARGV[2] then
    if redis.call('DEL', ARGV[1] .. hash) == 1 then ended[#ended + 1] = hash end
    redis.call('ZREM', KEYS[1], hash)
  end
end
return ended
"""


@dataclass(frozen=True, slots=True)
class LoginSession:
    """A login. `id` is public; `token_hash` is its key, and the token itself is known to the client alone."""

    id: uuid.UUID
    user_id: uuid.UUID
    token_hash: str
    created_at: dt.datetime
    last_used_at: dt.datetime
    expires_at: dt.datetime
    address: str
    agent: str
    holder: str = ""
    """Of a credential that another issuer made (`adopt`): whose it is there. Empty for a login of ours."""


def idle_seconds() -> int:
    """How long a login may lie unused."""
    seconds: int = settings.VISIONA["SESSION_IDLE_SECONDS"]
    return seconds


def absolute_seconds() -> int:
    """How long a login may last in any case."""
    seconds: int = settings.VISIONA["SESSION_ABSOLUTE_SECONDS"]
    return seconds


def create(*, user_id: uuid.UUID, address: str, agent: str, now: dt.datetime) -> tuple[str, LoginSession]:
    """A new login: its token, which is shown once, and the session."""
    token = new_token(LOGIN_PREFIX)
    session = LoginSession(
        id=uuid7(),
        user_id=user_id,
        token_hash=hash_token(token),
        created_at=now,
        last_used_at=now,
        expires_at=now + dt.timedelta(seconds=absolute_seconds()),
        address=address,
        agent=agent[:400],
    )
    fields = {
        "id": str(session.id),
        "user_id": str(user_id),
        "created_at": now.timestamp(),
        "last_used_at": now.timestamp(),
        "expires_at": session.expires_at.timestamp(),
        "address": session.address,
        "agent": session.agent,
    }
    flat = [part for pair in fields.items() for part in pair]
    scripts.run(
        _CREATE,
        [_KEY + session.token_hash, _INDEX + str(user_id)],
        [session.token_hash, now.timestamp(), idle_seconds(), absolute_seconds(), *flat],
    )
    return token, session


def use(token: str, *, now: dt.datetime) -> LoginSession | None:
    """The live session of a token, its idle clock pushed; None if unknown, logged out, or over on either clock."""
    return use_hash(hash_token(token), now=now)


def use_counted(token: str, *, scope: str, now: dt.datetime) -> LoginSession | None:
    """As `use`, and the call is counted for its user in `VISIONA_THROTTLE_<scope>`. Raises RATE_LIMITED. One call."""
    window = throttle.window(scope, "")
    if not window.limit:
        return use(token, now=now)
    token_hash = hash_token(token)
    fields, left = scripts.run(
        _USE_COUNTED,
        [_KEY + token_hash],
        [now.timestamp(), idle_seconds(), PUSH_SECONDS, window.key, throttle.WINDOW_SECONDS * 1000, window.limit],
    )
    if left >= 0:
        raise throttle.refusal(window.limit, left)
    return _session(token_hash, fields) if fields else None


def use_hash(token_hash: str, *, now: dt.datetime) -> LoginSession | None:
    """As `use`, for whoever kept the hash of the token alone."""
    fields = scripts.run(_USE, [_KEY + token_hash], [now.timestamp(), idle_seconds(), PUSH_SECONDS])
    return _session(token_hash, fields) if fields else None


def use_in(pipe: Any, token_hash: str, *, now: dt.datetime) -> Callable[[Any], LoginSession | None]:
    """As `use_hash` within a pipeline, to be asked together with something else; reads the pipeline's answer."""
    pipe.eval(_USE, 1, _KEY + token_hash, now.timestamp(), idle_seconds(), PUSH_SECONDS)
    return lambda fields: _session(token_hash, fields) if fields else None


def list_of(user_id: uuid.UUID, *, now: dt.datetime) -> list[LoginSession]:
    """The user's live sessions."""
    found = scripts.run(_LIST, [_INDEX + str(user_id)], [_KEY, now.timestamp(), idle_seconds()])
    return [_session(token_hash, fields) for token_hash, fields in found]


def adopt(
    *, token_hash: str, user_id: uuid.UUID, holder: str, issued_at: float, expires_at: float, now: dt.datetime
) -> LoginSession | None:
    """A session for a credential that another issuer made and that was found good: from then on it can be named by its
    hash like a login, and ends with its own end. Again: the same. None if it was ended here before. One call.

    Args:
        holder: names whose it is at its issuer; `end_holder` ends all of them.
        issued_at, expires_at: Unix seconds.
    """
    session = LoginSession(
        id=uuid.UUID(hex=token_hash[:32]),
        user_id=user_id,
        token_hash=token_hash,
        created_at=_time(str(issued_at)),
        last_used_at=now,
        expires_at=_time(str(expires_at)),
        address="",
        agent="",
        holder=holder,
    )
    fields = {
        "id": str(session.id),
        "user_id": str(user_id),
        "created_at": issued_at,
        "last_used_at": now.timestamp(),
        "expires_at": expires_at,
        "address": "",
        "agent": "",
        "holder": holder,
    }
    flat = [part for pair in fields.items() for part in pair]
    taken = scripts.run(
        _ADOPT,
        [_KEY + token_hash, _ADOPTED + str(user_id), _ENDED + token_hash, _FLOOR + holder],
        [token_hash, now.timestamp(), idle_seconds(), issued_at, expires_at, *flat],
    )
    return session if taken else None


def is_ended(token_hash: str, holder: str, *, issued_at: float) -> bool:
    """Whether `adopt` would refuse the credential, since it, or all of its holder's, were ended here."""
    ended, floor = cast("list[str | None]", redis.client().mget([_ENDED + token_hash, _FLOOR + holder]))
    return ended is not None or (floor is not None and issued_at <= float(floor))


def end_holder(holder: str, *, now: dt.datetime) -> None:
    """Whatever was issued to the holder until now is adopted no more; kept for longer than any such credential."""
    redis.client().set(_FLOOR + holder, now.timestamp(), ex=absolute_seconds())


def end(session: LoginSession) -> bool:
    """Ends one session; whether it was still there (of two that race, one is told True)."""
    if session.holder:
        redis.client().set(_ENDED + session.token_hash, "1", exat=math.ceil(session.expires_at.timestamp()))
    return bool(scripts.run(_END, [_KEY + session.token_hash, _INDEX + str(session.user_id)], [session.token_hash]))


def end_all(user_id: uuid.UUID) -> int:
    """Ends every session of a user, what was adopted too; how many logins of ours there were."""
    scripts.run(_END_ALL, [_ADOPTED + str(user_id)], [_KEY, ""])
    return len(scripts.run(_END_ALL, [_INDEX + str(user_id)], [_KEY, ""]))


def end_adopted(user_id: uuid.UUID) -> list[str]:
    """Ends what was adopted for a user; the token hashes. Those that are still good are adopted again when used."""
    ended: list[str] = scripts.run(_END_ALL, [_ADOPTED + str(user_id)], [_KEY, ""])
    return ended


def end_others(user_id: uuid.UUID, keep: str) -> list[str]:
    """Ends every login of a user but the one whose token hash is `keep` (empty: all); the token hashes of the ended."""
    ended: list[str] = scripts.run(_END_ALL, [_INDEX + str(user_id)], [_KEY, keep])
    return ended


def _session(token_hash: str, flat: list[str]) -> LoginSession:
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    return LoginSession(
        id=uuid.UUID(fields["id"]),
        user_id=uuid.UUID(fields["user_id"]),
        token_hash=token_hash,
        created_at=_time(fields["created_at"]),
        last_used_at=_time(fields["last_used_at"]),
        expires_at=_time(fields["expires_at"]),
        address=fields["address"],
        agent=fields["agent"],
        holder=fields.get("holder", ""),
    )


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromtimestamp(float(text), dt.UTC)
