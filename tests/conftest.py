"""Fixtures for tests that run real processes on ports and data of their own.

The embedded PostgreSQL and Valkey of the run come from ``cloud.embedded.pytest_plugin`` (it must be loaded before any
conftest.py); their addresses stand in ``os.environ`` as ``VISIONA_DB_*`` and ``VISIONA_REDIS_URL``.
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Protocol

import hypothesis
import psycopg
import pytest

from apps.common.db.append_only import LIFT
from cloud.db.base import DatabaseOperations
from tests import ports

ROOT = Path(__file__).resolve().parents[1]

# A run that was started in the background inherits an ignored SIGINT, and would hand it on to the processes that its
# tests mean to interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# How long one example takes tells of the machine, not of the code.
hypothesis.settings.register_profile("visiona", deadline=None)
hypothesis.settings.load_profile("visiona")
_processes = pytest.StashKey["list[Started]"]()

LONGEST = (
    "supervisor_dev",
    "lazy_agents",
    "slow_line",
    "contract",
    "faults",
    "many_daemons",
    "rotation",
    "embedded",
    "nginx",
    "ticket_browser",
    "oidc_dex",
)
"""The files that take a minute and more on a busy machine, or build a program that does."""
REAL = ("system", "interop", "deploy")
"""Folders whose tests start real processes, seconds each."""


class Started:
    """A real process that a test has started, in a session of its own. ``log`` holds all that it wrote."""

    def __init__(self, name: str, popen: "subprocess.Popen[bytes]", log: Path) -> None:
        self.name = name
        self.popen = popen
        self.log = log

    @property
    def pid(self) -> int:
        """Its process id, which is also its process group's."""
        return self.popen.pid

    def text(self) -> str:
        """What it has written so far, both outputs."""
        return self.log.read_text(errors="replace")

    def wait_for(self, look: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
        """Wait until ``look`` answers true; fails when the process ends first or the time is up."""
        deadline, pause = time.monotonic() + seconds, 0.02
        while not look():
            if self.popen.poll() is not None:
                pytest.fail(f"{self.name} ended with {self.popen.returncode} before {what}\n{self.text()[-4000:]}")
            if time.monotonic() > deadline:
                pytest.fail(f"{self.name}: no {what} within {seconds} s\n{self.text()[-4000:]}")
            time.sleep(pause)
            pause = min(0.1, pause * 1.25)  # a look at a page costs the process as much as its work

    def wait_for_text(self, text: str, seconds: float = 60.0) -> None:
        """Wait until it has written ``text``."""
        self.wait_for(lambda: text in self.text(), f"line with {text!r}", seconds)

    def wait_for_http(self, url: str, seconds: float = 60.0) -> None:
        """Wait until a GET of ``url`` is answered with a status below 400."""
        self.wait_for(lambda: http_ok(url), f"good answer of {url}", seconds)

    def wait_end(self, seconds: float = 60.0) -> int:
        """Wait until it ends by itself; its exit status (negative: the signal)."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.name} did not end within {seconds} s\n{self.text()[-4000:]}")

    def send(self, number: int) -> None:
        """Signal this one process (not its group)."""
        self.popen.send_signal(number)

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> int:
        """Signal it, wait for its end, kill its whole group if it does not come. Its exit status."""
        if self.popen.poll() is None:
            self.send(number)
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(seconds)
        self.kill()
        return self.popen.returncode

    def kill(self) -> None:
        """SIGKILL for it and its children."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait(10)


class StartProcess(Protocol):
    """What the fixture ``start_process`` gives."""

    def __call__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        name: str = "",
        cwd: Path = ROOT,
        ready: str | None = None,
        seconds: float = 60.0,
    ) -> Started: ...


def http_ok(url: str) -> bool:
    """Whether a GET of ``url`` (http on this machine) is answered with a status below 400 within 2 s."""
    try:
        with closing(urllib.request.urlopen(url, timeout=2)):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except (OSError, ValueError):
        return False


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """A function that answers a TCP port of 127.0.0.1 that nobody takes before the test does."""
    return ports.free_port


