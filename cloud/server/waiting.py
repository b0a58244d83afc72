"""Lists of waiting connections of the API's worker, ordered by deadline. They know nothing of a connection."""

from __future__ import annotations

from typing import Any


class Waiting:
    """Connections that wait for the same kind of event, in the order of their deadlines.

    Used under the worker's lock.
    """

    def __init__(self) -> None:
        self._until: dict[Any, float] = {}

    def __len__(self) -> int:
        return len(self._until)

    def add(self, conn: Any, until: float) -> None:
        """Add a connection with its deadline (monotonic), which must not be earlier than that of the last one added."""
        self._until[conn] = until

    def remove(self, conn: Any) -> bool:
        """Remove a connection. Returns whether it was in the list."""
        return self._until.pop(conn, None) is not None

    def oldest(self) -> Any:
        """The connection that has waited longest; None if the list is empty."""
        return next(iter(self._until), None)

    def expired(self, now: float) -> list[Any]:
        """The connections whose deadline has passed. They stay in the list until they are removed."""
        late = []
        for conn, until in self._until.items():
            if until > now:
                break
            late.append(conn)
        return late

    def cap(self, until: float) -> None:
        """Bring all deadlines that are later than `until` forward to it."""
        for conn, own in self._until.items():
            self._until[conn] = min(own, until)

    def all(self) -> list[Any]:
        """A copy of the list, in order."""
        return list(self._until)
