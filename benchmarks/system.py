"""The real system for a run: embedded PostgreSQL and Valkey, gunicorn, the daemon, agents in Go and in Python.

The programs are those of ``make dev`` (``cloud.supervisor.plan``), on ports and data of their own.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.build import program
from benchmarks.processes import BenchError, Running, children, free_port, listens, wait_for
from benchmarks.sides import Side
from cloud.embedded import ensure
from cloud.embedded.program import Program
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import call, log_in

READY_SECONDS = 60.0
KEEPALIVE = "bench/1; features=keepalive"
PASSWORD = "a-long-enough-pass"  # noqa: S105 - of users that live as long as the run


class Agent:
    """A Go process with one tunnel or many."""

    def __init__(self, running: Running, count: int) -> None:
        self.running, self.count = running, count

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.running.pid

    def said(self) -> dict[str, Any]:
        """What it told last: online, dials, faults by kind."""
        lines = self.running.log.read_bytes()[-8192:].split(b"\n")
        for line in reversed(lines[:-1]):
            with suppress(ValueError):
                return dict(json.loads(line))
        return {"online": 0, "dials": 0, "faults": {}}

    def wait_online(self, seconds: float = 60.0) -> None:
        """Until all its tunnels are."""
        self.running.wait_until(lambda: self.said()["online"] == self.count, seconds, f"{self.count} tunnels online")


@dataclass
class System:
    """What runs. `var` holds its data and logs."""

    var: Path
    plan: plans.Plan
    email: str
    password: str
    processes: dict[str, Running] = field(default_factory=dict)
    token: str = ""
    _number: int = 0

    # --- processes ---
    def start(self, wanted: Program) -> Running:
        """Start one of our programs and wait until it is ready."""
        running = Running(wanted.argv, wanted.log, wanted.env)
        self.processes[wanted.name] = running
        running.wait_until(lambda: wanted.ready(running.pid), READY_SECONDS, f"{wanted.name} is ready")
        return running

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        """End one of them."""
        self.processes.pop(name).stop(number)

    def restart_daemon(self, number: int = signal.SIGKILL) -> Running:
        """A fresh daemon in the old one's place."""
        self.stop("tunnel", number)
        return self.start(plans.tunnel(self.plan))

    def api(self, *, workers: int = 2, port: int | None = None) -> int:
        """An API of so many workers; its port. The first is the system's own."""
        own = port is None
        number = self.port if port is None else port
        environ = {
            **self.plan.environ,
            "VISIONA_API_PORT": str(number),
            "VISIONA_API_WORKERS": str(workers),
            "DJANGO_SETTINGS_MODULE": "benchmarks.itself.settings",
        }
        plan = plans.make(self.var, environ)
        wanted = plans.api(plan)
        name = "api" if own else f"api-{number}"
        log = self.var / "log" / f"{name}.log"
        self.start(Program(name, wanted.argv, wanted.cwd, plan.environ, log, wanted.ready))
        return number

    def go_agent(self, tokens: Sequence[str], *, local: int, name: str = KEEPALIVE, redial: str = "0s") -> Agent:
        """A Go agent with a tunnel a token; not waited for. An empty name: as agents in the field, which say none."""
        self._number += 1
        key = f"agent-{self._number}"
        file = self.var / f"{key}.tokens"
        file.write_text("\n".join(tokens))
        url = f"ws://127.0.0.1:{self.tunnel_port}/tunnel/connect"
        words = [
            str(program("agent")),
            "-url",
            url,
            "-tokens",
            str(file),
            "-name",
            name,
            "-local",
            f"127.0.0.1:{local}",
        ]
        words += ["-redial", redial, *(("-buffer", "4096") if len(tokens) > 1 else ())]
        self.processes[key] = Running(words, self.var / "log" / f"{key}.log")
        return Agent(self.processes[key], len(tokens))

    def python_agent(self, *, local: int, serial: str) -> tuple[Running, str]:
        """Our agent, paired anew; the process and its device's id, once it is online."""
        pairing = str(call(self.port, "POST", "/api/pairing/token", self.token, {"name": serial})["token"])
        words = [sys.executable, "-m", "tunnel.agent", "run", "--url", f"ws://127.0.0.1:{self.tunnel_port}"]
        words += ["--local", f"127.0.0.1:{local}", "--credentials", str(self.var / f"{serial}.json")]
        words += ["--pairing-token", pairing, "--serial", serial]
        running = Running(words, self.var / "log" / f"{serial}.log", self.plan.environ)
        self.processes[serial] = running

        def online() -> str:
            devices = call(self.port, "GET", "/api/pairing/status", self.token)["devices"]
            return next((str(d["device_id"]) for d in devices if d["serial"] == serial and d["connected"]), "")

        return running, str(running.wait_until(online, 30, f"{serial} is online"))

    def close(self) -> None:
        """End all that still runs, the newest first."""
        for name in reversed(list(self.processes)):
            self.stop(name, signal.SIGKILL if name.startswith("agent") else signal.SIGTERM)

    # --- facts ---
    @property
    def port(self) -> int:
        """The API's port."""
        return self.plan.api_port

    @property
    def tunnel_port(self) -> int:
        """The daemon's public port."""
        return int(self.plan.settings["TUNNEL_PORT"])

    @property
    def daemon_pid(self) -> int:
        """The daemon's process."""
        return self.processes["tunnel"].pid

    def workers(self, name: str = "api") -> list[int]:
        """The API's worker processes."""
        return children(self.processes[name].pid)

    # --- data ---
    def run(self, module: str, question: Mapping[str, Any]) -> Any:
        """One of the helpers that load Django: JSON in, JSON out."""
        done = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(question), env=dict(self.plan.environ), cwd=plans.ROOT,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchError(f"{module}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)

    def devices(self, count: int, prefix: str, email: str = "") -> list[tuple[str, str]]:
        """So many new devices of the demo user (or of `email`): id and session token of each."""
        made = self.run("benchmarks.rows", {"email": email or self.email, "count": count, "prefix": prefix})
        return [(device, token) for device, token in made]

    def register(self, email: str) -> str:
        """A new user's access token."""
        call(self.port, "POST", "/api/auth/register", body={"email": email, "password": PASSWORD})
        return log_in(self.port, email, PASSWORD)

    # --- sides ---
    def fast(self, device: str, agent: int, name: str = "fast lane") -> Side:
        """The daemon's own lane to a device."""
        url = f"http://127.0.0.1:{self.tunnel_port}/d/{device}"
        return Side(name, url, (f"Authorization: Bearer {self.token}",), (self.daemon_pid,), (agent,))

    def drf(self, device: str, agent: int) -> Side:
        """The DRF lane to a device; its cost is the daemon's and the workers'."""
        url = f"http://127.0.0.1:{self.port}/api/devices/{device}/proxy"
        pids = (self.daemon_pid, *self.workers())
        return Side("DRF lane", url, (f"Authorization: Bearer {self.token}",), pids, (agent,))

    def answers(self, side: Side) -> int:
        """The status of a small request over a side; 0 when nobody answers."""
        host, _, path = side.url.removeprefix("http://").partition("/")
        link = http.client.HTTPConnection(host, timeout=10)
        try:
            link.request("GET", f"/{path}/small", headers=dict(h.split(": ", 1) for h in side.headers))
            return link.getresponse().status
        except (OSError, http.client.HTTPException):
            return 0
        finally:
            link.close()


@contextmanager
def running_system(var: Path, upstream: int, settings: Mapping[str, str] | None = None) -> Iterator[System]:
    """Databases below `var`, migrated and seeded, the daemon and the API of two workers."""
    base = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    environ = base | {
        "VISIONA_API_PORT": str(free_port()),
        "VISIONA_TUNNEL_PORT": str(free_port()),
        "VISIONA_PROXY_INTERNAL_PORT": str(free_port()),
        "VISIONA_STORAGE_DIR": str(var / "storage"),
        **(settings or {}),
    }
    wait_for(lambda: listens(upstream), 10, "the upstream listens")
    with ExitStack() as stack:
        stack.enter_context(ensure(var, environ, who="benchmark"))
        plan = plans.make(var, environ)
        prepare = [sys.executable, "-m", "cloud.supervisor.database"]
        done = subprocess.run(prepare, cwd=plans.ROOT, env=plan.environ, timeout=120, capture_output=True, check=False)
        if done.returncode:
            raise BenchError(f"the database: {done.stderr.decode()[-2000:]}")
        login = json.loads(done.stdout)
        system = System(var, plan, login["email"], login["password"])
        stack.callback(system.close)
        system.start(plans.tunnel(plan))
        system.api()
        system.token = log_in(system.port, system.email, system.password)
        time.sleep(1.0)  # the daemon's first heartbeat, after which it counts as there
        yield system
