"""``python -m benchmarks.soak --minutes 30``: mixed traffic for a long time, and whether anything grows meanwhile.

Every five seconds: resident memory and descriptors of daemon, API, worker and agent, and the Trio tasks of daemon and
agent. Writes ``soak-<date>.json`` and three plots. Exit status 1 when something still grew after the warm-up, or when
nothing could be measured.
"""

import argparse
import datetime as dt
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from socket import create_connection
from statistics import median
from typing import Final

from benchmarks.__main__ import facts
from benchmarks.bench import Bench
from benchmarks.build import build
from benchmarks.effort import FULL, Effort
from benchmarks.outcome import Curve
from benchmarks.plot import svg
from benchmarks.processes import ROOT, BenchError, Running, free_port, memory
from benchmarks.soak_traffic import Traffic, settled, start_worker
from benchmarks.stats import slope
from benchmarks.system import System
from cloud.supervisor.demo import call

EVERY: Final = 5.0
SERIAL: Final = "SOAK-0001"
MEASURES: Final = {"memory": "MB", "descriptors": "", "tasks": ""}

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (seconds since the start, value) by name, as ``daemon memory``."""
Measured = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one series did after the warm-up."""

    name: str
    early: float  # the median of the first third
    late: float  # and of the last
    hourly: float  # what the straight line grows by in an hour
    grows: bool


def judge(name: str, points: Sequence[tuple[float, float]], *, allowed: float) -> Verdict:
    """Whether a series grows: its last third lies above its first by more than a twentieth and more than `allowed`.

    Medians, since a moment's peak is no growth. Raises ValueError below six points.
    """
    third = len(points) // 3
    if third < 2:
        raise ValueError(f"{name}: too few samples after the warm-up")
    early, late = (median(value for _, value in part) for part in (points[:third], points[-third:]))
    return Verdict(name, early, late, slope(points) * 3600, late - early > max(allowed, early / 20))


def verdicts(series: Series, warm_up: float) -> list[Verdict]:
    """Each series after `warm_up` seconds. Memory may differ by 4 MB, counts by 8."""
    return [
        judge(name, [point for point in points if point[0] >= warm_up], allowed=4 if name.endswith("memory") else 8)
        for name, points in series.items()
    ]


def curves(series: Series) -> list[Curve]:
    """A picture a measure, a line a process, over minutes."""
    made = []
    for measure, unit in MEASURES.items():
        lines = {
            name.rpartition(" ")[0]: [(at / 60, value, value, value) for at, value in points]
            for name, points in series.items()
            if name.endswith(measure)
        }
        made.append(Curve(f"soak-{measure}", f"Soak: {measure}", "minutes", unit or measure, lines, timeline=True))
    return made


# --- sampling ---
Probe = Callable[[], float]


def _rss(pids: Callable[[], Sequence[int]]) -> Probe:
    return lambda: sum(memory(pid) for pid in pids()) / 1e6


def _descriptors(pids: Callable[[], Sequence[int]]) -> Probe:
    return lambda: float(sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids()))


