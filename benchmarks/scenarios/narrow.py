"""Bulk both ways over 1 Mbit/s with socket buffers of 4 KiB, and how late pings are answered (§14, item 12)."""

from contextlib import ExitStack
from statistics import median

from benchmarks.bench import Bench
from benchmarks.figures import alone
from benchmarks.outcome import RATIO, Outcome, Sample, at_least, at_most
from benchmarks.processes import BenchError
from benchmarks.wire.parts import dialling, gorilla, linked, listening, order, whole

NAME, TITLE = "narrow", "A line of 1 Mbit/s with socket buffers of 4 KiB"
RATE = 125_000  # bytes a second, each way
BUFFER = 4096
PATIENCE_MS = 10_000.0
"""hashicorp/yamux ends a session whose ping is not answered in 10 s."""
_MIN_PINGS = 3


def run(bench: Bench) -> Outcome:
    """Our agent's end and the Go agent, each with a stream down and one up at once, and pings beside them."""
    outcome = Outcome(NAME, TITLE)
    for name, go in (("our agent", False), ("Go agent", True)):
        found = _cross(bench, go=go)
        outcome.samples[name] = [found]
        outcome.figures += [
            alone(f"{name}, {way}: share of the line that is payload", [found[f"{way}_share"]], RATIO, at_least(0.8))
            for way in ("down", "up")
        ]
        outcome.figures += [
            alone(f"{name}: ping, median", [found["ping_ms"]], "ms"),
            alone(f"{name}: ping, longest", [found["longest_ms"]], "ms", at_most(PATIENCE_MS)),
        ]
    outcome.notes.append(
        "Both transfers came to their end, so nothing stood still and no keepalive ended the session. The pings are the"
        " daemon's, two a second. hashicorp/yamux sends its own from the 30th second on: within a whole run only."
    )
    return outcome


def _cross(bench: Bench, *, go: bool) -> Sample:
    folder, seconds = bench.var / "log", bench.effort.narrow
    size = int(RATE * seconds)
    with ExitStack() as stack:
        daemon, port = stack.enter_context(listening(folder, buffer=BUFFER))
        port = stack.enter_context(linked(folder, port, rate=RATE, buffer=BUFFER, bound=2 * BUFFER))
        if go:
            stack.enter_context(gorilla(folder, port, bench.upstream, socket=BUFFER))
        else:
            stack.enter_context(dialling(folder, port, buffer=BUFFER))
        streams = [order(way, size, go=go) for way in ("down", "up")]
        done = daemon.ask(60 + 4 * seconds, do="carry", streams=streams, ping=True)
    sample: Sample = {}
    for way, result in zip(("down", "up"), done["streams"], strict=True):
        if not whole(way, size, result):
            raise BenchError(f"{way}: {result['bytes']} bytes came: {result['fault'] or done['end']}")
        sample[f"{way}_share"] = size / result["seconds"] / RATE
    pings = [1000 * seconds for seconds in done["pings"]]
    if done["end"] or len(pings) < _MIN_PINGS:
        raise BenchError(f"{len(pings)} pings were answered: {done['end'] or 'too few'}")
    return sample | {"ping_ms": median(pings), "longest_ms": max(pings), "pings": float(len(pings))}
