"""WebSockets held through the tunnel, more and more of them: memory of each, and how late their echoes come."""

import json
import subprocess
import time

from benchmarks.bench import Bench
from benchmarks.build import program
from benchmarks.figures import alone, growing
from benchmarks.outcome import RATIO, Figure, Outcome, Sample
from benchmarks.peers import Reference
from benchmarks.processes import BenchError, cpu_seconds, memory
from benchmarks.sides import Side
from benchmarks.stats import Spread, slope

NAME, TITLE = "sockets", "WebSockets held, each with an echo a second"
_DEVICES = 5  # a tunnel carries 256 streams unless it is set otherwise

Steps = dict[float, list[Sample]]


def run(bench: Bench) -> Outcome:
    """The fast lane and the Go reference, each with the same numbers of sockets over five devices."""
    outcome = Outcome(NAME, TITLE)
    system = bench.system
    system.restart_daemon()  # what it held before would hide what these need
    devices = system.devices(_DEVICES, "sockets")
    agent = system.go_agent([token for _, token in devices], local=bench.upstream)
    agent.wait_online()
    relay = Reference(bench.var)
    try:
        ours = [system.fast(device, agent.pid) for device, _ in devices]
        names = [f"sockets-{index}" for index in range(_DEVICES)]
        theirs_agent = relay.agent(names, bench.upstream)
        theirs = [relay.side(name, theirs_agent) for name in names]
        if system.answers(ours[0]) != 200:
            outcome.notes.append("The fast lane did not answer, so there is nothing to hold sockets with.")
            return outcome
        lines = {side[0].name: _steps(bench, side) for side in (ours, theirs)}
    finally:
        relay.close()
        agent.running.stop()
    for name, steps in lines.items():
        outcome.samples |= {f"{name}, {count:g} sockets": samples for count, samples in steps.items()}
        most = steps[max(steps)][0]
        outcome.figures += [
            alone(f"{name}: p99 of {max(steps):g} sockets' echoes", [most["p99_ms"]], "ms"),
            alone(f"{name}: the relay's CPU an echo", [most["relay_cpu_us"]], "µs"),
        ]
    mine, its = (_each(steps) for steps in lines.values())
    outcome.figures.append(
        Figure("memory a socket", Spread(mine / its, mine / its, mine / its), None, RATIO, mine, its, "KB")
    )
    outcome.curves += [
        growing("sockets-memory", "Resident memory of the relay", "WebSockets held", "MB", "memory_mb", lines),
        growing("sockets-p99", "99th percentile of echoes", "WebSockets held", "ms", "p99_ms", lines),
    ]
    return outcome


def _each(steps: Steps) -> float:
    return slope([(count, samples[0]["memory_mb"] * 1000) for count, samples in steps.items()])


def _steps(bench: Bench, sides: list[Side]) -> Steps:
    steps = Steps()
    for count in bench.effort.sockets:
        steps[count] = [_held(bench, sides, count)]
        bench.say(f"{sides[0].name}: {count} sockets, p99 {steps[count][0]['p99_ms']:.1f} ms")
    return steps


def _held(bench: Bench, sides: list[Side], count: int) -> Sample:
    words = [str(program("sockets")), "-n", str(count)]
    for side in sides:
        words += ["-url", side.url.replace("http://", "ws://", 1) + "/ws/echo"]
    for header in sides[0].headers:
        words += ["-H", header]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        assert held.stderr is not None
        try:
            if held.stdout.readline() != "open\n":
                raise BenchError(f"{sides[0].name}: {held.stderr.read()[-500:]}")
            time.sleep(bench.effort.settle)
            before = cpu_seconds(sides[0].relay)
            held.stdin.write("\n")
            held.stdin.flush()
            time.sleep(max(2.0, bench.effort.seconds))
            resting = sum(memory(pid) for pid in sides[0].relay) / 1e6
            spent = cpu_seconds(sides[0].relay) - before
            held.stdin.write("\n")
            held.stdin.flush()
            said = json.loads(held.stdout.readline())
        finally:
            held.kill()
    if said["failures"] or not said["messages"]:
        raise BenchError(f"{sides[0].name}: {said['failures']} of {count} sockets failed")
    cost = spent / said["messages"] * 1e6
    return {"p50_ms": said["p50_ms"], "p99_ms": said["p99_ms"], "memory_mb": resting, "relay_cpu_us": cost}
