"""Bulk through one stream over a long line: what windows of different sizes let through (yamux.md §14, item 4)."""

import math
from contextlib import ExitStack
from typing import Any

from benchmarks.bench import Bench
from benchmarks.effort import Effort
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import Outcome, Sample
from benchmarks.processes import BenchError, cpu_seconds
from benchmarks.sides import MB, interleaved
from benchmarks.stats import percentile
from benchmarks.wire.parts import Part, dialling, linked, listening

NAME, TITLE = "distance", "Bulk through one stream by round trip and window"
KIB, MIB, GIB = 1024, 1024 * 1024, 1024 * 1024 * 1024
WINDOWS = {"256 KiB": 256 * KIB, "1 MiB": MIB, "4 MiB": 4 * MIB}
GROWS = "256 KiB that grow to 1 MiB"
"""As both programs are set; with the others a window has its size from the start, and keeps it."""
_LEAST_WINDOWS = 8
_SLOWEST = 250_000  # bytes a second: below that it hangs


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
    return {} if size is None else {"receive_window": size, "max_receive_window": size}


def pour(daemon: Part, agent: Part, direction: str, size: int) -> Sample:
    """So many bytes down or up one new stream, and what that cost each end.

    From the request until the last byte came, or until its receipt was answered: either way, what a window holds
    back takes a round trip for each window full of bytes. Raises BenchError when bytes are missing.
    """
    wanted = {"ask": f"down {size}\n"} if direction == "down" else {"ask": "up\n", "send": size}
    cpu = cpu_seconds([agent.pid])
    done = daemon.ask(30 + size / _SLOWEST, do="carry", streams=[wanted])
    (stream,) = done["streams"]
    came = stream["bytes"] if direction == "down" else int(stream["said"] or 0)
    if stream["fault"] or came != size:
        raise BenchError(f"{direction}: {came} bytes of {size} came: {stream['fault'] or done['end']}")
    cpu = cpu_seconds([agent.pid]) - cpu
    return {
        "mb_s": size / stream["seconds"] / MB,
        "seconds": stream["seconds"],
        "daemon_cpu_s_gib": done["cpu"] / size * GIB,
        "agent_cpu_s_gib": cpu / size * GIB,
    }


def run(bench: Bench) -> Outcome:
    """Both directions for each round trip and window, between two ends of ours without a proxy."""
    outcome, effort = Outcome(NAME, TITLE), bench.effort
    curves: dict[str, dict[str, dict[float, list[Sample]]]] = {"down": {}, "up": {}}
    for round_trip in effort.round_trips:
        for window in (*WINDOWS, GROWS):
            size = WINDOWS.get(window, MIB)
            found = _at(bench, round_trip, window, amount(effort, size, round_trip))
            for direction, samples in found.items():
                name = f"{round_trip * 1000:g} ms, {window}, {direction}"
                outcome.samples[name] = samples
                if window != GROWS:
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
    folder, config = bench.var / "log", settings(window)
    with ExitStack() as stack:
        daemon, port = stack.enter_context(listening(folder, config))
        if round_trip:
            port = stack.enter_context(linked(folder, port, delay=round_trip / 2))
        agent = stack.enter_context(dialling(folder, port, config))
        directions = ("down", "up")
        for direction in directions:
            pour(daemon, agent, direction, min(size, 4 * MIB))
        found = interleaved(
            bench.effort.rounds, {each: lambda each=each: pour(daemon, agent, each, size) for each in directions}
        )
    shares = [percentile([s["mb_s"] for s in samples], 0.5) for samples in found.values()]
    bench.say(f"{round_trip * 1000:g} ms, {window}: " + ", ".join(f"{share:.1f} MB/s" for share in shares))
    return found
