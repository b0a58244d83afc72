"""The harness's arithmetic, tables and pictures. Nothing is timed here, and nothing started."""

import xml.etree.ElementTree as ET

import pytest

from benchmarks import flame
from benchmarks.__main__ import SCENARIOS, _arguments
from benchmarks.effort import FULL, QUICK
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import Curve, Outcome, at_least, at_most
from benchmarks.plot import svg, ticks
from benchmarks.soak import curves, judge, verdicts
from benchmarks.stats import Spread, percentile, ratio, slope, spread
from benchmarks.table import markdown, number, row


def test_a_spread_is_the_median_between_the_extremes() -> None:
    assert spread([3.0, 1.0, 10.0]) == Spread(3.0, 1.0, 10.0)
    assert spread([1.0, 2.0]).value == 1.5
    with pytest.raises(ValueError, match="nothing"):
        spread([])


def test_a_ratio_is_of_medians_and_its_spread_of_rounds() -> None:
    found = ratio([10.0, 30.0, 20.0], [10.0, 10.0, 5.0])
    assert found == Spread(2.0, 1.0, 4.0)


@pytest.mark.parametrize(("ours", "theirs"), [([1.0], [1.0, 2.0]), ([], []), ([1.0], [0.0])])
def test_rounds_that_do_not_pair_give_no_ratio(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds|zero"):
        ratio(ours, theirs)


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert percentile(values, 0.5) == 51.0
    assert percentile(values, 0.99) == 100.0
    assert percentile(values, 1.0) == 100.0
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 0.5)


def test_a_slope_is_what_each_one_adds() -> None:
    assert slope([(0, 5.0), (100, 2005.0), (1000, 20005.0)]) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="two"):
        slope([(1, 1.0), (1, 2.0)])


@pytest.mark.parametrize(
    ("goal", "value", "met"),
    [
        (at_least(1.5), 1.5, True),
        (at_least(1.5), 1.49, False),
        (at_most(0.5), 0.5, True),
        (at_most(0.5), 0.51, False),
        (at_most(0), 0.0, True),
    ],
)
def test_a_goal_includes_its_bound(goal: object, value: float, met: bool) -> None:
    figure = alone("x", [value], "s", goal)  # type: ignore[arg-type]  # Goal; at_least and at_most make nothing else
    assert figure.met is met
    assert figure.as_json()["met"] is met


def test_a_figure_without_a_goal_is_neither_met_nor_missed() -> None:
    assert alone("x", [1.0], "s").met is None


@pytest.mark.parametrize(
    ("value", "text"), [(14758.2, "14 758"), (999.6, "1000"), (123.4, "123"), (1.5, "1.5"), (0.0123, "0.0123")]
)
def test_numbers_keep_three_digits(value: float, text: str) -> None:
    assert number(value) == text


def test_a_row_says_goal_ratio_absolutes_and_verdict() -> None:
    mine, its = [{"rps": 3000.0}, {"rps": 3300.0}], [{"rps": 2000.0}, {"rps": 2000.0}]
    line = row(against("c=32", mine, its, "rps", "req/s", at_least(1.5)))
    times = "\N{MULTIPLICATION SIGN}"
    cells = ("c=32", f"≥ 1.5 {times}", f"1.57 {times} (1.5 to 1.65)", "3 150 req/s", "2 000 req/s", "met")
    assert line == "| " + " | ".join(cells) + " |\n"
    assert "**missed**" in row(against("c=32", its, mine, "rps", "req/s", at_least(1.5)))


def test_the_page_has_facts_figures_plots_and_notes() -> None:
    outcome = Outcome("a", "Title", [alone("f", [1.0], "s")], notes=["A note."])
    outcome.curves.append(Curve("slug", "Curve", "x", "y", {"ours": [(1.0, 1.0, 1.0, 1.0)]}))
    outcome.pictures["flame"] = ("Flame", "<svg/>")
    page = markdown("Figures", ["cores: 2"], [outcome])
    for part in (
        "# Figures",
        "- cores: 2",
        "## Title",
        "| f |",
        "![Curve](slug.svg)",
        "![Flame](flame.svg)",
        "A note.",
    ):
        assert part in page


def test_a_curve_is_sorted_and_has_medians() -> None:
    curve = growing("s", "t", "x", "y", "rps", {"ours": {64: [{"rps": 2.0}], 1: [{"rps": 1.0}, {"rps": 3.0}]}})
    assert curve.lines["ours"] == [(1.0, 2.0, 1.0, 3.0), (64.0, 2.0, 2.0, 2.0)]


