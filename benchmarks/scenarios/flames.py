"""Where a request's time goes in the daemon, in a worker of the API, and in our agent: sampled under load by py-spy."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

from benchmarks import flame
from benchmarks.bench import Bench
from benchmarks.outcome import Outcome
from benchmarks.processes import BenchError, wait_for
from benchmarks.scenarios.bulk import asks
from benchmarks.sides import Ask, Side, command

NAME, TITLE = "flames", "Where the time goes"
_SAMPLES_A_SECOND: Final = 200
_TOP: Final = 12


def run(bench: Bench) -> Outcome:
    """A picture each, and the functions that cost most by themselves."""
    outcome = Outcome(NAME, TITLE)
    if (sampler := shutil.which("py-spy")) is None:
        outcome.notes.append("py-spy is not on the PATH, so no stacks were sampled.")
        return outcome
    system, (device, agent) = bench.system, bench.box()
    running, ours = system.python_agent(local=bench.upstream, serial="flame-agent")
    small = Ask(connections=32)
    drf = system.drf(device, agent.pid)
    if system.answers(fast := system.fast(device, agent.pid)) == 200:
        _one(
            bench, outcome, sampler, ("flame-daemon", "The daemon, fast lane, c=32", ""), fast, small, system.daemon_pid
        )
        upload = asks(bench.effort.bulk)["up"][0]
        _one(bench, outcome, sampler, ("flame-upload", "The daemon, one upload", ""), fast, upload, system.daemon_pid)
    through = system.fast(ours, running.pid) if system.answers(fast) == 200 else system.drf(ours, running.pid)
    _one(bench, outcome, sampler, ("flame-agent", "Our agent, c=32", ""), through, small, running.pid)
    label = ("flame-drf", "An API worker, DRF lane, c=32", "ApiWorker.handle_request")
    _one(bench, outcome, sampler, label, drf, small, system.workers()[0])
    system.stop("flame-agent")
    return outcome


def _one(
    bench: Bench, outcome: Outcome, sampler: str, label: tuple[str, str, str], side: Side, ask: Ask, pid: int
) -> None:
    slug, title, skip = label
    seconds = max(3, round(bench.effort.seconds * 2))
    raw = bench.var / f"{slug}.raw"
    load = subprocess.Popen(command(side, ask, seconds + 3.0), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        words = [sampler, "record", "--pid", str(pid), "--duration", str(seconds), "--rate", str(_SAMPLES_A_SECOND)]
        words += ["--format", "raw", "--output", str(raw)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds + 30, check=False)
    finally:
        load.kill()
        load.wait(10)
    if done.returncode:
        raise BenchError(f"py-spy: {done.stderr[-500:]}")
    stacks = flame.parse(wait_for(lambda: Path(raw).read_text(errors="replace"), 5, "samples").splitlines())
    if not stacks:
        raise BenchError(f"{title}: no sample")
    outcome.pictures[slug] = (title, flame.svg(flame.tree(stacks, skip=skip), title))
    shares = "; ".join(f"{100 * share:.1f} % {name}" for name, share in flame.own(stacks)[:_TOP])
    outcome.notes.append(f"{title}: in themselves {shares}.")