def _daemon_tasks(system: System) -> float:
    port = system.plan.settings["PROXY_INTERNAL_PORT"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        found = re.search(rb"^visiona_tunnel_tasks ([0-9.e+]+)$", answer.read(), re.MULTILINE)
    if found is None:
        raise BenchError("the daemon does not tell its tasks")
    return float(found.group(1))


def _agent_tasks(port: int) -> float:
    with create_connection(("127.0.0.1", port), timeout=10) as link, link.makefile() as lines:
        return float(lines.readline())


def probes(system: System, agent: Running, agent_port: int, worker: int) -> dict[str, Probe]:
    """What is looked at, by name."""
    of: dict[str, Callable[[], Sequence[int]]] = {
        "daemon": lambda: [system.daemon_pid],
        "api": system.workers,
        "worker": lambda: [worker],
        "agent": lambda: [agent.pid],
    }
    found: dict[str, Probe] = {}
    for name, pids in of.items():
        found[f"{name} memory"] = _rss(pids)
        found[f"{name} descriptors"] = _descriptors(pids)
    found["daemon tasks"] = lambda: _daemon_tasks(system)
    found["agent tasks"] = lambda: _agent_tasks(agent_port)
    return found


def sample(
    found: Mapping[str, Probe], seconds: float, say: Callable[[str], None]
) -> dict[str, list[tuple[float, float]]]:
    """All probes every EVERY seconds. A process that has ended raises: none of ours may."""
    series: Measured = {name: [] for name in found}
    begun, told = time.monotonic(), 0.0
    while (at := time.monotonic() - begun) < seconds:
        for name, probe in found.items():
            try:
                series[name].append((at, probe()))
            except OSError as error:
                raise BenchError(f"{name}: {error}") from error
        if at - told >= 60:
            told = at
            say(f"{at / 60:.0f} min: " + ", ".join(f"{name} {points[-1][1]:.0f}" for name, points in series.items()))
        time.sleep(max(0.0, EVERY - (time.monotonic() - begun - at)))
    return series


def _watched_agent(system: System, upstream: int) -> tuple[Running, int, str]:
    """Our agent with its tasks told, paired anew: the process, that port, its device."""
    pairing = str(call(system.port, "POST", "/api/pairing/token", system.token, {"name": SERIAL})["token"])
    port = free_port()
    environ = {
        **system.plan.environ,
        "VISIONA_AGENT_URL": f"ws://127.0.0.1:{system.tunnel_port}",
        "VISIONA_AGENT_LOCAL": f"127.0.0.1:{upstream}",
        "VISIONA_AGENT_CREDENTIALS": str(system.var / "soak.json"),
        "VISIONA_AGENT_PAIRING_TOKEN": pairing,
        "VISIONA_AGENT_SERIAL": SERIAL,
    }
    words = [sys.executable, "-m", "benchmarks.watched_agent", str(port)]
    running = system.processes["soak"] = Running(words, system.var / "log" / "soak-agent.log", environ)

    def online() -> str:
        devices = call(system.port, "GET", "/api/pairing/status", system.token)["devices"]
        return next((str(d["device_id"]) for d in devices if d["serial"] == SERIAL and d["connected"]), "")

    return running, port, str(running.wait_until(online, 30, "the agent is online"))


def run(effort: Effort, minutes: float, var: Path) -> tuple[Measured, dict[str, int]]:
    """The series, and what became of the traffic."""
    with ExitStack() as stack:
        bench = Bench(effort, var, stack)
        system = bench.system
        worker = start_worker(system)
        agent, port, device = _watched_agent(system, bench.upstream)
        if not settled(system, device):
            raise BenchError("the box does not answer on the fast lane")
        with Traffic(system, device, bench.upstream) as traffic:
            series = sample(probes(system, agent, port, worker), minutes * 60, bench.say)
        return series, dict(sorted(traffic.counts.items()))


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--warm-up", type=float, help="minutes that are not judged; a fifth of all by default")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="the folder of results")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of the run, and say where")
    given = parser.parse_args(words)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    began = dt.datetime.now(dt.UTC)
    warm_up = given.minutes / 5 if given.warm_up is None else given.warm_up
    var = Path(tempfile.mkdtemp(prefix="visiona-soak-"))
    var.chmod(0o755)  # the embedded PostgreSQL may run as another user
    try:
        build()
        series, counts = run(FULL, given.minutes, var)
        judged = verdicts(series, warm_up * 60)
    except (BenchError, ValueError) as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1
    finally:
        if given.keep:
            print(f"soak: data and logs are in {var}", file=sys.stderr)
        else:
            shutil.rmtree(var, ignore_errors=True)
    _write(given.output, began, given.minutes, series, counts, judged)
    return 1 if any(verdict.grows for verdict in judged) else 0


def _write(
    folder: Path, began: dt.datetime, minutes: float, series: Series, counts: Mapping[str, int], judged: list[Verdict]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = facts(FULL, began) | {"effort": f"soak of {minutes:g} minutes, a sample each {EVERY:g} s"}
    told = [{"name": v.name, "early": v.early, "late": v.late, "hourly": v.hourly, "grows": v.grows} for v in judged]
    content = {"about": about, "traffic": dict(counts), "verdicts": told, "series": series}
    path = folder / f"soak-{began:%Y-%m-%d}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    for curve in curves(series):
        (folder / f"{curve.slug}.svg").write_text(svg(curve))
    for what, count in counts.items():
        print(f"{count:8} {what}")
    for verdict in judged:
        sign = "GROWS" if verdict.grows else "flat"
        print(f"{verdict.name:20} {verdict.early:8.1f} → {verdict.late:8.1f}  {verdict.hourly:+8.1f} an hour  {sign}")
    print(f"soak: written to {path}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