@pytest.fixture
def start_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StartProcess]:
    """A function that starts a real process, waits for ``ready`` (a URL, or a text in its output) when it is given,
    and ends it after the test. ``argv[0] == "python"`` is this interpreter; ``env`` is the whole environment (default:
    ours). When the test fails, the ends of the logs stand in the report.
    """
    started: list[Started] = []
    request.node.stash[_processes] = started

    def start(
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        name: str = "",
        cwd: Path = ROOT,
        ready: str | None = None,
        seconds: float = 60.0,
    ) -> Started:
        command = [sys.executable if argv[0] == "python" else argv[0], *argv[1:]]
        name = name or Path(argv[0]).name
        path = tmp_path / f"{len(started)}-{name}.log"
        with path.open("wb") as log:
            popen = subprocess.Popen(
                command,
                cwd=cwd,
                env=dict(os.environ if env is None else env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        process = Started(name, popen, path)
        started.append(process)
        if ready is not None:
            wait = process.wait_for_http if ready.startswith("http") else process.wait_for_text
            wait(ready, seconds)
        return process

    yield start
    for process in reversed(started):
        process.stop()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, after the order was made random: one that begins last keeps a whole run waiting."""

    def rank(item: pytest.Item) -> int:
        if item.path.stem.removeprefix("test_") in LONGEST:
            return 0
        return 1 if item.path.parent.name in REAL else 2

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the processes of a failed test had written."""
    report = yield
    if report.failed:
        for process in item.stash.get(_processes, []):
            with suppress(OSError):
                report.sections.append((f"log of {process.name} ({process.pid})", process.text()[-8000:]))
    return report


@pytest.fixture(autouse=True, scope="session")
def _tables_can_be_emptied() -> Iterator[None]:
    """Transactional tests end by emptying all tables: those of events let themselves be emptied by retention alone.

    The jobs are no table of Django's, and those that one test leaves are not another's.
    """
    plain = DatabaseOperations.execute_sql_flush

    def flush(self: DatabaseOperations, sql_list: Iterable[str]) -> None:
        plain(self, [LIFT, *sql_list, "TRUNCATE procrastinate_jobs CASCADE"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DatabaseOperations, "execute_sql_flush", flush)
        yield


def _admin() -> "psycopg.Connection[tuple[object, ...]]":
    """A connection to the run's PostgreSQL beside any test's database, with autocommit."""
    return psycopg.connect(
        host=os.environ["VISIONA_DB_HOST"],
        port=int(os.environ["VISIONA_DB_PORT"]),
        user=os.environ["VISIONA_DB_USER"],
        password=os.environ.get("VISIONA_DB_PASSWORD", ""),
        dbname="postgres",
        autocommit=True,
        connect_timeout=10,
    )


@pytest.fixture(scope="session")
def migrated_template() -> Iterator[str]:
    """The name of a database with all migrations applied, to be copied; made once a run (and xdist worker)."""
    name = f"template_{uuid.uuid4().hex[:12]}"
    with closing(_admin()) as admin:
        admin.execute(f'CREATE DATABASE "{name}"')
    env = {**os.environ, "VISIONA_DB_NAME": name}
    done = subprocess.run(
        [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.fail(f"the migrations failed:\n{done.stdout}{done.stderr}")
    yield name
    with closing(_admin()) as admin:
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture
def system_env(migrated_template: str, free_port: Callable[[], int], tmp_path: Path) -> Iterator[dict[str, str]]:
    """The whole environment for real processes of one test: a migrated database of its own, three free ports, URLs.

    Valkey is the run's (the worker's numbered database): a test that needs it empty flushes it.
    """
    name = f"system_{uuid.uuid4().hex[:12]}"
    with closing(_admin()) as admin:
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{migrated_template}"')
    api, tunnel, internal = free_port(), free_port(), free_port()
    yield {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "VISIONA_ENV_STRICT": "true",
        "VISIONA_EMAIL_DIR": str(tmp_path / "mail"),
        "VISIONA_DB_NAME": name,
        "VISIONA_API_PORT": str(api),
        "VISIONA_TUNNEL_PORT": str(tunnel),
        "VISIONA_PROXY_INTERNAL_PORT": str(internal),
        "VISIONA_PROXY_INTERNAL_URL": f"http://127.0.0.1:{internal}",
        "VISIONA_API_INTERNAL_URL": f"http://127.0.0.1:{api}",
        "VISIONA_NODE_URL": f"http://127.0.0.1:{internal}",
        "VISIONA_PUBLIC_URL": f"http://127.0.0.1:{api}",
        "VISIONA_TUNNEL_PUBLIC_URL": f"http://127.0.0.1:{tunnel}",
    }
    with closing(_admin()) as admin:
        admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
