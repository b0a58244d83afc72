"""Calls of one kind to one server: their own places, their own queue before them, their own kept connections.

What one kind of calls does to itself, others do not notice. A call is cancelled by its caller or by its own deadline,
which counts from its coming into the queue; either way its place is free at once and its connection closed.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio

from tunnel.contract import Crowded
from tunnel.daemon.control.http_client import Answer, ApiConnection, Origin, Unanswered
from tunnel.net.places import Places

_KEPT_SECONDS: Final = 1.0
"""The API or a proxy before it may close an idle connection just as it is used again: none is kept for long."""


class Overcrowded(Unanswered):
    """So many calls of this kind wait that nothing was sent."""


class Calls:
    """At most `places` connections, and `queue` calls that wait for one. `seconds` bounds a call, waiting included."""

    def __init__(self, name: str, *, places: int, queue: int, seconds: float) -> None:
        self._name = name
        self._places = Places(places, queue)
        self._seconds = seconds
        self._kept: deque[tuple[float, Origin, ApiConnection]] = deque()  # until when; the freshest last
        self.asked_again = 0

    def __repr__(self) -> str:
        return f"<Calls {self._name} {self._places!r} kept={len(self._kept)}>"

    @property
    def places(self) -> Places:
        return self._places

    async def call(self, origin: Origin, data: bytes, *, party: str = "", again: bool = False) -> Answer:
        """The answer to the request `data`. Raises Unanswered.

        Args:
            party: who waits in line together; each party has its turn.
            again: ask once more, on a new connection, if the first one broke. Only for what may be done twice.
        """
        try:
            with trio.fail_after(self._seconds):
                async with self._places.place(party):
                    return await self._call(origin, data, again=again)
        except trio.TooSlowError:
            raise Unanswered(f"no answer within {self._seconds:g} s") from None
        except Crowded:
            raise Overcrowded(f"too many calls wait ({self._name})") from None

    async def close(self) -> None:
        """Close what is kept."""
        while self._kept:
            await self._kept.pop()[2].close()

    async def _call(self, origin: Origin, data: bytes, *, again: bool) -> Answer:
        connection = await self._kept_one(origin) or await ApiConnection.open(origin)
        try:
            answer = await connection.exchange(data)
        except Unanswered as error:
            if not (again and error.broken):
                raise
            self.asked_again += 1
            connection = await ApiConnection.open(origin)
            answer = await connection.exchange(data)
        if connection.reusable:
            self._kept.append((trio.current_time() + _KEPT_SECONDS, origin, connection))
        return answer

    async def _kept_one(self, origin: Origin) -> ApiConnection | None:
        """The connection used last, if it is good still; those that are not are closed."""
        while self._kept:
            until, whose, connection = self._kept.pop()
            if whose == origin and trio.current_time() < until and not connection.stale:
                return connection
            await connection.close()
        return None
