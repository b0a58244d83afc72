"""Tunnels held, more and more of them: memory of each, and what a request costs beside them."""

import time
from collections.abc import Callable

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import alone, growing
from benchmarks.outcome import RATIO, Figure, Outcome, Sample, at_most
from benchmarks.peers import Reference
from benchmarks.processes import cpu_seconds, memory
from benchmarks.sides import Ask, Side, measure, warm
from benchmarks.stats import Spread, slope

NAME, TITLE = "tunnels", "Idle tunnels: memory, and the cost of a request beside them"

Steps = dict[float, list[Sample]]


def run(bench: Bench) -> Outcome:
    """A fresh daemon and a fresh Go relay, each with the same numbers of tunnels."""
    outcome = Outcome(NAME, TITLE)
    ours = _ours(bench, outcome)
    theirs = _reference(bench)
    outcome.samples = {f"{name}, {count:g} tunnels": s for name, steps in (("ours", ours), ("Go reference", theirs))
                       for count, s in steps.items()}  # fmt: skip
    mine, its = _each(ours), _each(theirs)
    value = mine / its
    outcome.figures += [
        Figure("memory a tunnel", Spread(value, value, value), at_most(0.7), RATIO, mine, its, "KB"),
        Figure(f"memory with {max(ours):g}", *_whole(ours, theirs)),
        _flat("CPU a request, most tunnels by one", ours, "net_cpu_us"),
        alone(f"CPU of {max(ours):g} idle tunnels, a second", [ours[max(ours)][0]["idle_ms_s"]], "ms"),
        alone("the same, Go reference", [theirs[max(theirs)][0]["idle_ms_s"]], "ms"),
        _flat("p50, most tunnels by one", ours, "p50_ms"),
    ]
    lines = {"ours": ours, "Go reference": theirs}
    outcome.curves += [
        growing("tunnels-memory", "Resident memory of the relay", "tunnels held", "MB", "memory_mb", lines),
        growing("tunnels-cost", "CPU of the relay a request, c=16", "tunnels held", "µs", "net_cpu_us", lines),
    ]
    return outcome


def _whole(ours: Steps, theirs: Steps) -> tuple[Spread, None, str, float, float, str]:
    most = max(ours)
    mine, its = ours[most][0]["memory_mb"], theirs[most][0]["memory_mb"]
    return Spread(mine / its, mine / its, mine / its), None, RATIO, mine, its, "MB"


def _flat(name: str, steps: Steps, key: str) -> Figure:
    few, many = min(steps), max(steps)
    values = [b[key] / a[key] for a, b in zip(steps[few], steps[many], strict=True)]
    return alone(name, values, RATIO, at_most(1.1))


def _each(steps: Steps) -> float:
    """KB a tunnel: the slope over all steps from a hundred on, below which noise is all there is to see."""
    points = [(count, samples[0]["memory_mb"] * 1000) for count, samples in steps.items()]
    grown = [point for point in points if point[0] >= 100]
    return slope(grown if len(grown) > 1 else points)


def _idle(pid: int, seconds: float) -> float:
    """Seconds of CPU a second while nobody asks for anything."""
    before, begun = cpu_seconds([pid]), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds([pid]) - before) / (time.monotonic() - begun)


def _steps(bench: Bench, side: Side, pid: int, more: Callable[[int, int], None]) -> Steps:
    """Memory at rest first, then the load: what the load leaves behind belongs to no tunnel, so it ran once before."""
    ask, steps, held = Ask(connections=16), Steps(), 1
    warm(side, ask, bench.effort.warm_up)
    for count in bench.effort.tunnels:
        if count > held:
            more(held, count)
            held = count
        time.sleep(bench.effort.settle)
        resting, idle = memory(pid) / 1e6, _idle(pid, 2 * bench.effort.settle)
        rounds = [measure(side, ask, bench.effort.seconds) for _ in range(bench.effort.rounds)]
        steps[count] = [
            # Pings and their answers go on beside the requests: they belong to the tunnels
            sample
            | {
                "memory_mb": resting,
                "idle_ms_s": idle * 1000,
                "net_cpu_us": sample["relay_cpu_us"] - idle / sample["rps"] * 1e6,
            }
            for sample in rounds
        ]
        bench.say(f"{side.name}: {count} tunnels, {resting:.0f} MB")
    return steps


def _ours(bench: Bench, outcome: Outcome) -> Steps:
    system = bench.system
    daemon = system.restart_daemon()
    side = bench.ours()
    if side.name != "fast lane":
        outcome.notes.append(NO_FAST_LANE)
    fleet = system.devices(max(bench.effort.tunnels), "idle")
    agents = []

    def more(held: int, count: int) -> None:
        agent = system.go_agent([token for _, token in fleet[held:count]], local=bench.upstream, redial="2s")
        agents.append(agent)
        agent.wait_online(120)

    try:
        return _steps(bench, side, daemon.pid, more)
    finally:
        for agent in agents:
            agent.running.stop()


def _reference(bench: Bench) -> Steps:
    relay = Reference(bench.var)
    try:
        side = relay.side("box", relay.agent(["box"], bench.upstream))

        def more(held: int, count: int) -> None:
            relay.agent([f"idle-{index}" for index in range(held, count)], bench.upstream)

        return _steps(bench, side, relay.running.pid, more)
    finally:
        relay.close()
