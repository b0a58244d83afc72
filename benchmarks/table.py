"""The outcomes as a table in Markdown. Pure."""

from collections.abc import Iterable

from benchmarks.outcome import Figure, Outcome
from benchmarks.stats import Spread

HEAD = "| figure | goal | measured (lowest to highest) | ours | peer | |\n| --- | --- | --- | --- | --- | --- |\n"


def number(value: float) -> str:
    """Three digits that count, thousands apart."""
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def _range(value: Spread, unit: str) -> str:
    middle = f"{number(value.value)} {unit}"
    return middle if value.low == value.high else f"{middle} ({number(value.low)} to {number(value.high)})"


def _absolute(value: float | None, unit: str) -> str:
    return "" if value is None else f"{number(value)} {unit}".strip()


def row(figure: Figure) -> str:
    """One figure."""
    goal = f"{figure.goal} {figure.unit}" if figure.goal else ""
    verdict = {True: "met", False: "**missed**", None: ""}[figure.met]
    cells = (
        figure.name,
        goal,
        _range(figure.value, figure.unit),
        _absolute(figure.ours, figure.absolute),
        _absolute(figure.theirs, figure.absolute),
        verdict,
    )
    return "| " + " | ".join(cells) + " |\n"


def markdown(title: str, facts: Iterable[str], outcomes: Iterable[Outcome]) -> str:
    """The whole page: facts of the run, a section a scenario with its table, plots and notes."""
    text = f"# {title}\n\n" + "".join(f"- {fact}\n" for fact in facts)
    for outcome in outcomes:
        text += f"\n## {outcome.title}\n\n"
        if outcome.figures:
            text += HEAD + "".join(map(row, outcome.figures))
        text += "".join(f"\n![{curve.title}]({curve.slug}.svg)\n" for curve in outcome.curves)
        text += "".join(f"\n![{title}]({slug}.svg)\n" for slug, (title, _) in outcome.pictures.items())
        text += "".join(f"\n{note}\n" for note in outcome.notes)
    return text
