"""Bulk from a Go agent whose messages come in fragments of 4 KiB, beside the same in whole frames (§14, item 11)."""

from collections.abc import Sequence
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import against
from benchmarks.outcome import Outcome, Sample
from benchmarks.sides import interleaved
from benchmarks.wire.parts import gorilla, listening, pour

NAME, TITLE = "fragments", "Messages in fragments of 4 KiB"
FRAGMENT, WHOLE = 4096, 512 * 1024
"""gorilla's default write buffer, and one that takes the largest window with its header."""
_WARM_UP = 4 * 1024 * 1024


def by_mib(samples: Sequence[Sample], end: str) -> list[Sample]:
    """CPU of one end in ms a MiB, of each sample. Pure."""
    return [{"ms_mib": sample[f"{end}_cpu_s_gib"] * 1000 / 1024} for sample in samples]


def run(bench: Bench) -> Outcome:
    """The daemon's end by itself receives both, in turns, each from an agent of its own."""
    outcome, folder, size = Outcome(NAME, TITLE), bench.var / "log", bench.effort.wire
    with (
        listening(folder) as (chopped, at_chopped),
        listening(folder) as (whole, at_whole),
        gorilla(folder, at_chopped, bench.upstream, buffer=FRAGMENT) as small,
        gorilla(folder, at_whole, bench.upstream, buffer=WHOLE) as large,
    ):
        jobs = {
            "fragments of 4 KiB": partial(pour, chopped, small.pid, "down", go=True),
            "whole frames": partial(pour, whole, large.pid, "down", go=True),
        }
        for job in jobs.values():
            job(size=_WARM_UP)
        outcome.samples = interleaved(
            bench.effort.rounds, {name: partial(job, size=size) for name, job in jobs.items()}
        )
    mine, its = outcome.samples.values()
    outcome.figures.append(against("throughput, fragments by whole frames", mine, its, "mb_s", "MB/s"))
    for end, who in (("daemon", "receiver"), ("agent", "agent")):
        name = f"CPU of the {who}, fragments by whole frames"
        outcome.figures.append(against(name, by_mib(mine, end), by_mib(its, end), "ms_mib", "ms/MiB"))
    outcome.notes.append("In the columns: fragments (ours), whole frames (peer).")
    return outcome
