"""Whether those who are being served may still: asked anew while their exchanges run. It does not know who asks Django.

One question stands for all exchanges that its answer is good for: those of one login with one device. Only a definite
refusal ends an exchange; a look-up that fails does not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final

import trio

from tunnel.daemon.lane.authorizer import Denied, Grant, Question
from tunnel.daemon.lane.interfaces import InFlight

REAUTHORIZE_SECONDS: Final = 4.0
"""With the half second between two looks and an answer's time: what nobody told us of ends within 5 s (tunnel.md)."""
_AT_ONCE: Final = 8  # look-ups about running exchanges: half of the connections to the API


class Reauthorizer:
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
        self._asking: set[Question] = set()
        self._limit = trio.CapacityLimiter(_AT_ONCE)

    def look(self, running: Collection[InFlight], now: float) -> None:
        """Ask about those whose turn it is. An ordinary exchange has none: it is over, or carried, within a second.

        Who has the same question is asked about with the first of them, so from then on their turns come together.
        """
        due: dict[Question, list[InFlight]] = {}
        for run in running:
            if now - run.checked >= REAUTHORIZE_SECONDS:
                question = run.grant.question
                if question not in self._asking:
                    due[question] = []
        if not due:
            return
        for run in running:
            if run.checked <= now and (together := due.get(run.grant.question)) is not None:
                together.append(run)
        for question, together in due.items():
            self._asking.add(question)
            self._spawn(self._ask, question, together, running)

    async def _ask(self, question: Question, together: list[InFlight], running: Collection[InFlight]) -> None:
        try:
            async with self._limit:
                asked = next((run.grant for run in together if not run.over), None)
                if asked is None:
                    return
                began = trio.current_time()
                denied = await self._refusal(asked)
                for run in together:
                    run.allowed(began)
                if denied is not None:
                    self._end(denied, [run for run in running if _is_told(run, question, began)])
        finally:
            self._asking.discard(question)

    def _end(self, denied: Denied, told: list[InFlight]) -> None:
        for run in told:
            self._forget(run.grant)
            run.end_with(denied)


def _is_told(run: InFlight, question: Question, began: float) -> bool:
    """Whether a refusal of what was asked then counts for it: not if it was allowed by a newer word."""
    return run.grant.question == question and run.grant.checked_at <= began
