"""The tunnel registry in Redis (data.md, "Tunnel registry"): who is connected, where, since when.

It knows ids only: neither users nor devices as objects, and no PostgreSQL. Everything that must be seen whole is one
Lua script (`apps.tunnels.lua`). The driver's errors (`redis.exceptions`) pass: `apps.common` maps them to 503.

Keys below the prefix `{visiona}:tunnel:` (times in Unix ms)
  `nodes`             sorted set, node → last heartbeat: what there is to reap
  `node:<node>`       hash of url, version, started, sessions, streams, draining, seen; ends 30 s after its heartbeat
  `url:<url>`         the node that holds this internal URL
  `device:<device>`   hash of n(ode), s(ession), e(poch), u(ser), c(onnected_at), a(ddress), (a)g(ent), f(eatures),
                      w(ritten), b(ase): the oldest epoch whose streams may go on, since it was handed over;
                      of one without a session: e(poch), l(ast session)
  `moving:<device>`   there for some seconds after a daemon that drains closed its tunnel, until it is back elsewhere
  `sessions:<node>`   hash, session → device
  `user:<user>`       set of the user's devices with a tunnel
  `since`             when it was first looked at: after a loss of Redis it is young
  `database`          the identity of the database that admitted a device last
  `closing:<node>`    hash, session → `at|code|reason`: told with every heartbeat until the session is gone
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, cast

from apps.common import redis
from apps.common.redis import scripts
from apps.tunnels import lua

PREFIX: Final = redis.TAGGED + "tunnel:"
NODE_TTL_MS: Final = 30_000
"""A node is gone this long after its last heartbeat (data.md)."""
CLOSING_MS: Final = 120_000
"""A close is told with the heartbeats of this long; by then the session is gone or the full list tells."""
ADMISSION_GRACE_MS: Final = 15_000
"""A session written within this time may be missing in a full list: its agent is still shaking hands."""
SETTLE_MS: Final = 15_000
"""After a loss of Redis it takes a heartbeat (10 s) and a full list until the registry is whole again."""
DATABASE_REMEMBERED_SECONDS: Final = 7 * 24 * 3600
_CHUNK: Final = 512

Verdict = Literal["ok", "older", "ended"]


@dataclass(frozen=True, slots=True)
class Session:
    """A tunnel session to be written: ids as text, `connected_at` in RFC 3339."""

    device_id: str
    session: str
    epoch: int
    user_id: str
    connected_at: str
    address: str = ""
    agent: str = ""
    features: tuple[str, ...] = ()
    handover: str = ""
    """The session, at a daemon that drains, that this one takes over from; empty: none."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A device that is online: which node holds its tunnel, and where that node's internal API is.

    `moving`: that node drains, so there will soon be another. One on its way between two has no node and no session.
    """

    device_id: str
    node: str
    node_url: str
    session: str
    epoch: int
    user_id: str
    connected_at: str
    address: str
    agent: str
    features: tuple[str, ...]
    moving: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A session that was displaced or ended, to be closed where it is; `node_url` is empty if its node is gone."""

    device_id: str
    node: str
    session: str
    node_url: str


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a written session: `older` and `ended` changed nothing; `replaced` is whom it displaced."""

    verdict: Verdict
    replaced: Held | None
    handed_over: bool = False


@dataclass(frozen=True, slots=True)
class Pending:
    """A close that the node is still to carry out."""

    session: str
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Beat:
    """What the registry knew when the heartbeat came: the state of the node, its closes."""

    state: Literal["new", "known", "superseded"]
    closes: tuple[Pending, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """A daemon that is alive."""

    node: str
    url: str
    version: str
    started_at: datetime
    seen_at: datetime
    sessions: int
    streams: int
    draining: bool


def _run(source: str, args: Sequence[str | int]) -> list[Any]:
    answer = scripts.run(source, [PREFIX], args)
    return answer if isinstance(answer, list) else [answer]


def _now_ms() -> int:
    """By Redis' own clock: those of the hosts that share it may be hours apart, or be set while they run."""
    seconds, microseconds = redis.client().time()
    return seconds * 1000 + microseconds // 1000


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


def _pending(session: str, order: str) -> Pending:
    _at, code, reason = order.split("|", 2)
    return Pending(session, int(code), reason)


def _groups(flat: Sequence[Any], size: int) -> Iterable[list[str]]:
    for start in range(0, len(flat), size):
        yield list(flat[start : start + size])


