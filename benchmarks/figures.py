"""Figures and curves from samples. Pure."""

from collections.abc import Mapping, Sequence
from statistics import median

from benchmarks.outcome import RATIO, Curve, Figure, Goal, Sample
from benchmarks.stats import ratio, spread


def _column(samples: Sequence[Sample], name: str) -> list[float]:
    return [sample[name] for sample in samples]


def against(
    name: str, ours: Sequence[Sample], theirs: Sequence[Sample], key: str, absolute: str, goal: Goal | None = None
) -> Figure:
    """Our `key` by theirs; the medians themselves beside it, in `absolute`."""
    mine, its = _column(ours, key), _column(theirs, key)
    return Figure(name, ratio(mine, its), goal, RATIO, median(mine), median(its), absolute)


def alone(name: str, values: Sequence[float], unit: str, goal: Goal | None = None) -> Figure:
    """A figure that stands by itself."""
    return Figure(name, spread(values), goal, unit)


def growing(
    slug: str, title: str, x: str, y: str, key: str, samples: Mapping[str, Mapping[float, Sequence[Sample]]]
) -> Curve:
    """A curve of `key`: for each name, samples by size."""
    lines = {}
    for name, by_size in samples.items():
        points = []
        for size, found in sorted(by_size.items()):
            seen = spread(_column(found, key))
            points.append((float(size), seen.value, seen.low, seen.high))
        lines[name] = points
    return Curve(slug, title, x, y, lines)
