"""What the view returns for an answer that is on the client's connection already, or will be. It knows no exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.http import StreamingHttpResponse


class Carried(StreamingHttpResponse):
    """What the view returns for an answer that is on the client's connection already, or will be."""

    def __init__(self, status: int, settle: Callable[[], None], cut: Callable[[], None], *, goes_on: bool) -> None:
        super().__init__(self._settled(), status=status)
        self.goes_on = goes_on
        self._settle: Callable[[], None] | None = settle
        self._cut = cut

    def _settled(self) -> Any:
        settle, self._settle = self._settle, None
        if settle is not None:
            settle()
        yield from ()

    def abandon(self) -> None:
        """Another answer takes its place: too late, so the client's connection is reset."""
        if self._settle is not None:
            self._settle = None
            self._cut()

    def close(self) -> None:
        """Called by the server in any case."""
        super().close()
        self.abandon()