# --- nodes ------------------------------------------------------------------------------------------------------------
def heartbeat(
    *,
    node: str,
    url: str,
    version: str,
    started_at: datetime,
    sessions_count: int,
    streams_count: int,
    draining: bool,
) -> Beat:
    """Keep `node` alive for 30 s more. An older node of its URL is dropped with its devices, a younger one wins."""
    started_ms = int(started_at.timestamp() * 1000)
    flat = _run(
        lua.HEARTBEAT,
        [
            node,
            url,
            version,
            started_ms,
            sessions_count,
            streams_count,
            int(draining),
            _now_ms(),
            NODE_TTL_MS,
            CLOSING_MS,
        ],
    )
    closes = tuple(_pending(session, order) for session, order in _groups(flat[1:], 2))
    return Beat(cast("Literal['new', 'known', 'superseded']", flat[0]), closes)


def nodes() -> list[Node]:
    """The daemons that are alive, by id."""
    names = sorted(cast("list[str]", redis.client().zrange(PREFIX + "nodes", 0, -1)))
    pipe = redis.client().pipeline(transaction=False)
    for name in names:
        pipe.hgetall(f"{PREFIX}node:{name}")
    found = []
    for name, fact in zip(names, pipe.execute() if names else [], strict=True):
        if fact:
            found.append(
                Node(
                    node=name,
                    url=fact["url"],
                    version=fact["version"],
                    started_at=_moment(fact["started"]),
                    seen_at=_moment(fact["seen"]),
                    sessions=int(fact["sessions"]),
                    streams=int(fact["streams"]),
                    draining=fact["draining"] == "1",
                )
            )
    return found


def ping() -> None:
    """Raise the driver's error if Redis does not answer: asked before what cannot be taken back."""
    redis.client().ping()


def remember_database(identity: str) -> None:
    """The devices that are admitted now are in this database (see `apps.devices.installation`)."""
    redis.client().set(f"{PREFIX}database", identity, ex=DATABASE_REMEMBERED_SECONDS)


def remembered_database() -> str | None:
    """Which database admitted devices last, within DATABASE_REMEMBERED_SECONDS."""
    return cast("str | None", redis.client().get(f"{PREFIX}database"))


def settled() -> bool:
    """Whether the registry is old enough to be whole: what it does not hold is offline, not just not told yet."""
    now = _now_ms()
    pipe = redis.client().pipeline(transaction=False)
    pipe.set(f"{PREFIX}since", now, nx=True)
    pipe.get(f"{PREFIX}since")
    return now - int(pipe.execute()[1]) >= SETTLE_MS


def reap() -> list[str]:
    """Forget nodes that expired, and their devices; returns their ids. Presence is right without it, memory is not."""
    return _run(lua.REAP, [_now_ms() - NODE_TTL_MS])


# --- sessions ---------------------------------------------------------------------------------------------------------
def put(node: str, sessions: Sequence[Session]) -> list[Put]:
    """Write sessions of `node`, fenced by epoch: an older one, or one that was ended, changes nothing."""
    results: list[Put] = []
    for start in range(0, len(sessions), _CHUNK):
        part = sessions[start : start + _CHUNK]
        args: list[str | int] = [node, _now_ms()]
        for item in part:
            args += [item.device_id, item.session, item.epoch, item.user_id, item.connected_at]
            args += [item.address, item.agent, ",".join(item.features), item.handover]
        for item, (verdict, *was, handed) in zip(part, _groups(_run(lua.PUT, args), 5), strict=True):
            replaced = Held(item.device_id, *was) if was[1] else None
            results.append(Put(cast("Verdict", verdict), replaced, handed == "1"))
    return results


def remove(
    pairs: Sequence[tuple[str, str]], *, drained: bool | None = False, written_before_ms: int | None = None
) -> int:
    """Take (device, session) pairs out, each only if the device is still held by that session. Returns how many.

    `drained`: their daemon drains (None: if it says so of itself), so the devices are on their way to another; who asks
    for one meanwhile may wait for it. Said of the session that a device lost last, it is noted too.
    """
    removed = 0
    limit = written_before_ms if written_before_ms is not None else 1 << 52
    for start in range(0, len(pairs), _CHUNK):
        args: list[str | int] = [limit, "" if drained is None else int(drained)]
        for device, session in pairs[start : start + _CHUNK]:
            args += [device, session]
        removed += int(_run(lua.REMOVE, args)[0])
    return removed


def remove_missing(node: str, listed: Iterable[str]) -> int:
    """Take out what the registry holds of `node` and its full list does not name, but for admissions under way."""
    there = set(listed)
    gone = [(device, session) for session, device in sessions_of(node).items() if session not in there]
    return remove(gone, drained=None, written_before_ms=_now_ms() - ADMISSION_GRACE_MS)


def end(devices: Mapping[str, int]) -> list[Held]:
    """Take devices (id → epoch) offline for good up to that epoch, and tell which sessions are to be closed.

    An admission of that epoch, or of an older one, that is written late finds `ended` (unpair while connecting).
    """
    args: list[str | int] = []
    for device, epoch in devices.items():
        args += [device, epoch]
    if not args:
        return []
    return [Held(device, node, session, url) for device, node, session, _e, url in _groups(_run(lua.END, args), 5)]


