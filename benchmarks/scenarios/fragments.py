"""Bulk from a Go agent whose messages come in fragments of 4 KiB, beside the same in whole frames (§14, item 11)."""

from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import against
from benchmarks.outcome import Outcome
from benchmarks.sides import interleaved
from benchmarks.wire.parts import gorilla, listening, pour

NAME, TITLE = "fragments", "Messages in fragments of 4 KiB"
FRAGMENT, WHOLE = 4096, 512 * 1024
"""gorilla's default write buffer, and one that takes the largest window with its header."""
_WARM_UP = 4 * 1024 * 1024


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
    outcome.figures += [
        against("throughput, fragments by whole frames", mine, its, "mb_s", "MB/s"),
        against("CPU of the receiver, fragments by whole frames", mine, its, "daemon_cpu_s_gib", "s/GiB"),
        against("CPU of the agent, fragments by whole frames", mine, its, "agent_cpu_s_gib", "s/GiB"),
    ]
    outcome.notes.append(
        "In the columns: fragments (ours), whole frames (peer). Multiplied by 977 a figure in s/GiB is µs a MiB."
    )
    return outcome
