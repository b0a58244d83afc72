"""The whole system on ports and data of its own: PostgreSQL, Valkey, api, tunnel, worker and demo box, all real.

The programs are those of ``make dev`` (``cloud.supervisor.plan``), so that what is tested is what a newcomer starts;
here the test itself stops, freezes and starts them. Synchronous: a test reads as the story of what a user sees.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from cloud.embedded import ensure, postgres, state, valkey
from cloud.embedded.account import server_account
from cloud.embedded.program import Program, signal_group, spawn
from cloud.embedded.pytest_plugin import PATIENCE
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import DemoError, call, log_in
from tests.system import mould

BUSY = 4
"""A machine that runs other tests beside this one may be slower by so much."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer of the API."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error code of the envelope; empty for a success."""
        return str(self.json.get("error", {}).get("code", ""))

    @property
    def data(self) -> Any:
        """What a success holds; an AssertionError with the refusal for anything else."""
        assert self.status < 400, f"{self.status} {self.body[:1000]!r}"
        return self.json["data"]


READY_SECONDS = 120.0
"""For a program to be ready: a quiet machine takes seconds, one with other work many times that."""
GONE_SECONDS = 30.0
CALL_SECONDS = 15.0 * BUSY
"""For one call: the first ones of a fresh API load its views, on a machine where other systems start too."""


def pauses() -> Iterator[float]:
    """Seconds between looks: short first, then longer, since a look often costs the system under test a request."""
    pause = 0.02
    while True:
        yield pause
        pause = min(0.15, pause * 1.25)


def eventually(look: Callable[[], Any], seconds: float, what: str) -> Any:
    """What ``look`` answers, as soon as it is true; an AssertionError that names ``what`` when the time is up.

    ``seconds`` is what it takes at most on a machine that does nothing else. A look that is refused or breaks is no
    answer yet: after a fault each process of the API goes on to refuse for a moment, whatever its neighbour says.
    """
    deadline = time.monotonic() + BUSY * seconds
    for pause in pauses():
        seen: Any
        try:
            if seen := look():
                return seen
        except (AssertionError, LookupError, OSError, http.client.HTTPException, DemoError) as error:
            seen = error
        if time.monotonic() > deadline:
            cause = seen if isinstance(seen, Exception) else None
            raise AssertionError(f"not within {seconds} s: {what} (last seen: {seen!r})") from cause
        time.sleep(pause)
    return None


@contextmanager
def standing_still(pid: int) -> Iterator[None]:
    """The process and all its children, whatever groups they lead, are stopped (SIGSTOP) within the block."""
    root = psutil.Process(pid)
    family = [root, *root.children(recursive=True)]
    for process in family:
        process.suspend()
    try:
        yield
    finally:
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.resume()


@dataclass(frozen=True, slots=True)
class Stream:
    """An answer that is still running."""

    answer: http.client.HTTPResponse
    sock: socket.socket

    def read(self) -> bytes:
        """Its next piece; b"" at a clean end. Raises IncompleteRead or OSError when it broke."""
        return self.answer.read1(1 << 16)

    def ends(self, seconds: float) -> str:
        """`clean` when the answer looks complete, `cut` when it does not; an AssertionError when it goes on."""
        self.sock.settimeout(seconds)
        deadline = time.monotonic() + seconds
        try:
            while time.monotonic() < deadline:
                if not self.read():
                    return "clean"
        except (http.client.IncompleteRead, ConnectionError, ValueError):
            return "cut"
        raise AssertionError(f"the stream still runs after {seconds} s")


def _pairing_token(port: int, token: str) -> str:
    made = call(port, "POST", "/api/pairing/token", token, {"name": "Demo box"}, seconds=CALL_SECONDS)
    return str(made["token"])


@dataclass
class Stack:
    """One running system. ``var`` holds its data and logs."""

    var: Path
    environ: dict[str, str]
    plan: plans.Plan
    email: str
    password: str
    serial: str
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    token: str = ""

    # --- processes ---
    def start(self, program: Program, seconds: float = READY_SECONDS) -> None:
        """Start a program and wait until it is ready."""
        process = spawn(program)
        self.processes[program.name] = process
        deadline = time.monotonic() + seconds
        for pause in pauses():
            if program.ready(process.pid):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(
                    f"{program.name} is not ready ({process.poll()})\n{self.log(program.name)[-4000:]}"
                )
            time.sleep(pause)

    def start_all(self) -> Self:
        """Everything in the order of ``make dev``, the demo box included."""
        self.start(plans.tunnel(self.plan))
        self.start(plans.api(self.plan))
        self.start(plans.worker(self.plan))
        self.log_in()
        self.start_agent()
        return self

    def start_agent(self) -> None:
        """The demo box, the seeded device by its serial; it redeems a pairing token when it has no credential."""
        fresh = not plans.agent_credentials(self.plan).exists()
        pairing = _pairing_token(self.port, self.token) if fresh else ""
        self.start(plans.agent(self.plan, self.token, pairing, self.serial))

    def runs(self, name: str) -> bool:
        """Whether a program was started, and has not ended since."""
        return name in self.processes and self.processes[name].poll() is None

    def kill(self, name: str) -> None:
        """SIGKILL for a program and its children."""
        process = self.processes.pop(name)
        signal_group(process.pid, signal.SIGKILL)
        process.wait(GONE_SECONDS)

    def stop(self, name: str, seconds: float = 15.0) -> int:
        """SIGTERM; its exit status."""
        process = self.processes.pop(name)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(seconds)
        finally:
            signal_group(process.pid, signal.SIGKILL)
            process.wait(GONE_SECONDS)

    def close(self) -> None:
        """End what still runs, the box first."""
        for name in reversed(list(self.processes)):
            with suppress(subprocess.TimeoutExpired):
                self.stop(name, 5.0)

    def log(self, name: str) -> str:
        """All that a program has written."""
        with suppress(FileNotFoundError):
            return (self.var / "log" / f"{name}.log").read_text(errors="replace")
        return ""

    def lines(self, name: str, since: int = 0) -> list[dict[str, Any]]:
        """Its log's lines of JSON behind so many characters, but one that it is still writing."""
        whole, _, _ = self.log(name)[since:].rpartition("\n")
        return [json.loads(line) for line in whole.splitlines() if line.startswith("{")]

    def server_pid(self, name: str) -> int:
        """The process id of the embedded ``postgres`` or ``valkey``, or of the one that `stopped` has started since."""
        if name in self.processes:
            return self.processes[name].pid
        return int(getattr(state.load(self.var), name).pid)

    @contextmanager
    def frozen(self, name: str) -> Iterator[None]:
        """The embedded server stands still (SIGSTOP) within the block."""
        with standing_still(self.server_pid(name)):
            yield

    @contextmanager
    def stopped(self, name: str, number: int = signal.SIGINT) -> Iterator[None]:
        """The embedded server is gone within the block; afterwards it runs again, on the same port and data."""
        server = psutil.Process(self.server_pid(name))
        family = [server, *server.children(recursive=True)]
        server.send_signal(number)
        gone, _ = psutil.wait_procs(family, timeout=GONE_SECONDS)
        assert len(gone) == len(family), f"{name} did not end"
        try:
            yield
        finally:
            self.start(self._server(name))

    def _server(self, name: str) -> Program:
        now, account = state.load(self.var), server_account(self.var / "postgres")
        if name == "valkey":
            return valkey.program(self.var / "valkey", now.valkey, account, self.var / "log" / "valkey.log")
        log = self.var / "log" / "postgres.log"
        return postgres.program(self.var / "postgres", now.postgres, account, log, durable=True)

    def pids(self, *names: str) -> dict[str, int]:
        """Process ids of programs; of the API each worker's, as `api-<pid>`."""
        found = {}
        for name in names:
            main = psutil.Process(self.processes[name].pid)
            children = main.children()
            found |= {f"{name}-{child.pid}": child.pid for child in children} or {name: main.pid}
        return found

    # --- calls ---
    def log_in(self) -> None:
        """A fresh token of the demo user."""
        self.token = log_in(self.port, self.email, self.password, seconds=CALL_SECONDS)

    @property
    def port(self) -> int:
        return self.plan.api_port

    @property
    def tunnel_port(self) -> int:
        return int(self.plan.settings["TUNNEL_PORT"])

    @property
    def internal_port(self) -> int:
        return int(self.plan.settings["PROXY_INTERNAL_PORT"])

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        port: int | None = None,
        seconds: float = CALL_SECONDS,
    ) -> Answer:
        """One call with the demo user's token (``token=""``: none); a body that is not bytes is sent as JSON."""
        sent = dict(headers or {})
        credential = self.token if token is None else token
        if credential:
            sent.setdefault("Authorization", f"Bearer {credential}")
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("Content-Type", "application/json")
        link = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=seconds)
        try:
            link.request(method, path, body=body, headers=sent)
            answer = link.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            link.close()

    @contextmanager
    def stream(self, path: str, *, seconds: float = 20.0, port: int | None = None) -> Iterator["Stream"]:
        """A GET whose answer runs on; left (the connection is closed) at the end of the block."""
        link = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=seconds)
        link.request("GET", path, headers={"Authorization": f"Bearer {self.token}"})
        sock = link.sock
        answer = link.getresponse()
        try:
            yield Stream(answer, sock)
        finally:
            answer.close()
            sock.close()
            link.close()

    def register(self, email: str, password: str = "a-long-enough-pass") -> str:
        """A new user's access token."""
        made = self.call("POST", "/api/auth/register", {"email": email, "password": password}, token="")
        assert made.status == 201, made.body
        return log_in(self.port, email, password, seconds=CALL_SECONDS)

    def device_id(self) -> str:
        """The demo box's device id, once it is online."""

        def online() -> str:
            devices = self.call("GET", "/api/pairing/status").data["devices"]
            return next((str(one["device_id"]) for one in devices if one["connected"]), "")

        return str(eventually(online, 40, "the demo box is online"))

    def sessions(self) -> list[dict[str, Any]]:
        """The tunnel sessions that the daemon holds."""
        secret = self.plan.settings["INTERNAL_SECRET"][0]
        answer = self.call("GET", "/internal/sessions", token=secret, port=self.internal_port)
        assert answer.status == 200, answer.body
        return list(answer.data["sessions"] if isinstance(answer.data, dict) else answer.data)


