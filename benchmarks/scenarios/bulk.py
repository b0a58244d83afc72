"""One stream at full speed, down and up, over growing bodies; the most memory that the relay took meanwhile."""

from dataclasses import replace
from functools import partial

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import Curve, Outcome, Sample, at_least, at_most
from benchmarks.processes import memory, reset_peak
from benchmarks.sides import MB, Ask, Side, compare, interleaved, measure, warm

NAME, TITLE = "bulk", "Bulk through one stream"
_GOALS = {"down": 1.8, "up": 1.25}


def asks(size: int) -> dict[str, tuple[Ask, str]]:
    """Both directions of a body of `size` bytes, and what tells their speed."""
    return {
        "down": (Ask(path=f"/bytes/{size}"), "in_mb_s"),
        "up": (Ask(path="/sink", method="POST", body=size), "out_mb_s"),
    }


def run(bench: Bench) -> Outcome:
    """Speed by size for each direction, then the memory of long bodies."""
    outcome = Outcome(NAME, TITLE)
    ours, reference = bench.ours(), bench.reference()
    if ours.name != "fast lane":
        outcome.notes.append(NO_FAST_LANE)
    for direction, (ask, key) in asks(bench.effort.bulk).items():
        found = _with_peaks(bench, [ours, reference], ask)
        outcome.samples |= {f"{name}, {direction}": samples for name, samples in found.items()}
        mine, its = found[ours.name], found[reference.name]
        outcome.figures += [
            against(f"{ours.name}, {direction}", mine, its, key, "MB/s", at_least(_GOALS[direction])),
            against(f"CPU of the relay, {direction}", mine, its, "relay_cpu_s_gb", "s/GB"),
            alone(f"memory that grew, {direction}", [s["grown_mb"] for s in mine], "MB", at_most(8.0)),
        ]
    for direction in asks(1):
        outcome.curves.append(_curve(bench, [ours, reference], direction, outcome))
    return outcome


def _with_peaks(bench: Bench, sides: list[Side], ask: Ask) -> dict[str, list[Sample]]:
    def one(side: Side) -> Sample:
        before = {pid: memory(pid) for pid in side.relay}
        for pid in side.relay:
            reset_peak(pid)
        sample = measure(side, ask, bench.effort.seconds)
        grown = sum(memory(pid, "VmHWM") - before[pid] for pid in side.relay)
        return sample | {"grown_mb": grown / MB, "peak_mb": sum(memory(p, "VmHWM") for p in side.relay) / MB}

    for side in sides:
        warm(side, ask, bench.effort.warm_up)
    return interleaved(bench.effort.rounds, {side.name: partial(one, side) for side in sides})


def _curve(bench: Bench, sides: list[Side], direction: str, outcome: Outcome) -> Curve:
    by_side: dict[str, dict[float, list[Sample]]] = {side.name: {} for side in sides}
    key = asks(1)[direction][1]
    effort = replace(bench.effort, rounds=min(2, bench.effort.rounds))  # many sizes: the shape is what counts
    for size in effort.sizes:
        for name, found in compare(effort, sides, asks(size)[direction][0]).items():
            by_side[name][size] = found
            outcome.samples[f"{name}, {direction}, {size} B"] = found
    return growing(f"bulk-{direction}", f"One connection, bodies {direction}", "bytes a body", "MB/s", key, by_side)
