"""Telling Django that this node lives, and doing what it answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Final

import trio
from prometheus_client.core import GaugeMetricFamily, Metric

from tunnel.contract import Heartbeat as HeartbeatMessage
from tunnel.contract import HeartbeatAnswer
from tunnel.daemon.agents.registry import Registry
from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.daemon.metrics import Metrics
from tunnel.logs import JsonLog

_BACKOFF: Final = (0.25, 2.0)
_MISSED: Final = 2
_STILL: Final = 3  # heartbeats in whose time none was even tried: the task that sends them does not run
Describe = Callable[[], HeartbeatMessage]


class HeartbeatLoop:
    """One each `interval` seconds; an answer is waited for up to `patience` (what `control` waits).

    `describe` gives the heartbeat without its list of sessions. `beat_soon` asks for one out of turn.
    """

    def __init__(
        self,
        control: ControlPlane,
        sessions: Registry[TunnelSession],
        metrics: Metrics,
        log: JsonLog,
        *,
        interval: float,
        patience: float,
        describe: Describe,
    ) -> None:
        self._control = control
        self._sessions = sessions
        self._metrics = metrics
        self._log = log
        self._interval = interval
        self._patience = patience
        self._describe = describe
        self._full = False
        self._pause = trio.CancelScope()
        self._failures = 0
        self._cause = ""
        self._accepted_at = -math.inf
        self._tried_at = trio.current_time()
        self._farewell = trio.Event()

    @property
    def accepted(self) -> bool:
        """Whether the API takes our heartbeats: at most one in a row was missed."""
        slack = min(self._patience, self._interval)  # an answer may take its time
        return trio.current_time() - self._accepted_at < _MISSED * self._interval + slack

    @property
    def beating(self) -> bool:
        """Whether they are sent at all, accepted or not."""
        return trio.current_time() - self._tried_at < _STILL * (self._interval + self._patience)

    def live(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        told = "1 while the API accepts heartbeats"
        yield GaugeMetricFamily("visiona_tunnel_ready", told, value=int(self.accepted))

    async def say_goodbye(self, seconds: float) -> None:
        """Have Django know that this node drains, before anybody is turned away; `seconds` at most."""
        self.beat_soon()
        with trio.move_on_after(seconds):
            await self._farewell.wait()

    def beat_soon(self, *, full: bool = False) -> None:
        """Let the next heartbeat go out now, `full`: with the list of sessions."""
        self._full = self._full or full
        self._pause.cancel()

    async def run(self) -> None:
        """Beat until cancelled."""
        backoff = _BACKOFF[0]
        while True:
            self._pause = trio.CancelScope()
            accepted = await self._beat()
            backoff = _BACKOFF[0] if accepted else min(backoff * 2, self._interval, _BACKOFF[1])
            self._pause.deadline = trio.current_time() + (self._interval if accepted else backoff)
            with self._pause:
                await trio.sleep_forever()

    async def _beat(self) -> bool:
        full, self._full = self._full, False
        message = self._describe()
        if full:
            message["sessions"] = [session.fact() for session in self._sessions.all()]
        try:
            answer = await self._control.heartbeat(message)
        except ControlUnavailable as error:
            self._full = self._full or full
            self._tried_at = trio.current_time()
            self._note_failure(error)
            return False
        self._metrics.heartbeats.labels("accepted").inc()
        if self._accepted_at == -math.inf:
            self._log.info("ready")
        elif self._failures:
            self._log.info("heartbeat_accepted_again", failures=self._failures)
        self._failures, self._cause = 0, ""
        self._accepted_at = self._tried_at = trio.current_time()
        if message["draining"]:
            self._farewell.set()
        self._obey(answer, full=full)
        return True

    def _note_failure(self, error: ControlUnavailable) -> None:
        self._metrics.heartbeats.labels("failed").inc()
        self._failures += 1
        cause, self._cause = self._cause, str(error)
        if cause != self._cause or self._failures % 30 == 0:
            write = self._log.error if error.status in (400, 401, 403) else self._log.warning
            write("heartbeat_failed", error=str(error), failures=self._failures)

    def _obey(self, answer: HeartbeatAnswer, *, full: bool) -> None:
        for order in answer["close"]:
            session = self._sessions.get(order["session"])
            if session is not None:
                session.close(order["code"], order["reason"])
        if answer["send_sessions"] and not full:  # asked again for what it was just given: at the next turn
            self.beat_soon(full=True)
        elif answer["send_sessions"]:
            self._full = True
