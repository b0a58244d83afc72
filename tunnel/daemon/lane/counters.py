"""What the fast lane counts, and how Prometheus is told: plain numbers, read when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from tunnel.daemon.lane.fd_passing import FdPassing

_NAME: Final = "visiona_fast_"


class LaneCounters:
    """Totals since the start."""

    __slots__ = ("bytes_down", "bytes_up", "ordinary", "outcomes")

    def __init__(self) -> None:
        self.outcomes: dict[str, int] = {}
        self.ordinary = 0
        """Of those that ended well, the ones that the fast path served to the end; not among `outcomes`."""
        self.bytes_up = 0
        self.bytes_down = 0

    def count(self, outcome: str) -> None:
        """One exchange that ended so."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def live(self, clients: Sized, running: Sized, hands: FdPassing | None) -> Iterator[Metric]:
        """What Prometheus is told."""
        yield GaugeMetricFamily(_NAME + "connections", "Client connections", value=len(clients))
        yield GaugeMetricFamily(_NAME + "exchanges", "Exchanges under way", value=len(running))
        counted = CounterMetricFamily(_NAME + "exchanges", "Exchanges that ended", labels=["outcome"])
        outcomes = self.outcomes | {"ok": self.outcomes.get("ok", 0) + self.ordinary}
        for outcome, count in outcomes.items():
            counted.add_metric([outcome], count)
        yield counted
        moved = CounterMetricFamily(_NAME + "bytes", "Body bytes", labels=["direction"])
        moved.add_metric(["up"], self.bytes_up)
        moved.add_metric(["down"], self.bytes_down)
        yield moved
        if hands is not None:
            handed = CounterMetricFamily(_NAME + "handed", "Connections that changed hands", labels=["direction"])
            handed.add_metric(["given"], hands.given)
            handed.add_metric(["taken"], hands.taken)
            yield handed