@contextmanager
def run_stack(
    var: Path, ports: tuple[int, int, int], settings: Mapping[str, str] | None = None, *, durable: bool = False
) -> Iterator[Stack]:
    """PostgreSQL and Valkey below ``var``, a migrated and seeded database, and a Stack of which nothing runs yet.

    The data are a copy of what a first start leaves (``tests.system.mould``), unless the settings put it elsewhere.
    ``durable`` for tests of what survives a crash: each commit waits for a disk that other tests use too. Only these
    have the product's own short deadlines for its databases.
    """
    api, tunnel, internal = ports
    # The run's own servers are left aside: this system has servers of its own, which it may freeze and kill.
    base = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    environ = base | {
        "VISIONA_STORAGE_DIR": str(var / "storage"),
        "VISIONA_EMAIL_DIR": str(var / "mail"),
        "VISIONA_API_PORT": str(api),
        "VISIONA_TUNNEL_PORT": str(tunnel),
        "VISIONA_PROXY_INTERNAL_PORT": str(internal),
        **({} if durable else PATIENCE),
        **(settings or {}),
    }
    login = mould.pour(var) if mould.fits(settings or {}) else {}
    with ExitStack() as stack:
        stack.enter_context(ensure(var, environ, who="system test", durable=durable))
        plan = plans.make(var, environ)
        login = login or mould.migrate_and_seed(plan)
        running = Stack(var, environ, plan, login["email"], login["password"], login["serial"])
        stack.callback(running.close)
        yield running