def lookup(devices: Iterable[str], *, moving: bool = False) -> dict[str, Entry]:
    """The entries of those `devices` that are online, in one call for each 512.

    With `moving` also of those on their way from one daemon to another, seen in the same moment: who looks for them
    after he has not found them online misses one that comes back in between.
    """
    wanted = list(devices)
    found: dict[str, Entry] = {}
    for start in range(0, len(wanted), _CHUNK):
        found |= _entries(_run(lua.LOOKUP, [int(moving), *wanted[start : start + _CHUNK]]))
    return found


def lookup_in(pipe: Any, device: str) -> Callable[[Any], Entry | None]:
    """As `lookup` of one device, `moving` too, within a pipeline, to be asked together with something else; reads its
    answer."""
    pipe.eval(lua.LOOKUP, 1, PREFIX, 1, device)
    return lambda answer: _entries(answer).get(device)


def _entries(flat: Sequence[Any]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for group in _groups(flat, 11):
        device, node, url, session, epoch, user, connected_at, address, agent, features, draining = group
        found[device] = Entry(
            device_id=device,
            node=node,
            node_url=url,
            session=session,
            epoch=int(epoch),
            user_id=user,
            connected_at=connected_at,
            address=address,
            agent=agent,
            features=tuple(part for part in features.split(",") if part),
            moving=draining == "1",
        )
    return found


def epochs(devices: Iterable[str]) -> dict[str, int]:
    """Device → the highest epoch that the registry knows of it, online or ended. Unknown devices are left out."""
    wanted = list(devices)
    pipe = redis.client().pipeline(transaction=False)
    for device in wanted:
        pipe.hget(f"{PREFIX}device:{device}", "e")
    answers = pipe.execute() if wanted else []
    return {device: int(epoch) for device, epoch in zip(wanted, answers, strict=True) if epoch}


def bases(devices: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Device → (epoch, oldest epoch whose streams may go on), for those of the devices that are online."""
    wanted = list(devices)
    pipe = redis.client().pipeline(transaction=False)
    for device in wanted:
        pipe.hmget(f"{PREFIX}device:{device}", ("s", "e", "b"))
    answers = pipe.execute() if wanted else []
    found = zip(wanted, answers, strict=True)
    return {device: (int(epoch), int(base)) for device, (session, epoch, base) in found if session and epoch and base}


def lookup_user(user_id: str) -> dict[str, Entry]:
    """The entries of all devices of a user that are online."""
    members = cast("set[str]", redis.client().smembers(f"{PREFIX}user:{user_id}"))
    return lookup(sorted(members)) if members else {}


def sessions_of(node: str) -> dict[str, str]:
    """Session → device, of one node."""
    return cast("dict[str, str]", redis.client().hgetall(f"{PREFIX}sessions:{node}"))


def whole_sessions(node: str) -> dict[str, str]:
    """As `sessions_of`, but only the sessions that can be found by their device and by their user as well."""
    held = sessions_of(node)
    lacking: set[str] = set()
    pairs = list(held.items())
    for start in range(0, len(pairs), _CHUNK):
        args = [node, *(text for pair in pairs[start : start + _CHUNK] for text in pair)]
        lacking.update(_run(lua.LACKING, args))
    return {session: device for session, device in pairs if session not in lacking}


def online_devices() -> set[str]:
    """The ids of all devices whose node is alive."""
    alive = nodes()
    pipe = redis.client().pipeline(transaction=False)
    for node in alive:
        pipe.hvals(f"{PREFIX}sessions:{node.node}")
    return {device for held in (pipe.execute() if alive else []) for device in held}


def request_close(held: Sequence[Held], *, code: int, reason: str) -> None:
    """Note closes for the heartbeats of the nodes that hold the sessions."""
    if not held:
        return
    now = _now_ms()
    pipe = redis.client().pipeline(transaction=False)
    for item in held:
        key = f"{PREFIX}closing:{item.node}"
        pipe.hset(key, item.session, f"{now}|{code}|{reason}")
        pipe.expire(key, CLOSING_MS // 1000)
    pipe.execute()


def pending_closes(node: str) -> list[Pending]:
    """The closes that wait for the node's heartbeat."""
    orders = cast("dict[str, str]", redis.client().hgetall(f"{PREFIX}closing:{node}"))
    return [_pending(session, order) for session, order in orders.items()]


def forget_close(node: str, session: str) -> None:
    """Drop a noted close, since the session was closed: its node need not be told."""
    redis.client().hdel(f"{PREFIX}closing:{node}", session)
