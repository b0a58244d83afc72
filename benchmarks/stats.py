"""Medians, spreads and ratios. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the lowest and the highest value that it stands for."""

    value: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median of `values` between its extremes. Raises ValueError for none."""
    if not values:
        raise ValueError("nothing was measured")
    return Spread(median(values), min(values), max(values))


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The ratio of both medians; the lowest and highest of one round, in which both were measured side by side.

    Raises ValueError when the rounds do not pair, or when a peer's value is zero: that was no measurement.
    """
    if len(ours) != len(theirs) or not ours:
        raise ValueError(f"{len(ours)} rounds against {len(theirs)}")
    if any(not value for value in theirs):
        raise ValueError("a peer's value is zero")
    rounds = [mine / its for mine, its in zip(ours, theirs, strict=True)]
    return Spread(median(ours) / median(theirs), min(rounds), max(rounds))


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not pass. Raises ValueError for none."""
    if not values:
        raise ValueError("nothing was measured")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """What y grows by for each x: the straight line of least squares. Raises ValueError below two different x."""
    if len({x for x, _ in points}) < 2:
        raise ValueError("a slope needs two points")
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    along = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return along / sum((x - mean_x) ** 2 for x, _ in points)
