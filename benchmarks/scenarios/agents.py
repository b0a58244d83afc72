"""Our Python agent in the Go agent's place, behind the same daemon."""

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import against, alone
from benchmarks.outcome import Outcome, at_least, at_most
from benchmarks.processes import memory, reset_peak
from benchmarks.scenarios.bulk import asks
from benchmarks.sides import MB, Ask, Side, compare

NAME, TITLE = "agents", "Our agent in the Go agent's place"
_BULK = {"down": 0.9, "up": 1.2}


def run(bench: Bench) -> Outcome:
    """Requests, bulk both ways, memory."""
    outcome = Outcome(NAME, TITLE)
    system, (device, agent) = bench.system, bench.box()
    running, ours = system.python_agent(local=bench.upstream, serial="python-agent")
    resting = memory(running.pid) / MB
    reset_peak(running.pid)
    if system.answers(system.fast(device, agent.pid)) == 200:
        sides = [system.fast(ours, running.pid, "Python agent"), system.fast(device, agent.pid, "Go agent")]
    else:
        outcome.notes.append(NO_FAST_LANE)
        sides = [
            _renamed(system.drf(ours, running.pid), "Python agent"),
            _renamed(system.drf(device, agent.pid), "Go agent"),
        ]
    for connections in (1, 32):
        found = compare(bench.effort, sides, Ask(connections=connections))
        outcome.samples |= {f"{name}, c={connections}": samples for name, samples in found.items()}
        mine, its = found["Python agent"], found["Go agent"]
        goal = at_least(0.8) if connections == 32 else None
        outcome.figures += [
            against(f"requests, c={connections}", mine, its, "rps", "req/s", goal),
            against(f"agent's CPU a request, c={connections}", mine, its, "agent_cpu_us", "µs"),
        ]
    for direction, (ask, key) in asks(bench.effort.bulk).items():
        found = compare(bench.effort, sides, ask)
        outcome.samples |= {f"{name}, {direction}": samples for name, samples in found.items()}
        mine, its = found["Python agent"], found["Go agent"]
        outcome.figures.append(against(f"bulk, {direction}", mine, its, key, "MB/s", at_least(_BULK[direction])))
    outcome.figures += [
        alone("resident memory, idle", [resting], "MB", at_most(40)),
        alone("resident memory, the most under this load", [memory(running.pid, "VmHWM") / MB], "MB", at_most(40)),
    ]
    system.stop("python-agent")
    return outcome


def _renamed(side: Side, name: str) -> Side:
    return Side(name, side.url, side.headers, side.relay, side.agent)
