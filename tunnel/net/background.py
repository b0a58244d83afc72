"""Tasks that a decision starts and nobody waits for, under one nursery whose owner is named."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

Work = Callable[..., Awaitable[None]]


class Background:
    """Runs what is given to it until `run` is cancelled; what comes before or after that is dropped.

    Args:
        crashed: is told the name of work that raised, and the error. A bug in one ends neither the others nor the
            process.
        most: how many run at once of those that are given to `spawn`; others wait.
    """

    def __init__(self, crashed: Callable[[str, Exception], None], *, most: int | None = None) -> None:
        self._crashed = crashed
        self._limit = None if most is None else trio.CapacityLimiter(most)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry the work, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def spawn(self, work: Work, *args: Any) -> None:
        """Start it; of a bounded number at once, if there is a bound."""
        if self._nursery is not None:
            limited = self._guarded if self._limit is None else partial(self._limited, self._limit)
            self._nursery.start_soon(limited, work, *args)

    def attend(self, work: Work, *args: Any) -> None:
        """The same without the bound, for what mostly waits."""
        if self._nursery is not None:
            self._nursery.start_soon(self._guarded, work, *args)

    async def _limited(self, limit: trio.CapacityLimiter, work: Work, *args: Any) -> None:
        async with limit:
            await self._guarded(work, *args)

    async def _guarded(self, work: Work, *args: Any) -> None:
        try:
            await work(*args)
        except Exception as error:  # noqa: BLE001 - the last that could catch it
            self._crashed(getattr(work, "__qualname__", ""), error)
