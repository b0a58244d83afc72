"""The daemon is killed under thousands of agents; a new one comes up, and all of them return at once."""

import datetime as dt
import http.client
import json
import signal
import threading
import time
from typing import Self

from benchmarks.bench import Bench
from benchmarks.figures import alone
from benchmarks.outcome import Outcome, Sample, at_most
from benchmarks.processes import Running, cpu_seconds
from benchmarks.stats import percentile
from benchmarks.system import Agent, System
from cloud.supervisor import plan as plans

NAME, TITLE = "storm", "Agents reconnecting at once"
_PROBE_PAUSE = 0.05
_TOLD_SECONDS = 0.05  # after which the agents' process has told of what failed before


class _Others:
    """Somebody else who uses the API meanwhile: a list of devices every 50 ms."""

    def __init__(self, system: System, token: str) -> None:
        self._system, self._token, self._over = system, token, threading.Event()
        self.seconds: list[float] = []
        self.failures = 0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(_PROBE_PAUSE):
            begun = time.monotonic()
            link = http.client.HTTPConnection("127.0.0.1", self._system.port, timeout=30)
            try:
                link.request("GET", "/api/devices", headers={"Authorization": f"Bearer {self._token}"})
                if link.getresponse().status != 200:
                    self.failures += 1
            except (OSError, http.client.HTTPException):
                self.failures += 1
            finally:
                link.close()
            self.seconds.append(time.monotonic() - begun)


def run(bench: Bench) -> Outcome:
    """First all arrive, which is no figure; then each round is a kill and a return."""
    effort, system, outcome = bench.effort, bench.system, Outcome(NAME, TITLE)
    neighbour = system.register("neighbour@example.com")
    tokens = [token for _, token in system.devices(effort.storm, "storm")]
    fleet = system.go_agent(tokens, local=bench.upstream, redial="500ms")
    try:
        fleet.wait_online(180)
        rounds = [_round(bench, fleet, neighbour) for _ in range(effort.storm_rounds)]
    finally:
        fleet.running.stop()
    outcome.samples["storm"] = rounds
    outcome.figures += [
        alone(f"all {effort.storm} online after", [r["seconds"] for r in rounds], "s", at_most(7)),
        alone("dials that failed once its health check was answered", [r["failed"] for r in rounds], "", at_most(0)),
        alone("the API's p99 for others meanwhile", [r["others_p99_s"] for r in rounds], "s", at_most(1)),
        alone("the API's failures for others meanwhile", [r["others_failed"] for r in rounds], "", at_most(0)),
        alone("the daemon's CPU an agent", [r["daemon_us"] for r in rounds], "µs"),
        alone("the API's CPU an agent", [r["api_us"] for r in rounds], "µs"),
    ]
    outcome.notes.append(
        "The time runs from the first moment at which the new daemon listens, by its own log. Agents dial every 500 ms "
        "until then, so up to that much of it is their own pause; one process dials for all, on the same cores."
    )
    return outcome


def _failed(said: dict[str, dict[str, int]]) -> int:
    """Dials that came to nothing, refused or without an answer."""
    return sum(count for what, count in said["faults"].items() if what.startswith(("refused", "no answer")))


def _listened(daemon: Running) -> float:
    """When it began to listen, by its own word: under thousands of agents its health check is answered late."""
    lines = daemon.log.read_text(errors="replace").splitlines()
    said = next(line for line in reversed(lines) if '"event":"listening"' in line)
    return dt.datetime.fromisoformat(json.loads(said)["at"]).timestamp()


def _round(bench: Bench, fleet: Agent, token: str) -> Sample:
    system, count = bench.system, fleet.count
    system.stop("tunnel", signal.SIGKILL)
    fleet.running.wait_until(lambda: fleet.said()["online"] == 0, 30, "all agents notice")
    api = cpu_seconds(system.workers())
    with _Others(system, token) as others:
        daemon = system.start(plans.tunnel(system.plan))
        time.sleep(_TOLD_SECONDS)
        failed = _failed(fleet.said())  # most while nobody listened
        fleet.wait_online(120)
        back = time.time()
    seconds = back - _listened(daemon)
    bench.say(f"{count} agents back after {seconds:.1f} s")
    return {
        "seconds": seconds,
        "failed": float(_failed(fleet.said()) - failed),
        "others_p99_s": percentile(others.seconds, 0.99),
        "others_failed": float(others.failures),
        "daemon_us": cpu_seconds([daemon.pid]) / count * 1e6,
        "api_us": (cpu_seconds(system.workers()) - api) / count * 1e6,
    }
