"""What the API counts, for Prometheus; all worker processes together where `PROMETHEUS_MULTIPROC_DIR` is set."""

import os
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUESTS: Final = Counter("visiona_api_requests", "Answers by route and status.", ["method", "route", "status"])
SECONDS: Final = Histogram("visiona_api_request_seconds", "To the head of the answer.", ["route"], buckets=_BUCKETS)

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Counts one answer. `route` is the pattern, not the path: the number of series stays bounded."""
    REQUESTS.labels(method if method in _METHODS else "other", route, str(status)).inc()
    SECONDS.labels(route).observe(seconds)


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped in prometheus_client
    return generate_latest(registry)
