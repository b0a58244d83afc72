"""Two daemon processes against one, many devices: what a request costs them, and what that means on paper."""

from collections.abc import Callable
from dataclasses import replace

from benchmarks.bench import Bench
from benchmarks.figures import alone, growing
from benchmarks.outcome import RATIO, Outcome, Sample, at_least
from benchmarks.processes import children, wait_for
from benchmarks.sides import Ask, Side, measure, warm
from benchmarks.system import System
from cloud.embedded.program import Program
from cloud.supervisor import plan as plans

NAME, TITLE = "workers", "Two daemon processes against one"
_DEVICES = 16
_MORE_SECONDS = 1.0


def start(system: System, workers: int) -> tuple[int, ...]:
    """A daemon of so many processes in the old one's place; those that serve."""
    wanted = plans.tunnel(system.plan)
    argv = (*wanted.argv, "--workers", str(workers)) if workers > 1 else wanted.argv
    system.stop("tunnel")
    running = system.start(Program("tunnel", argv, wanted.cwd, wanted.env, wanted.log, wanted.ready))
    if workers == 1:
        return (running.pid,)
    found = wait_for(lambda: len(children(running.pid)) >= workers and children(running.pid), 10, "the workers run")
    return tuple(found)


def run(bench: Bench) -> Outcome:
    """The same load over sixteen devices, with one process and with two."""
    outcome = Outcome(NAME, TITLE)
    system = bench.system
    devices = system.devices(_DEVICES, "workers")
    by_count: dict[float, list[Sample]] = {}
    for workers in (1, 2):
        relay = start(system, workers)
        agent = system.go_agent([token for _, token in devices], local=bench.upstream, redial="500ms")
        try:
            agent.wait_online()
            sides = [system.fast(device, agent.pid) for device, _ in devices]
            side = replace(sides[0], relay=relay, more=tuple(side.url for side in sides[1:]))
            wait_for(_answering(system, sides), 20, "all devices answer", pause=0.2)
            warm(side, Ask(connections=64), bench.effort.warm_up + _MORE_SECONDS)
            ask, seconds = Ask(connections=64), bench.effort.seconds
            by_count[workers] = [measure(side, ask, seconds) for _ in range(bench.effort.rounds)]
        finally:
            agent.running.stop()
    start(system, 1)
    outcome.samples = {f"{count:g} processes": samples for count, samples in by_count.items()}
    pairs = list(zip(by_count[1], by_count[2], strict=True))
    on_paper = [2 * one["relay_cpu_us"] / two["relay_cpu_us"] for one, two in pairs]
    outcome.figures += [
        alone("two processes by one, on paper: by CPU a request", on_paper, RATIO, at_least(1.7)),
        alone(
            "two processes by one, requests a second on this machine", [b["rps"] / a["rps"] for a, b in pairs], RATIO
        ),
    ]
    outcome.curves.append(
        growing("workers-cpu", "CPU a request, c=64, 16 devices", "processes", "µs", "relay_cpu_us", {"ours": by_count})
    )
    outcome.notes.append(
        "Load, agent and upstream share the machine's cores with the daemon; where they need them all, only the CPU a "
        "request tells how two processes scale. Agents and clients are spread by the kernel, so about half of the "
        "requests come to the process that does not hold the device, which passes them on."
    )
    return outcome


def _answering(system: System, sides: list[Side]) -> Callable[[], bool]:
    return lambda: all(system.answers(side) == 200 for side in sides)
