"""What happened to sessions, on its way to Django: batched, bounded, retried while the API is away.

When the queue is full the oldest event is dropped and counted: the next full heartbeat sets the registry right anyway.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Final

import trio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tunnel.contract import TunnelEvent
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.logs import JsonLog

BATCH: Final = 500
_GATHER_SECONDS: Final = 0.05
_BACKOFF: Final = (0.2, 2.0)


class EventQueue:
    """One sender, many putters."""

    def __init__(self, control: ControlPlane, node: str, log: JsonLog, *, limit: int = 20_000) -> None:
        self._control = control
        self._node = node
        self._log = log
        self._limit = limit
        self._queue: deque[TunnelEvent] = deque()
        self._waiting = trio.lowlevel.ParkingLot()
        self._sending = trio.Lock()
        self._under_way = 0  # of a batch that Django has not accepted yet; no longer in the queue
        self.dropped = 0
        self.sent = 0

    def __len__(self) -> int:
        return len(self._queue)

    def live(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        name = "visiona_tunnel_"
        yield GaugeMetricFamily(name + "events_waiting", "Events not yet told to the API", value=len(self))
        yield CounterMetricFamily(name + "events_dropped", "Events lost", value=self.dropped)

    def put(self, event: TunnelEvent) -> None:
        """Queue an event; never waits."""
        self._queue.append(event)
        self._trim()
        self._waiting.unpark_all()

    def _trim(self) -> None:
        while len(self._queue) > self._limit:
            self._queue.popleft()
            self.dropped += 1

    async def run(self) -> None:
        """Send until cancelled."""
        backoff = _BACKOFF[0]
        while True:
            if not self._queue:
                await self._waiting.park()
            await trio.sleep(_GATHER_SECONDS)
            try:
                await self._send_batch()
                backoff = _BACKOFF[0]
            except ControlUnavailable as error:
                self._log.warning("events_delayed", waiting=len(self._queue), error=str(error), retry_in=backoff)
                await trio.sleep(backoff)
                backoff = min(backoff * 2, _BACKOFF[1])

    async def flush(self, seconds: float) -> int:
        """Send what is left, and see what is under way to its end, within `seconds`; how many events were not sent."""
        with trio.move_on_after(seconds):
            while self._queue or self._under_way:
                try:
                    await self._send_batch()
                except ControlUnavailable:
                    await trio.sleep(_BACKOFF[0])
        return len(self._queue) + self._under_way

    async def _send_batch(self) -> None:
        async with self._sending:  # so that events of a session keep their order
            batch = list(islice(self._queue, BATCH))
            if not batch:
                return
            for _ in batch:
                self._queue.popleft()
            self._under_way = len(batch)
            done = False
            try:
                await self._control.events(self._node, batch)
                done = True
                self.sent += len(batch)
            except ControlUnavailable as error:
                if not error.permanent:
                    raise
                done = True
                self.dropped += len(batch)
                self._log.error("events_refused", count=len(batch), error=str(error))
            finally:
                self._under_way = 0
                if not done:
                    self._queue.extendleft(reversed(batch))
                    self._trim()
