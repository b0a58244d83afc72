"""Who waits for what, and until when, among the connections of the API's worker. It knows nothing of a connection."""

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
        """Until must not be before that of the last one added."""
        self._until[conn] = until

    def remove(self, conn: Any) -> bool:
        """Whether it was waiting here."""
        return self._until.pop(conn, None) is not None

    def oldest(self) -> Any:
        """The one that waits longest."""
        return next(iter(self._until), None)

    def expired(self, now: float) -> list[Any]:
        """Those whose deadline has passed; they stay until removed."""
        late = []
        for conn, until in self._until.items():
            if until > now:
                break
            late.append(conn)
        return late

    def cap(self, until: float) -> None:
        """No deadline later than this."""
        for conn, own in self._until.items():
            self._until[conn] = min(own, until)

    def all(self) -> list[Any]:
        """A copy."""
        return list(self._until)
