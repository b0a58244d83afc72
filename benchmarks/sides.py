"""A way to reach the same upstream, and one measurement over it."""

import json
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from benchmarks.build import program
from benchmarks.effort import Effort
from benchmarks.outcome import Sample
from benchmarks.processes import BenchError, cpu_seconds

MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Side:
    """Where to ask, with which headers, and the processes whose CPU time is told beside the figure."""

    name: str
    url: str  # the upstream's path is appended
    headers: tuple[str, ...] = ()
    relay: tuple[int, ...] = ()
    agent: tuple[int, ...] = ()
    more: tuple[str, ...] = ()  # further URLs, which connections are spread over


@dataclass(frozen=True, slots=True)
class Ask:
    """What the load asks for."""

    path: str = "/small"
    connections: int = 1
    method: str = "GET"
    body: int = 0


def command(side: Side, ask: Ask, seconds: float) -> list[str]:
    """The load's command line."""
    words = [str(program("load")), "-c", str(ask.connections), "-d", f"{seconds}s"]
    for url in (side.url, *side.more):
        words += ["-url", url + ask.path]
    words += ["-method", ask.method, "-body", str(ask.body)]
    for header in side.headers:
        words += ["-H", header]
    return words


def measure(side: Side, ask: Ask, seconds: float) -> Sample:
    """One run of the load: requests a second, latencies in ms, MB/s both ways, CPU in µs a request.

    Raises BenchError when nothing came, or when more than one request of a hundred failed: that is no figure.
    """
    relay, agent = cpu_seconds(side.relay), cpu_seconds(side.agent)
    done = subprocess.run(
        command(side, ask, seconds), capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    if done.returncode:
        raise BenchError(f"{side.name}: the load failed: {done.stderr[-500:]}")
    said = json.loads(done.stdout)
    relay, agent = cpu_seconds(side.relay) - relay, cpu_seconds(side.agent) - agent
    count, moved = said["requests"], said["bytes_in"] + said["bytes_out"]
    if said["errors"] * 100 > count or not moved:
        raise BenchError(f"{side.name} {ask.path}: {count} answers, {said['errors']} failures {said['faults']}")
    sample = {name: float(said[name]) for name in ("requests", "rps", "errors", "fewest_bytes", "most_bytes")}
    sample |= {name: said[name] for name in said if name.endswith("_ms")}
    sample |= {"in_mb_s": said["bytes_in"] / said["seconds"] / MB, "out_mb_s": said["bytes_out"] / said["seconds"] / MB}
    sample |= {"relay_cpu_s_gb": relay / moved * 1e9, "agent_cpu_s_gb": agent / moved * 1e9}
    if count:
        sample |= {"relay_cpu_us": relay / count * 1e6, "agent_cpu_us": agent / count * 1e6}
    return sample


def warm(side: Side, ask: Ask, seconds: float) -> None:
    """Load that is not counted, again until something was answered. Raises BenchError when nothing is in 15 s."""
    deadline = time.monotonic() + 15
    while True:
        try:
            measure(side, ask, seconds)
        except BenchError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def interleaved(rounds: int, jobs: Mapping[str, Callable[[], Sample]]) -> dict[str, list[Sample]]:
    """Each job once a round, one after the other (A B A B …): what drifts on the machine drifts for all."""
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            samples[name].append(job())
    return samples


def compare(effort: Effort, sides: list[Side], ask: Ask) -> dict[str, list[Sample]]:
    """The same load over each side, interleaved, after a warm-up of each."""
    for side in sides:
        warm(side, ask, effort.warm_up)
    return interleaved(effort.rounds, {side.name: partial(measure, side, ask, effort.seconds) for side in sides})


def column(samples: list[Sample], name: str) -> list[float]:
    """One value of each sample."""
    return [sample[name] for sample in samples]
