"""A curve as an SVG picture, written by hand: no library is needed for a few lines over a logarithm. Pure."""

import math
from collections.abc import Callable, Iterable
from html import escape

from benchmarks.outcome import Curve
from benchmarks.table import number

WIDTH, HEIGHT = 640, 380
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 44, 84
# Told apart by people with any colour vision (Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")


def ticks(highest: float, count: int = 5) -> list[float]:
    """Round steps from zero that reach `highest`."""
    if highest <= 0:
        return [0.0, 1.0]
    raw = highest / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    return [step * index for index in range(math.ceil(highest / step - 1e-9) + 1)]


class _Axes:
    def __init__(self, xs: Iterable[float], highest: float, *, timeline: bool = False) -> None:
        self.xs = ticks(max(xs), 8) if timeline else sorted(set(xs))
        self.ticks = ticks(highest)
        self._place: Callable[[float], float] = float if timeline else math.log10
        self._low, self._high = self._place(self.xs[0]), self._place(self.xs[-1])

    def x(self, value: float) -> float:
        span = self._high - self._low
        share = (self._place(value) - self._low) / span if span else 0.5
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - value / self.ticks[-1] * (HEIGHT - TOP - BOTTOM)


def _text(x: float, y: float, text: str, anchor: str = "middle", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>\n'


def _grid(axes: _Axes) -> str:
    drawn = ""
    for tick in axes.ticks:
        y = axes.y(tick)
        drawn += f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#ddd"/>\n'
        drawn += _text(LEFT - 8, y + 4, number(tick), "end")
    for x in axes.xs:
        drawn += _text(axes.x(x), HEIGHT - BOTTOM + 18, number(x))
    return drawn


def svg(curve: Curve) -> str:
    """The picture. y begins at zero; a bar at each point is its spread, which a timeline has none of."""
    every = [point for points in curve.lines.values() for point in points]
    axes = _Axes((point[0] for point in every), max(point[3] for point in every), timeline=curve.timeline)
    body = _text(WIDTH / 2, 24, curve.title, extra=' font-size="15" font-weight="bold"') + _grid(axes)
    body += _text(WIDTH / 2, HEIGHT - BOTTOM + 38, curve.x)
    middle = (TOP + HEIGHT - BOTTOM) / 2
    body += _text(16, middle, curve.y, extra=f' transform="rotate(-90 16 {middle:.1f})"')
    for index, (name, points) in enumerate(curve.lines.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{axes.x(x):.1f},{axes.y(value):.1f}" for x, value, _, _ in points)
        body += f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>\n'
        for x, value, low, high in () if curve.timeline else points:
            at, down, up = f"{axes.x(x):.1f}", f"{axes.y(low):.1f}", f"{axes.y(high):.1f}"
            body += f'<line x1="{at}" y1="{down}" x2="{at}" y2="{up}" stroke="{colour}"/>\n'
            body += f'<circle cx="{at}" cy="{axes.y(value):.1f}" r="3" fill="{colour}"/>\n'
        column, line = index % 3, index // 3
        left, base = LEFT + column * 190, HEIGHT - 28 + line * 16
        body += f'<rect x="{left}" y="{base - 9}" width="10" height="10" fill="{colour}"/>\n'
        body += _text(left + 15, base, name, "start")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img">\n<title>{escape(curve.title)}</title>\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>\n{body}</svg>\n'
    )
