"""Sixty-four bulk streams at once over one tunnel: what they get together, and how evenly (yamux.md §14, item 5)."""

from collections.abc import Sequence
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import alone
from benchmarks.outcome import RATIO, Outcome, Sample, at_least
from benchmarks.processes import BenchError
from benchmarks.sides import MB, interleaved
from benchmarks.wire.parts import GIB, Part, dialling, listening, order, whole

NAME, TITLE = "share", "Sixty-four bulk streams of one tunnel"
STREAMS = 64
LEAST = 2 * 1024 * 1024
"""Bytes of each stream, at least: with a window or two the first are through before the last have begun."""
_SECONDS = 300.0


def jain(rates: Sequence[float]) -> float:
    """Jain's index of fairness: 1 when all have the same, 1 by their number when one has all. Pure.

    Raises ValueError when nobody has anything.
    """
    if not any(rates):
        raise ValueError("nothing was measured")
    return sum(rates) ** 2 / (len(rates) * sum(rate * rate for rate in rates))


def pour_all(daemon: Part, direction: str, each: int) -> Sample:
    """`each` bytes on each stream, all begun at once. Raises BenchError when bytes are missing."""
    done = daemon.ask(_SECONDS, do="carry", streams=[order(direction, each)] * STREAMS)
    for result in done["streams"]:
        if not whole(direction, each, result):
            raise BenchError(f"{direction}: {result['bytes']} bytes came: {result['fault'] or done['end']}")
    moved = each * STREAMS
    return {
        "mb_s": moved / done["seconds"] / MB,
        "jain": jain([each / result["seconds"] for result in done["streams"]]),
        "daemon_cpu_s_gib": done["cpu"] / moved * GIB,
    }


def run(bench: Bench) -> Outcome:
    """Both directions between two ends of ours, as they are shipped."""
    outcome, folder, each = Outcome(NAME, TITLE), bench.var / "log", max(LEAST, bench.effort.wire // STREAMS)
    with listening(folder) as (daemon, port), dialling(folder, port):
        jobs = {direction: partial(pour_all, daemon, direction) for direction in ("down", "up")}
        for job in jobs.values():
            job(256 * 1024)
        outcome.samples = interleaved(bench.effort.rounds, {name: partial(job, each) for name, job in jobs.items()})
    for direction, samples in outcome.samples.items():
        outcome.figures += [
            alone(f"{direction}: together", [sample["mb_s"] for sample in samples], "MB/s"),
            alone(f"{direction}: Jain's index", [sample["jain"] for sample in samples], RATIO, at_least(0.95)),
            alone(f"{direction}: CPU, daemon's end", [sample["daemon_cpu_s_gib"] for sample in samples], "s/GiB"),
        ]
    return outcome