@pytest.mark.parametrize(("highest", "last"), [(97.0, 100.0), (0.004, 0.004), (14758.0, 15000.0), (0.0, 1.0)])
def test_ticks_are_round_and_reach_the_highest(highest: float, last: float) -> None:
    found = ticks(highest)
    assert found[0] == 0
    assert found[-1] == pytest.approx(last)
    assert len(found) <= 7


@pytest.mark.parametrize("sizes", [[1.0], [1.0, 16.0, 64.0]])
def test_a_plot_is_an_svg_with_a_point_for_each(sizes: list[float]) -> None:
    lines = {name: [(x, x * 2, x, x * 3) for x in sizes] for name in ("ours & theirs", "peer")}
    drawn = ET.fromstring(svg(Curve("s", "A <title>", "x", "y", lines)))  # noqa: S314 - our own text
    circles = drawn.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 2 * len(sizes)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 640
        assert 0 <= float(circle.attrib["cy"]) <= 380


STACKS = """
main (a.py:1);work (a.py:10) 30
main (a.py:1);work (a.py:12);send (b.py:3) 60
main (a.py:1);EpollSelector.select (selectors.py:468) 500
boot (x.py:1);main (a.py:2) 10
main (a.py:1);\x01garbage (b.py:3) 7
"""


def test_samples_are_put_together_by_function_and_what_waited_or_was_misread_is_left_out() -> None:
    stacks = flame.parse(STACKS.splitlines())
    assert stacks == {
        ("main (a.py)", "work (a.py)"): 30,
        ("main (a.py)", "work (a.py)", "send (b.py)"): 60,
        ("boot (x.py)", "main (a.py)"): 10,
    }
    assert flame.own(stacks)[0] == ("send (b.py)", 0.6)


def test_a_flame_graph_begins_where_it_is_told_to() -> None:
    root = flame.tree(flame.parse(STACKS.splitlines()), skip="main")
    assert root.samples == 100
    assert list(root.calls) == ["main (a.py)"]
    assert root.calls["main (a.py)"].calls["work (a.py)"].samples == 90
    ET.fromstring(flame.svg(root, "a < b"))  # noqa: S314 - our own text
    with pytest.raises(ValueError, match="no sample"):
        flame.svg(flame.Node(), "empty")


def test_a_quick_run_measures_less_of_everything() -> None:
    assert QUICK.rounds < FULL.rounds
    assert QUICK.seconds < FULL.seconds
    assert set(QUICK.connections) <= set(FULL.connections)
    assert max(QUICK.tunnels) < max(FULL.tunnels)
    assert {16, 32, 64} <= set(FULL.connections)  # the goals are told for these
    assert max(FULL.tunnels) == FULL.storm == 5000


def test_scenarios_are_chosen_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert _arguments(["--only", "storm", "--quick"]).only == ["storm"]
    assert all(name.isalpha() for name in SCENARIOS)
    with pytest.raises(SystemExit):
        _arguments(["--only", "nothing"])
    assert "invalid choice" in capsys.readouterr().err


def test_a_timeline_is_drawn_evenly_from_zero() -> None:
    series = {"daemon memory": [(0.0, 10.0), (60.0, 30.0)], "agent tasks": [(0.0, 4.0), (60.0, 5.0)]}
    memory, tasks = (svg(curve) for curve in curves(series) if curve.lines)
    assert memory.count("<polyline") == 1
    assert "<circle" not in memory
    assert "agent" in tasks


@pytest.mark.parametrize(
    ("values", "grows"),
    [
        ([100.0] * 30, False),
        ([100.0 + index for index in range(30)], True),
        ([100.0 + index / 10 for index in range(30)], False),  # 2 MB in all: within what is allowed
        ([100.0] * 14 + [400.0] * 2 + [100.0] * 14, False),  # a peak is no growth
        ([100.0 - index for index in range(30)], False),
    ],
)
def test_what_grows_lies_higher_at_the_end(values: list[float], grows: bool) -> None:
    points = [(5.0 * index, value) for index, value in enumerate(values)]
    assert judge("daemon memory", points, allowed=4).grows is grows


def test_the_warm_up_is_not_judged() -> None:
    points = [(5.0 * index, float(min(index, 20) * 10)) for index in range(60)]
    assert not verdicts({"daemon memory": points}, 100.0)[0].grows
    assert verdicts({"daemon memory": points}, 0.0)[0].grows
    with pytest.raises(ValueError, match="too few"):
        verdicts({"daemon memory": points}, 290.0)
