"""Bulk through one stream over a long line: what windows of different sizes let through (yamux.md §14, item 4)."""

import math
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import Any

from benchmarks.bench import Bench
from benchmarks.effort import Effort
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import Outcome, Sample
from benchmarks.sides import MB, interleaved
from benchmarks.wire.parts import dialling, gorilla, linked, listening, pour

NAME, TITLE = "distance", "Bulk through one stream by round trip and window"
KIB, MIB = 1024, 1024 * 1024
DIRECTIONS = ("down", "up")
WINDOWS = {"256 KiB": 256 * KIB, "1 MiB": MIB, "4 MiB": 4 * MIB}
GROWS = "256 KiB that grow to 1 MiB"
"""As both programs are set; with the others a window has its size from the start, and keeps it."""
GO = "256 KiB, Go agent"
"""Windows as hashicorp/yamux has them, and its own rule for credit."""
_LEAST_WINDOWS = 8
_ROUNDS = 3  # many sizes: the shape is what counts


def allowed(window: int, round_trip: float) -> float:
    """The most that a window lets through, in MB/s: all of it once a round trip. Pure."""
    return window / round_trip / MB


def amount(effort: Effort, window: int, round_trip: float) -> int:
    """Bytes of one measurement: whole windows for about its seconds, never more than `effort.wire`. Pure."""
    if not round_trip:
        return effort.wire
    windows = max(_LEAST_WINDOWS, math.ceil(effort.seconds / round_trip))
    return min(windows, max(1, effort.wire // window)) * window


def settings(window: str) -> dict[str, Any]:
    """A session's settings for one of `WINDOWS`, or for what is shipped. Pure."""
    size = WINDOWS.get(window)
    if size is None:
        return {}
    # Credit that is held back from bulk beside other streams would be measured with the window.
    return {"receive_window": size, "max_receive_window": size, "bulk_window": 0}


def run(bench: Bench) -> Outcome:
    """Both directions for each round trip and window, between two ends of ours without a proxy."""
    outcome, effort = Outcome(NAME, TITLE), bench.effort
    curves: dict[str, dict[str, dict[float, list[Sample]]]] = {"down": {}, "up": {}}
    for round_trip in effort.round_trips:
        for window in (*WINDOWS, GROWS, GO):
            size = MIB if window == GROWS else WINDOWS.get(window, 256 * KIB)
            found = _at(bench, round_trip, window, amount(effort, size, round_trip))
            for direction, samples in found.items():
                name = f"{round_trip * 1000:g} ms, {window}, {direction}"
                outcome.samples[name] = samples
                if window in WINDOWS:
                    line = curves[direction].setdefault(f"{round_trip * 1000:g} ms", {})
                    line[size / KIB] = samples
                if round_trip:
                    bound = [{"mb_s": allowed(size, round_trip)}] * len(samples)
                    outcome.figures.append(against(name, samples, bound, "mb_s", "MB/s"))
                else:
                    outcome.figures += [
                        alone(name, [s["mb_s"] for s in samples], "MB/s"),
                        alone(f"{name}: CPU, daemon's end", [s["daemon_cpu_s_gib"] for s in samples], "s/GiB"),
                        alone(f"{name}: CPU, agent's end", [s["agent_cpu_s_gib"] for s in samples], "s/GiB"),
                    ]
    for direction, lines in curves.items():
        title = f"One stream {direction}, by the receiver's window"
        outcome.curves.append(growing(f"distance-{direction}", title, "KiB of window", "MB/s", "mb_s", lines))
    outcome.notes.append(
        "With a round trip the ratio is to what the window allows (one window a round trip, in the column of the peer);"
        " the line is a relay of our own that delays both directions and limits neither. Without one there is no relay."
    )
    return outcome


def _at(bench: Bench, round_trip: float, window: str, size: int) -> dict[str, list[Sample]]:
    folder, config, go = bench.var / "log", settings("256 KiB" if window == GO else window), window == GO
    with ExitStack() as stack:
        daemon, port = stack.enter_context(listening(folder, config))
        if round_trip:
            port = stack.enter_context(linked(folder, port, delay=round_trip / 2))
        if go:
            pid = stack.enter_context(gorilla(folder, port, bench.upstream)).pid
        else:
            pid = stack.enter_context(dialling(folder, port, config)).pid
        for direction in DIRECTIONS:
            pour(daemon, pid, direction, min(size, 4 * MIB), go=go)
        jobs = {each: partial(pour, daemon, pid, each, size, go=go) for each in DIRECTIONS}
        found = interleaved(min(_ROUNDS, bench.effort.rounds), jobs)
    middle = [median(sample["mb_s"] for sample in samples) for samples in found.values()]
    bench.say(f"{round_trip * 1000:g} ms, {window}: " + ", ".join(f"{value:.1f} MB/s" for value in middle))
    return found
