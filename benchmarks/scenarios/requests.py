"""Small requests, streams reused: throughput, CPU a request and latency beside every peer, over growing concurrency."""

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.build import core_is_compiled
from benchmarks.figures import against, growing
from benchmarks.outcome import Figure, Outcome, Sample, at_least, at_most
from benchmarks.peers import others
from benchmarks.sides import Ask, Side, compare

NAME, TITLE = "requests", "Small requests, streams reused"
_PEERS = {"frp http": 4.0, "chisel (raw)": 1.0, "piko": 5.0}

BySide = dict[str, dict[float, list[Sample]]]


def run(bench: Bench) -> Outcome:
    """All sides at each concurrency."""
    outcome = Outcome(NAME, TITLE)
    ours, reference = bench.ours(), bench.reference()
    if ours.name != "fast lane":
        outcome.notes.append(NO_FAST_LANE)
    with others(bench.var, bench.upstream) as (peers, missing):
        outcome.notes += missing
        sides = [ours, reference, bench.direct(), *peers]
        samples = _sweep(bench, sides, outcome)
    mine, its = samples[ours.name], samples[reference.name]
    outcome.figures += _figures(ours.name, mine, its)
    for peer in peers:
        goal = at_least(_PEERS[peer.name]) if peer.name in _PEERS else None
        outcome.figures += [
            against(f"{ours.name} by {peer.name}, c={c:g}", mine[c], samples[peer.name][c], "rps", "req/s", goal)
            for c in (16, 64)
            if c in mine
        ]
    tunnels = {name: found for name, found in samples.items() if name != "no tunnel"}
    outcome.curves += [
        growing("requests-rps", "Small requests a second", "connections", "requests/s", "rps", samples),
        growing("requests-cpu", "CPU of the relay a request", "connections", "µs", "relay_cpu_us", tunnels),
        growing("requests-p99", "99th percentile of latency", "connections", "ms", "p99_ms", samples),
    ]
    return outcome


def _sweep(bench: Bench, sides: list[Side], outcome: Outcome) -> BySide:
    samples: BySide = {side.name: {} for side in sides}
    for connections in bench.effort.connections:
        found = compare(bench.effort, sides, Ask(connections=connections))
        for name, several in found.items():
            samples[name][connections] = several
            outcome.samples[f"{name}, c={connections}"] = several
    return samples


def _figures(name: str, mine: dict[float, list[Sample]], its: dict[float, list[Sample]]) -> list[Figure]:
    figures = []
    for c, samples in mine.items():
        goal = at_least(2.2 if core_is_compiled() else 1.5) if c in (32, 64) else None
        figures.append(against(f"{name}, c={c:g}", samples, its[c], "rps", "req/s", goal))
    for c, samples in mine.items():
        goal = at_most(0.36) if c == 32 else None
        figures.append(against(f"CPU a request, c={c:g}", samples, its[c], "relay_cpu_us", "µs", goal))
    return figures
