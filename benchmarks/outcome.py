"""What a scenario finds out: figures beside their goals, curves, and the samples behind them. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

from benchmarks.stats import Spread

RATIO: Final = "\N{MULTIPLICATION SIGN}"
"""The unit of a ratio."""

Sample = dict[str, float]
"""One measurement: rps, p50_ms, p99_ms, relay_cpu_us … by name."""


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for a figure: quality.md's, or None where a figure is only told."""

    sense: Literal[">=", "<="]
    bound: float

    def met(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value >= self.bound if self.sense == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.sense == '>=' else '≤'} {self.bound:g}"


def at_least(bound: float) -> Goal:
    """A goal that a figure reaches from below."""
    return Goal(">=", bound)


def at_most(bound: float) -> Goal:
    """A goal that a figure stays under."""
    return Goal("<=", bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table. `unit` is RATIO for a ratio; `ours` and `theirs` are absolute, in `absolute`."""

    name: str
    value: Spread
    goal: Goal | None = None
    unit: str = RATIO
    ours: float | None = None
    theirs: float | None = None
    absolute: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is kept; None without one."""
        return self.goal.met(self.value.value) if self.goal else None

    def as_json(self) -> dict[str, Any]:
        """All of it, for the file of results."""
        return asdict(self) | {"goal": str(self.goal) if self.goal else None, "met": self.met}


@dataclass(frozen=True, slots=True)
class Curve:
    """Lines over a growing size: the name of each with its points (x, median, low, high).

    `timeline`: x is a time from zero on, drawn evenly; else a size above zero, drawn by its logarithm.
    """

    slug: str
    title: str
    x: str
    y: str
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]]
    timeline: bool = False


@dataclass(slots=True)
class Outcome:
    """All that one scenario found out. `notes` say what was left out, and why."""

    name: str
    title: str
    figures: list[Figure] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    pictures: dict[str, tuple[str, str]] = field(default_factory=dict)  # title and SVG by slug
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """All of it, for the file of results."""
        return {
            "name": self.name,
            "title": self.title,
            "seconds": round(self.seconds, 1),
            "figures": [figure.as_json() for figure in self.figures],
            "curves": [asdict(curve) for curve in self.curves],
            "notes": self.notes,
            "samples": self.samples,
        }
