"""Tunnels held, more and more of them: memory of each, and what a request costs beside them."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import RATIO, Figure, Goal, Outcome, Sample, at_most
from benchmarks.peers import Reference
from benchmarks.processes import cpu_seconds, memory
from benchmarks.sides import Ask, Side, measure, warm
from benchmarks.stats import Spread, slope
from benchmarks.system import running_system

NAME, TITLE = "tunnels", "Idle tunnels: memory, and the cost of a request beside them"

ONE = "one_"  # before a value's name: the same of the daemon that holds one tunnel, in the same round
Steps = dict[float, list[Sample]]


def run(bench: Bench) -> Outcome:
    """A fresh daemon and a fresh Go relay, each with the same numbers of tunnels, each beside its like with one."""
    outcome = Outcome(NAME, TITLE)
    ours = _ours(bench, outcome)
    theirs = _reference(bench)
    outcome.samples = {f"{name}, {count:g} tunnels": s for name, steps in (("ours", ours), ("Go reference", theirs))
                       for count, s in steps.items()}  # fmt: skip
    mine, its = _each(ours), _each(theirs)
    value = mine / its
    outcome.figures += [
        Figure("memory a tunnel", Spread(value, value, value), at_most(0.45), RATIO, mine, its, "KB"),
        Figure(f"memory with {max(ours):g}", *_whole(ours, theirs)),
        _flat("CPU a request, most tunnels by one", ours, "net_cpu_us", "µs", at_most(1.1)),
        _flat("the same, pings included", ours, "relay_cpu_us", "µs"),
        _flat("the same, Go reference, pings included", theirs, "relay_cpu_us", "µs"),
        alone(f"CPU of {max(ours):g} idle tunnels, a second", [ours[max(ours)][0]["idle_ms_s"]], "ms"),
        alone("the same, Go reference", [theirs[max(theirs)][0]["idle_ms_s"]], "ms"),
        _flat("p50, most tunnels by one", ours, "p50_ms", "ms", at_most(1.1)),
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


def _flat(name: str, steps: Steps, key: str, absolute: str, goal: Goal | None = None) -> Figure:
    """`key` beside the most tunnels by that beside one, measured in turns: the rate follows the machine's other work,
    and what a request costs follows the rate."""
    samples = steps[max(steps)]
    return against(name, samples, [{key: sample[ONE + key]} for sample in samples], key, absolute, goal)


def _each(steps: Steps) -> float:
    """KB a tunnel: the slope over all steps from a hundred on, below which noise is all there is to see."""
    points = [(count, samples[0]["memory_mb"] * 1000) for count, samples in steps.items()]
    grown = [point for point in points if point[0] >= 100]
    return slope(grown if len(grown) > 1 else points)


def _idle(pids: Sequence[int], seconds: float) -> list[float]:
    """Seconds of CPU a second of each while nobody asks for anything."""
    before, begun = [cpu_seconds([pid]) for pid in pids], time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - begun
    return [(cpu_seconds([pid]) - was) / passed for pid, was in zip(pids, before, strict=True)]


def _steps(bench: Bench, few: Side, side: Side, more: Callable[[int, int], None]) -> Steps:
    """Memory at rest first, then the load: what the load leaves behind belongs to no tunnel, so it ran once before.

    `few` keeps its one tunnel; `side` is the one that `more` gives tunnels to.
    """
    effort, ask, steps, held = bench.effort, Ask(connections=16), Steps(), 1
    for each in (few, side):
        warm(each, ask, effort.warm_up)
    for count in effort.tunnels:
        if count > held:
            more(held, count)
            held = count
        time.sleep(effort.settle)
        resting = memory(side.relay[0]) / 1e6
        # A tunnel pings after 15 s, so that only a longer look sees what many cost.
        seconds = effort.idle if count == max(effort.tunnels) else 2 * effort.settle
        rests = _idle((few.relay[0], side.relay[0]), seconds)
        steps[count] = []
        for _ in range(effort.rounds):
            one, many = (
                _less_idle(measure(asked, ask, effort.seconds), idle)
                for asked, idle in zip((few, side), rests, strict=True)
            )
            steps[count].append(many | {"memory_mb": resting} | {ONE + name: value for name, value in one.items()})
        bench.say(f"{side.name}: {count} tunnels, {resting:.0f} MB")
    return steps


def _less_idle(sample: Sample, idle: float) -> Sample:
    """Pings and their answers go on beside the requests: they belong to the tunnels."""
    return sample | {"idle_ms_s": idle * 1000, "net_cpu_us": sample["relay_cpu_us"] - idle / sample["rps"] * 1e6}


def _ours(bench: Bench, outcome: Outcome) -> Steps:
    with running_system(bench.var / "one", bench.upstream) as alike:
        (device, token), *_ = alike.devices(1, "box")
        agent = alike.go_agent([token], local=bench.upstream)
        agent.wait_online()
        few = alike.fast(device, agent.pid, "fast lane, one tunnel")
        if alike.answers(few) != 200:
            few = alike.drf(device, agent.pid)
        return _beside(bench, outcome, few)


def _beside(bench: Bench, outcome: Outcome, few: Side) -> Steps:
    system = bench.system
    system.restart_daemon()
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
        return _steps(bench, few, side, more)
    finally:
        for agent in agents:
            agent.running.stop()


def _reference(bench: Bench) -> Steps:
    with ExitStack() as stack:
        relays = Reference(bench.var), Reference(bench.var)
        for relay in relays:
            stack.callback(relay.close)
        few, side = (relay.side("box", relay.agent(["box"], bench.upstream)) for relay in relays)

        def more(held: int, count: int) -> None:
            relays[1].agent([f"idle-{index}" for index in range(held, count)], bench.upstream)

        return _steps(bench, few, side, more)
