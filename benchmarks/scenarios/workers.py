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
_CONNECTIONS = (64, 128)
_BOUND = 128
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
    """The same load over sixteen devices, with one process and with two, in turns."""
    outcome = Outcome(NAME, TITLE)
    devices = bench.system.devices(_DEVICES, "workers")
    found: dict[int, dict[float, list[Sample]]] = {connections: {1: [], 2: []} for connections in _CONNECTIONS}
    for _ in range(bench.effort.rounds):
        for workers in (1, 2):
            for connections, sample in _measured(bench, devices, workers).items():
                found[connections][workers].append(sample)
    start(bench.system, 1)
    for connections, by_count in found.items():
        for count, samples in by_count.items():
            outcome.samples[f"{count:g} processes, c={connections}"] = samples
        pairs = list(zip(by_count[1], by_count[2], strict=True))
        on_paper = [2 * one["relay_cpu_us"] / two["relay_cpu_us"] for one, two in pairs]
        goal = at_least(1.7) if connections == _BOUND else None
        outcome.figures += [
            alone(f"two processes by one, on paper: by CPU a request, c={connections}", on_paper, RATIO, goal),
            alone(
                f"two processes by one, requests a second on this machine, c={connections}",
                [two["rps"] / one["rps"] for one, two in pairs],
                RATIO,
            ),
        ]
    curves = {f"c={connections}": by_count for connections, by_count in found.items()}
    outcome.curves.append(
        growing("workers-cpu", "CPU a request, 16 devices", "processes", "µs", "relay_cpu_us", curves)
    )
    outcome.notes.append(
        "Load, agent and upstream share the machine's cores with the daemon; where they need them all, only the CPU a "
        "request tells how two processes scale. Agents and clients are spread by the kernel, so about half of the "
        f"requests come to the process that does not hold the device. Of {_BOUND} connections each of two processes "
        f"has as many as one has of {_BOUND // 2}: the load that binds a daemon; with fewer each wakes for less."
    )
    return outcome


def _measured(bench: Bench, devices: list[tuple[str, str]], workers: int) -> dict[int, Sample]:
    """By connections, of a fresh daemon of so many processes."""
    system = bench.system
    relay = start(system, workers)
    agent = system.go_agent([token for _, token in devices], local=bench.upstream, redial="500ms")
    try:
        agent.wait_online()
        sides = [system.fast(device, agent.pid) for device, _ in devices]
        side = replace(sides[0], relay=relay, more=tuple(side.url for side in sides[1:]))
        wait_for(_answering(system, sides), 20, "all devices answer", pause=0.2)
        warm(side, Ask(connections=_BOUND), bench.effort.warm_up + _MORE_SECONDS)
        return {c: measure(side, Ask(connections=c), bench.effort.seconds) for c in _CONNECTIONS}
    finally:
        agent.running.stop()


def _answering(system: System, sides: list[Side]) -> Callable[[], bool]:
    return lambda: all(system.answers(side) == 200 for side in sides)
