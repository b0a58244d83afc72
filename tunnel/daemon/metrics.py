"""What Prometheus is told. Gauges and byte counts are read from the live objects when somebody asks, so that the hot
path pays for nothing but its own counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, Protocol

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tunnel.mux.statistics import ConnectionStatistics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_OPEN_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counted(Protocol):
    """What counts the bytes of one tunnel."""

    def statistics(self) -> ConnectionStatistics:
        """What it counted until now."""


class Tunnel(Protocol):
    """A tunnel session, as far as it is counted."""

    @property
    def connection(self) -> Counted:
        """What its bytes go through."""


class Sessions(Protocol):
    """The tunnel sessions that this daemon holds."""

    def all(self) -> Sequence[Tunnel]:
        """Those of this moment."""


class MetricSource(Protocol):
    """A part of the daemon that tells numbers of its own."""

    def live(self) -> Iterator[Metric]:
        """What is true now."""


class Metrics:
    """One daemon's numbers, in a registry of its own. `sources` are the parts that tell numbers of their own."""

    def __init__(self, sessions: Sessions, sources: Callable[[], Iterable[MetricSource]]) -> None:
        self.registry = CollectorRegistry()
        self._sessions = sessions
        self._sources = sources
        self.leaving = False  # told to end, and not ready any more; what comes is served until `draining`
        self.draining = False
        self.bytes_in = 0  # of sessions that have ended
        self.bytes_out = 0
        self.stalls = 0
        prefix = "visiona_tunnel_"
        self.connects = Counter(prefix + "connects_total", "Agents admitted", registry=self.registry)
        self.refusals = Counter(
            prefix + "refusals_total", "Connection attempts refused", ["code"], registry=self.registry
        )
        self.disconnects = Counter(prefix + "disconnects_total", "Sessions ended", ["reason"], registry=self.registry)
        self.streams = Counter(
            prefix + "streams_total", "Streams ended or not opened", ["outcome"], registry=self.registry
        )
        self.open_seconds = Histogram(
            prefix + "open_seconds", "Until the agent accepted a stream", registry=self.registry, buckets=_OPEN_BUCKETS
        )
        self.heartbeats = Counter(
            prefix + "heartbeats_total", "Heartbeats to the API", ["outcome"], registry=self.registry
        )
        self.registry.register(_Live(self))

    def ended(self, session: Tunnel, reason: str) -> None:
        """Keep the totals of a session that is gone."""
        seen = session.connection.statistics()
        self.bytes_in += seen.bytes_in
        self.bytes_out += seen.bytes_out
        self.stalls += seen.window_stalls
        self.disconnects.labels(reason).inc()

    def render(self) -> bytes:
        """The exposition in text format."""
        return generate_latest(self.registry)

    def live(self) -> Iterator[Metric]:
        """What is true now."""
        seen = [session.connection.statistics() for session in self._sessions.all()]
        name = "visiona_tunnel_"
        yield GaugeMetricFamily(name + "sessions", "Tunnels held", value=len(seen))
        yield GaugeMetricFamily(name + "streams", "Streams open", value=sum(one.streams_open for one in seen))
        yield GaugeMetricFamily(
            name + "buffered_bytes", "Bytes that wait in streams", value=sum(one.buffered for one in seen)
        )
        yield GaugeMetricFamily(name + "draining", "1 while the daemon ends", value=int(self.draining))
        moved = CounterMetricFamily(name + "bytes", "Bytes of the tunnels, framing included", labels=["direction"])
        moved.add_metric(["in"], self.bytes_in + sum(one.bytes_in for one in seen))
        moved.add_metric(["out"], self.bytes_out + sum(one.bytes_out for one in seen))
        yield moved
        yield CounterMetricFamily(
            name + "window_stalls",
            "Times that a sender waited for credit",
            value=self.stalls + sum(one.window_stalls for one in seen),
        )
        yield GaugeMetricFamily(
            name + "tasks", "Trio tasks of this process", value=trio.lowlevel.current_statistics().tasks_living
        )
        for source in self._sources():
            yield from source.live()


class _Live(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        return self._metrics.live()

    def describe(self) -> Iterator[Metric]:
        return iter(())
