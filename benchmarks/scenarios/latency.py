"""What the tunnel adds to one small request at a time."""

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import against
from benchmarks.outcome import Outcome, Sample, at_most
from benchmarks.sides import Ask, compare

NAME, TITLE = "latency", "Added latency, one request at a time"


def run(bench: Bench) -> Outcome:
    """The median over each side, less the median without any tunnel in the same round."""
    outcome = Outcome(NAME, TITLE)
    ours, reference, direct = bench.ours(), bench.reference(), bench.direct()
    if ours.name != "fast lane":
        outcome.notes.append(NO_FAST_LANE)
    outcome.samples |= compare(bench.effort, [ours, reference, direct], Ask())

    def added(name: str, key: str) -> list[Sample]:
        bare = outcome.samples[direct.name]
        return [{key: s[key] - b[key]} for s, b in zip(outcome.samples[name], bare, strict=True)]

    for key, goal in (("p50_ms", at_most(0.9)), ("p99_ms", None)):
        name = f"{ours.name}, added {key.removesuffix('_ms')}"
        outcome.figures.append(against(name, added(ours.name, key), added(reference.name, key), key, "ms", goal))
    return outcome
