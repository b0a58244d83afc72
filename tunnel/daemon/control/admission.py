"""Asking Django whether an agent may come in: credentials that gather while a call is in flight go with the next.

One call at a time, up to 256 credentials each. When the API does not answer, agents are told at once to come back
later, and it is asked again only after a pause that grows.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final

import trio

from tunnel.contract import MAX_CREDENTIALS, Admitted, Credential, Refused
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.logs import JsonLog

_BACKOFF: Final = (0.5, 2.0)
_RETRY_SPREAD: Final = 4  # agents are told different times, so that they do not come back together
_PASSED_ON: Final = frozenset({"DATABASE_UNAVAILABLE", "CACHE_UNAVAILABLE", "OVERLOADED"})

Answer = Admitted | Refused
Abandoned = Callable[[Credential, Admitted], None]


class _Waiting:
    __slots__ = ("abandoned", "answer", "credential", "done")

    def __init__(self, credential: Credential) -> None:
        self.credential = credential
        self.done = trio.Event()
        self.answer: Answer | None = None
        self.abandoned = False


class Admission:
    """`on_abandoned` learns of a session that Django admitted while its agent had stopped waiting."""

    def __init__(
        self,
        control: ControlPlane,
        node: str,
        log: JsonLog,
        *,
        limit: int,
        seconds: float,
        on_abandoned: Abandoned,
        on_unsure: Callable[[], None],
    ) -> None:
        self._control = control
        self._node = node
        self._log = log
        self._seconds = seconds
        self._on_abandoned = on_abandoned
        self._on_unsure = on_unsure
        self._send, self._receive = trio.open_memory_channel[_Waiting](limit)
        self._backoff = _BACKOFF[0]
        self._not_before = -math.inf
        self.calls = 0
        self.failures = 0

    @property
    def waiting(self) -> int:
        """Credentials that wait for the next call."""
        return self._receive.statistics().current_buffer_used

    async def admit(self, credential: Credential) -> Answer:
        """Django's answer about one agent. If it cannot be had: a Refused of 503 with `retry_after`."""
        if trio.current_time() < self._not_before:
            return self._unavailable(None)
        waiting = _Waiting(credential)
        try:
            self._send.send_nowait(waiting)
        except trio.WouldBlock:
            return _refused("OVERLOADED", "too many agents are connecting; try again shortly", 1 + _spread())
        taken = False
        try:
            with trio.move_on_after(self._seconds):
                await waiting.done.wait()
            taken = waiting.answer is not None
        finally:
            waiting.abandoned = not taken
            if waiting.answer is not None and not taken:  # cancelled between the answer and our waking up
                self._give_back(waiting)
        return waiting.answer if waiting.answer is not None else self._unavailable(None)

    def _give_back(self, waiting: _Waiting) -> None:
        if waiting.answer is not None and waiting.answer["ok"]:
            self._on_abandoned(waiting.credential, waiting.answer)

    async def run(self) -> None:
        """Make the calls, until cancelled."""
        while True:
            batch = [await self._receive.receive()]
            while len(batch) < MAX_CREDENTIALS:
                try:
                    batch.append(self._receive.receive_nowait())
                except trio.WouldBlock:
                    break
            batch = [waiting for waiting in batch if not waiting.abandoned]
            if batch:
                await self._ask(batch)

    async def _ask(self, batch: list[_Waiting]) -> None:
        self.calls += 1
        if trio.current_time() < self._not_before:
            self._deliver(batch, [self._unavailable(None) for _ in batch])
            return
        try:
            answers = await self._control.authenticate(self._node, [waiting.credential for waiting in batch])
        except ControlUnavailable as error:
            self.failures += 1
            self._not_before = trio.current_time() + self._backoff
            self._log.warning("authenticate_failed", count=len(batch), error=str(error), retry_in=self._backoff)
            self._backoff = min(self._backoff * 2, _BACKOFF[1])
            answers = [self._unavailable(error) for _ in batch]
            if error.status is None:
                self._on_unsure()  # it may have been done all the same: the next heartbeat tells what really is
        else:
            self._backoff = _BACKOFF[0]
            self._not_before = -math.inf
        self._deliver(batch, answers)

    def _deliver(self, batch: list[_Waiting], answers: list[Answer]) -> None:
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.answer = answer
            waiting.done.set()
            if waiting.abandoned:
                self._give_back(waiting)

    def _unavailable(self, error: ControlUnavailable | None) -> Refused:
        pause = max(0.0, self._not_before - trio.current_time())
        after = error.retry_after if error is not None and error.retry_after is not None else 0
        code = error.code if error is not None and error.code in _PASSED_ON else "TUNNEL_UNAVAILABLE"
        return _refused(
            code, "agents cannot be admitted right now; try again", max(1, math.ceil(pause), after) + _spread()
        )


def _spread() -> int:
    return random.randrange(_RETRY_SPREAD)  # noqa: S311 - spreads load, guards nothing


def _refused(code: str, message: str, retry_after: int) -> Refused:
    return Refused(ok=False, status=503, code=code, message=message, retry_after=retry_after)
