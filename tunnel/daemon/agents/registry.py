"""Which tunnel sessions this daemon holds, and which one of a device counts: decisions without I/O.

The newest connection of a device wins. What is newest is told by the epoch that Django raised when it admitted the
session, not by the order in which tasks get here. It does not know connections, clocks, Trio or Redis.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Generic, Protocol, TypeVar

from tunnel.contract import session_mark, sessions_digest


class Held(Protocol):
    """What the registry needs to know of a session."""

    @property
    def id(self) -> str: ...
    @property
    def device_id(self) -> str: ...
    @property
    def epoch(self) -> int: ...


S = TypeVar("S", bound=Held)


class Registry(Generic[S]):
    """Session id -> session, and device -> its sessions (more than one only while older ones are closing)."""

    def __init__(self) -> None:
        self._by_id: dict[str, S] = {}
        self._by_device: dict[str, list[S]] = {}
        self._mark = 0

    def __repr__(self) -> str:
        return f"<Registry {len(self._by_id)} sessions of {len(self._by_device)} devices>"

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def digest(self) -> str:
        """Of the sessions that are held, whatever their order: equal where another has the same ones."""
        return sessions_digest(self._mark)

    def all(self) -> list[S]:
        """Every session, in the order of arrival."""
        return list(self._by_id.values())

    def add(self, session: S) -> list[S]:
        """Hold `session`, and answer which ones have to be closed as replaced: the older ones of the device, or
        `session` itself if a newer one got here first."""
        self._by_id[session.id] = session
        self._mark ^= session_mark(session.id, session.device_id)
        held = self._by_device.setdefault(session.device_id, [])
        held.append(session)
        held.sort(key=lambda one: one.epoch)
        return held[:-1]

    def remove(self, session_id: str) -> S | None:
        """Forget a session; None if it was not held (any more)."""
        session = self._by_id.pop(session_id, None)
        if session is not None:
            self._mark ^= session_mark(session.id, session.device_id)
            held = self._by_device[session.device_id]
            held.remove(session)
            if not held:
                del self._by_device[session.device_id]
        return session

    def get(self, session_id: str) -> S | None:
        """The session of that id."""
        return self._by_id.get(session_id)

    def of_device(self, device_id: str) -> S | None:
        """The session that counts for a device: the one of the highest epoch."""
        held = self._by_device.get(device_id)
        return held[-1] if held else None

    def page(self, after: str, limit: int) -> tuple[list[S], str | None]:
        """Up to `limit` sessions with ids greater than `after`, in id order, and the `after` of the next page."""
        ids = sorted(self._by_id)
        start = bisect_right(ids, after)
        chosen = ids[start : start + limit]
        more = start + limit < len(ids)
        return [self._by_id[one] for one in chosen], chosen[-1] if more and chosen else None
