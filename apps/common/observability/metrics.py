"""What the API counts, for Prometheus; all worker processes together where `PROMETHEUS_MULTIPROC_DIR` is set.

With that variable each process maps files into its memory. Writing to a page of such a file for which a full disk has
no room raises SIGBUS, which ends the process. So every page is allocated first, and a series without room is not
counted.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector

logger = structlog.get_logger(__name__)

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
FILE_BYTES: Final = 256 * 1024
"""Bytes that each file has from the start: room for some two thousand series."""

_BUCKETS: Final = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
REQUESTS: Final = Counter("visiona_api_requests", "Answers by route and status.", ["method", "route", "status"])
SECONDS: Final = Histogram("visiona_api_request_seconds", "To the head of the answer.", ["route"], buckets=_BUCKETS)
PLACES: Final = Gauge(
    "visiona_api_places", "Held in a pool, by class of owners.", ["pool", "owners"], multiprocess_mode="livesum"
)
LARGEST: Final = Gauge(
    "visiona_api_places_largest", "Of one owner in one process.", ["pool"], multiprocess_mode="livemax"
)
PLACES_REFUSED: Final = Counter("visiona_api_places_refused", "Asked for in vain.", ["pool", "owners"])

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Allocated(MmapedDict):
    """prometheus_client's file of values, with room on the disk for all that is mapped. Raises OSError without."""

    def __init__(self, filename: str, read_mode: bool = False) -> None:
        if not read_mode:
            _allocate(filename, FILE_BYTES)
        super().__init__(filename, read_mode)  # type: ignore[no-untyped-call]  # untyped there

    def _init_value(self, key: str) -> None:
        if self._used + len(key.encode()) + 32 > self._capacity:  # it is about to be doubled
            _allocate(self._fname, 2 * self._capacity)
        super()._init_value(key)  # type: ignore[no-untyped-call]  # untyped there


def _allocate(filename: str, size: int) -> None:
    path = Path(filename)
    with path.open("ab") as file:
        held = file.tell()
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS: written, it is there
                file.write(bytes(max(0, size - held)))
                file.flush()
        except OSError:
            if not held:
                path.unlink()  # whoever collects them all could not read it
            raise


def allocate() -> None:
    """Create the worker's files, at its start. Without room on the disk it counts in its own memory, and logs that."""
    if _FOLDER not in os.environ:
        return
    values.MmapedDict = _Allocated  # type: ignore[attr-defined]  # imported there from its own module
    try:
        REQUESTS.labels("GET", "healthz", "200")
        SECONDS.labels("healthz")
    except OSError as error:
        folder = os.environ.pop(_FOLDER)
        values.ValueClass = values.MutexValue
        logger.warning("metrics_have_no_room", folder=folder, error=error.strerror, consequence="each process alone")


def observe(method: str, route: str, status: int, seconds: float) -> None:
    """Counts one answer. `route` is the pattern, not the path: the number of series stays bounded."""
    try:
        REQUESTS.labels(method if method in _METHODS else "other", route, str(status)).inc()
        SECONDS.labels(route).observe(seconds)
    except OSError:  # a full disk has no room for a new series: that costs the series, not the answer
        return


def tell_places(pool: str, classes: Mapping[str, int], largest: int) -> None:
    """Set the gauges of a pool of this process.

    Args:
        pool: the pool's name.
        classes: kind of owner (user, stranger) → places held now.
        largest: places held by the owner that holds most.
    """
    try:
        for owners, held in classes.items():
            PLACES.labels(pool, owners).set(held)
        LARGEST.labels(pool).set(largest)
    except OSError:  # as above
        return


def places_refused(pool: str, owners: str) -> None:
    """Count one request for a place that the pool refused."""
    try:
        PLACES_REFUSED.labels(pool, owners).inc()
    except OSError:
        return


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    if _FOLDER not in os.environ:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # untyped in prometheus_client
    return generate_latest(registry)
