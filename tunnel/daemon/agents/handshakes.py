"""Agents in their handshake, and waiting for one of them to be in.

Django writes a session to its registry before it answers, so a request for it may be here before the session is. It
does not know what a session is, nor what becomes of an arrival that fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import trio


class PendingHandshake:
    """One handshake. `device_id` is empty until Django has answered."""

    __slots__ = ("device_id", "over")

    def __init__(self) -> None:
        self.device_id = ""
        self.over = trio.Event()


class PendingHandshakes:
    """All handshakes under way, by the session id that the daemon chose. As many as there may be handshakes."""

    def __init__(self) -> None:
        self._under_way: dict[str, PendingHandshake] = {}

    def __repr__(self) -> str:
        return f"<PendingHandshakes {len(self._under_way)}>"

    @contextmanager
    def expect(self, session_id: str) -> Iterator[PendingHandshake]:
        """A handshake, from before Django is asked until the session is held or never will be."""
        arrival = self._under_way[session_id] = PendingHandshake()
        try:
            yield arrival
        finally:
            del self._under_way[session_id]
            arrival.over.set()

    async def wait_session(self, session_id: str) -> None:
        """Return when the handshake of that session is over; at once if there is none."""
        arrival = self._under_way.get(session_id)
        if arrival is not None:
            await arrival.over.wait()

    async def wait_device(self, device_id: str) -> None:
        """Return when no handshake that is under way now can be of that device any more."""
        for arrival in list(self._under_way.values()):
            if arrival.device_id in ("", device_id):
                await arrival.over.wait()
