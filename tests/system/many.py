"""More daemons and boxes for a `Stack`: each a process or connection of its own, on this machine."""

import http.client
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread

import psutil

from cloud.embedded.program import Program
from cloud.supervisor import plan as plans
from cloud.supervisor.probes import http_status
from tests.conftest import Started
from tests.system.stack import Stack


def daemon(stack: Stack, name: str, public: int, internal: int, *arguments: str, count: int = 1) -> Program:
    """A further daemon beside the stack's own; ready when the API has accepted its first heartbeat."""
    settings = {
        "VISIONA_TUNNEL_PORT": str(public),
        "VISIONA_PROXY_INTERNAL_PORT": str(internal),
        "VISIONA_NODE_URL": f"http://127.0.0.1:{internal}",
    }
    return Program(
        name=name,
        argv=(sys.executable, "-m", "tunnel", *arguments),
        cwd=plans.ROOT,
        env={**stack.plan.environ, **settings},
        log=stack.var / "log" / f"{name}.log",
        ready=lambda _pid: all(http_status(internal + each, "/readyz") == 200 for each in range(count)),
    )


STAYS = """
import tunnel.agent.link, tunnel.agent.runner
tunnel.agent.link.FEATURES = ("keepalive",)
tunnel.agent.runner.AWAY_SECONDS = 1e9
from tunnel.agent.cli import main
main()
"""
"""Our agent as one that knows nothing of handing over."""


def agent(
    stack: Stack,
    name: str,
    url: str,
    folder: Path,
    *,
    hands_over: bool = True,
    local: int = 0,
    token: str | None = None,
) -> Started:
    """A demo box of the demo user that dials `url`; it is paired unless its credential lies in `folder` already.

    With `local` an agent before that port of this machine, with `token` a box of the user whose login that is.
    """
    credential = folder / f"{name}.json"
    program = ("-m", "tunnel.agent") if hands_over else ("-c", STAYS)
    what = ["run", "--local", f"127.0.0.1:{local}"] if local else ["demo"]
    argv = [sys.executable, *program, *what, "--url", url, "--credentials", str(credential)]
    if not credential.exists():
        made = stack.call("POST", "/api/pairing/token", {"name": name}, token=token)
        assert made.status == 201, made.body
        argv += ["--pairing-token", made.data["token"]]
    log = folder / f"{name}.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            argv, cwd=plans.ROOT, env=dict(stack.plan.environ), stdout=out, stderr=out, start_new_session=True
        )
    return Started(name, process, log)


def online(stack: Stack) -> dict[str, str]:
    """Name → device id of the demo user's devices that are connected."""
    devices = stack.call("GET", "/api/pairing/status").data["devices"]
    return {one["name"]: one["device_id"] for one in devices if one["connected"]}


def holds(stack: Stack, internal: int) -> set[str]:
    """The devices whose tunnels a daemon holds; none if it does not answer."""
    secret = stack.plan.settings["INTERNAL_SECRET"][0]
    try:
        answer = stack.call("GET", "/internal/sessions", token=secret, port=internal)
    except OSError:
        return set()
    return {one["device_id"] for one in answer.data}


CUTS = frozenset({"IncompleteRead", "RemoteDisconnected", "ConnectionResetError"})
"""How a caller sees that an answer was broken off."""
CALL_SECONDS = 120.0
"""For one answer: a box on its way is waited for, on a busy machine longer than elsewhere."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What went wrong with a call, and when that was begun (monotonic seconds)."""

    asked: float
    what: str


@dataclass
class Seen:
    """What one caller saw: good answers, and what went wrong."""

    good: int = 0
    problems: list[Problem] = field(default_factory=list)

    def but_one_cut(self, killed: float) -> list[Problem]:
        """The problems, but for one answer that was under way when the process that passed it on was dead: begun before
        that, and broken off."""
        first = self.problems[:1]
        return self.problems[1:] if first and first[0].what in CUTS and first[0].asked < killed else self.problems


@contextmanager
def load(stack: Stack, calls: dict[str, tuple[int, str]]) -> Iterator[dict[str, Seen]]:
    """Within it, one caller for each of `calls` (name → port, path) asks again and again; what each saw."""
    seen = {name: Seen() for name in calls}
    done = Event()

    def ask(name: str, port: int, path: str) -> None:
        while not done.is_set():
            asked = time.monotonic()
            try:
                answer = stack.call("GET", path, port=port, seconds=CALL_SECONDS)
                problem = "" if answer.status == 200 else f"{answer.status} {answer.code}"
            except (OSError, http.client.HTTPException) as error:
                problem = type(error).__name__
            if problem:
                seen[name].problems.append(Problem(asked, problem))
                done.wait(0.05)
            else:
                seen[name].good += 1
            done.wait(0.01)

    threads = [Thread(target=ask, args=(name, *call)) for name, call in calls.items()]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        done.set()
        for thread in threads:
            thread.join(CALL_SECONDS)


def end(*started: Started) -> None:
    """Stop boxes, all at once."""
    for one in started:
        if one.popen.poll() is None:
            one.popen.terminate()
    psutil.wait_procs([psutil.Process(one.pid) for one in started if psutil.pid_exists(one.pid)], timeout=5)
    for one in started:
        one.kill()
