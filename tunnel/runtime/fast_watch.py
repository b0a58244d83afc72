"""Whether those who are being served may still: asked anew while their exchanges run. It does not know who asks Django.

Only a definite refusal ends an exchange; a look-up that fails does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Final

import trio

from tunnel.runtime.fast_quick import Quick

if TYPE_CHECKING:
    from tunnel.runtime.fast_auth import Denied, Grant
    from tunnel.runtime.fast_types import Run

REAUTHORIZE_SECONDS: Final = 4.0
"""With the half second between two looks and an answer's time: what nobody told us of ends within 5 s (tunnel.md)."""
_AT_ONCE: Final = 8  # look-ups about running exchanges


class Watch:
    """Who is asked about just now. `refusal` asks, `forget` drops what was known, `spawn` starts a task."""

    def __init__(
        self,
        refusal: Callable[[Grant], Awaitable[Denied | None]],
        forget: Callable[[Grant], None],
        spawn: Callable[..., None],
    ) -> None:
        self._refusal = refusal
        self._forget = forget
        self._spawn = spawn
        self._asking: set[Run] = set()
        self._limit = trio.CapacityLimiter(_AT_ONCE)

    def look(self, running: Iterable[Run | Quick], now: float) -> None:
        """Ask about those whose turn it is. An ordinary exchange has none: it is over, or carried, within a second."""
        for run in running:
            if not isinstance(run, Quick) and now - run.checked >= REAUTHORIZE_SECONDS and run not in self._asking:
                self._asking.add(run)
                self._spawn(self._ask, run)

    async def _ask(self, run: Run) -> None:
        try:
            async with self._limit:
                if run.over:
                    return
                began = trio.current_time()
                denied = await self._refusal(run.grant)
                run.checked = began
                if denied is not None:
                    self._forget(run.grant)
                    run.end_with(denied)
        finally:
            self._asking.discard(run)
