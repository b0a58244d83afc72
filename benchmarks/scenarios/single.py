"""Small requests, a new stream for each: what agents get that keep none open."""

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import against, growing
from benchmarks.outcome import Outcome, Sample, at_least, at_most
from benchmarks.peers import Reference
from benchmarks.sides import Ask, Side, compare

NAME, TITLE = "single", "Small requests, one stream a request"


def run(bench: Bench) -> Outcome:
    """A POST of nothing may not be repeated, so no lane that knows of no keep-alive puts it on a stream used before."""
    outcome = Outcome(NAME, TITLE)
    system = bench.system
    device, token = system.devices(1, "single")[0]
    agent = system.go_agent([token], local=bench.upstream, name="bench/1")
    agent.wait_online()
    fast = system.fast(device, agent.pid)
    ours = fast if system.answers(fast) == 200 else system.drf(device, agent.pid)
    if ours is not fast:
        outcome.notes.append(NO_FAST_LANE)
    relay = Reference(bench.var, reuse=False)
    try:
        reference = relay.side("single", relay.agent(["single"], bench.upstream))
        samples: dict[str, dict[float, list[Sample]]] = {ours.name: {}, reference.name: {}}
        for connections in bench.effort.connections:
            _one(bench, [ours, reference], connections, samples, outcome)
    finally:
        relay.close()
        agent.running.stop()
    mine, its = samples[ours.name], samples[reference.name]
    for c in mine:
        goal = at_least(1.4) if c in (32, 64) else None
        outcome.figures.append(against(f"{ours.name}, c={c:g}", mine[c], its[c], "rps", "req/s", goal))
    for c in mine:
        goal = at_most(0.45) if c == 32 else None
        outcome.figures.append(against(f"CPU a request, c={c:g}", mine[c], its[c], "relay_cpu_us", "µs", goal))
    outcome.curves.append(
        growing("single-rps", "Small requests a second, one stream each", "connections", "requests/s", "rps", samples)
    )
    return outcome


def _one(
    bench: Bench,
    sides: list[Side],
    connections: int,
    samples: dict[str, dict[float, list[Sample]]],
    outcome: Outcome,
) -> None:
    for name, found in compare(bench.effort, sides, Ask(method="POST", connections=connections)).items():
        samples[name][connections] = found
        outcome.samples[f"{name}, c={connections}"] = found
