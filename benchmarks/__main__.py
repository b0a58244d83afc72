"""``python -m benchmarks``: run the scenarios, write ``benchmarks/results/<date>.json``, a table and the plots."""

import argparse
import datetime as dt
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType

from benchmarks.bench import Bench
from benchmarks.build import build, core_is_compiled, environ_of_compiled
from benchmarks.effort import BRIEF, FULL, QUICK, Effort
from benchmarks.outcome import Outcome
from benchmarks.plot import svg
from benchmarks.processes import ROOT, BenchError
from benchmarks.scenarios import (
    abuse,
    agents,
    bulk,
    control,
    core,
    distance,
    flames,
    fragments,
    latency,
    lists,
    narrow,
    neighbours,
    requests,
    share,
    single,
    sockets,
    storm,
    tunnels,
    upload,
    workers,
)
from benchmarks.table import markdown

SCENARIOS: dict[str, Callable[[Bench], Outcome]] = {
    module.NAME: module.run
    for module in (
        core,
        latency,
        requests,
        single,
        bulk,
        distance,
        share,
        fragments,
        narrow,
        abuse,
        neighbours,
        agents,
        control,
        upload,
        lists,
        sockets,
        flames,
        tunnels,
        storm,
        workers,
    )
}


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes, few rounds: about four minutes")
    parser.add_argument("--brief", action="store_true", help="the goals' sizes in fewer rounds: about fifteen minutes")
    parser.add_argument("--only", action="append", metavar="NAME", choices=SCENARIOS, help="this scenario; repeatable")
    parser.add_argument("--list", action="store_true", help="the scenarios")
    parser.add_argument("--output", type=Path, help="where results go; with --only or --quick else var/benchmarks")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of the run, and say where")
    parser.add_argument("--pure", action="store_true", help="the tunnel as pure Python, not its compiled core")
    arguments = parser.parse_args(words)
    if arguments.output is None:  # the results that are kept are whole ones
        part = arguments.only or arguments.quick
        arguments.output = ROOT / "var" / "benchmarks" if part else ROOT / "benchmarks" / "results"
    return arguments


def facts(effort: Effort, began: dt.datetime) -> dict[str, str]:
    """What a reader must know of the run: machine, versions, how busy the machine was."""
    revision = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "began": began.isoformat(timespec="seconds"),
        "effort": f"{effort.name}: {effort.rounds} rounds of {effort.seconds:g} s, interleaved",
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.release()}, {_processor()}",
        "load average at the start (other work makes figures worse)": load,
        "Python": platform.python_version(),
        "core of the tunnel": "compiled by mypyc" if core_is_compiled() else "pure Python",
        "revision": revision.stdout.decode().strip() or "unknown",
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


Keep = Callable[[Sequence[Outcome], Sequence[str]], Path]


def measure(names: Sequence[str], effort: Effort, var: Path, keep: Keep) -> list[str]:
    """The scenarios in turn, what was measured kept after each: an hour is not lost to who interrupts its last minute.

    One that cannot be measured is told and does not end the run; those are returned.
    """
    outcomes: list[Outcome] = []
    failed: list[str] = []
    with ExitStack() as stack:
        bench = Bench(effort, var, stack)
        for name in names:
            bench.say(f"{name} …")
            begun = time.monotonic()
            try:
                outcome = SCENARIOS[name](bench)
            except BenchError as error:
                bench.say(f"{name}: {error}")
                failed.append(f"{name}: {error}")
            else:
                outcome.seconds = time.monotonic() - begun
                outcomes.append(outcome)
            keep(outcomes, failed)
    return failed


def write(folder: Path, about: dict[str, str], outcomes: Sequence[Outcome], failed: Sequence[str]) -> Path:
    """JSON, table and plots; the path of the JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    day = about["began"][:10]
    result = folder / f"{day}.json"
    content = {"about": about, "failed": list(failed), "scenarios": [outcome.as_json() for outcome in outcomes]}
    result.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    page = markdown(f"Figures of {day}", [f"{name}: {value}" for name, value in about.items()], outcomes)
    page += "".join(f"\nNot measured: {line}\n" for line in failed)
    (folder / f"{day}.md").write_text(page)
    for outcome in outcomes:
        for curve in outcome.curves:
            (folder / f"{curve.slug}.svg").write_text(svg(curve))
        for slug, (_, picture) in outcome.pictures.items():
            (folder / f"{slug}.svg").write_text(picture)
    return result


def _interrupted(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(words: Sequence[str] | None = None) -> int:
    """Exit status 1 when a scenario could not be measured; a goal that is missed is no failure of the run."""
    arguments = _arguments(words)
    if arguments.list:
        print("\n".join(SCENARIOS))
        return 0
    if not (arguments.pure or core_is_compiled()) and (environ := environ_of_compiled()) is not None:
        # Anew, so that all of it has the copy: this process for the core by itself, and whatever it starts.
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *(words or sys.argv[1:])], environ)  # noqa: S606 - ourselves
    signal.signal(signal.SIGTERM, _interrupted)
    effort = QUICK if arguments.quick else BRIEF if arguments.brief else FULL
    about = facts(effort, dt.datetime.now(dt.UTC))
    try:
        build()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    var = Path(tempfile.mkdtemp(prefix="visiona-bench-"))
    var.chmod(0o755)  # the embedded PostgreSQL may run as another user
    try:
        failed = measure(arguments.only or list(SCENARIOS), effort, var, partial(write, arguments.output, about))
    finally:
        if arguments.keep:
            print(f"bench: data and logs are in {var}", file=sys.stderr)
        else:
            shutil.rmtree(var, ignore_errors=True)
    result = arguments.output / f"{about['began'][:10]}.json"
    print(result.with_suffix(".md").read_text())
    print(f"bench: written to {result}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
