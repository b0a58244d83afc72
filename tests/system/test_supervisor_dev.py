"""`make dev` as a newcomer meets it, on ports and data of the test's own, with every real part."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, Started, StartProcess, http_ok
from tests.system import mould
from tests.system.stack import BUSY

pytestmark = [pytest.mark.system, pytest.mark.timeout(480)]

READY = "VisionA Cloud is ready"
ENDED = "everything has ended"
STOP_SECONDS = 5.0 * BUSY
"""Everything ends within 5 s on a quiet machine: the supervisor kills what has not."""


@pytest.fixture
def var(tmp_path: Path) -> Iterator[Path]:
    """The folder of one `make dev`; whatever a failed test leaves running below it is ended."""
    folder = tmp_path / "var"
    yield folder
    for process in processes(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()


@pytest.fixture
def environ(free_port: Callable[[], int], var: Path) -> dict[str, str]:
    """A newcomer's environment: nothing of VisionA but three free ports, since the usual ones may be in use."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    names = ("API_PORT", "TUNNEL_PORT", "PROXY_INTERNAL_PORT")
    # By the marker everything that descends from the start is found, wherever it may have gone.
    return clean | {f"VISIONA_{name}": str(free_port()) for name in names} | {"STARTED_FOR": str(var)}


@pytest.fixture
def dev(start_process: StartProcess, var: Path, environ: dict[str, str]) -> Callable[..., Started]:
    def start(name: str = "dev", ready: str | None = READY) -> Started:
        command = ["python", "-m", "cloud.supervisor", "--var", str(var)]
        return start_process(command, env=environ, name=name, ready=ready, seconds=90)

    return start


@pytest.fixture
def used(var: Path) -> None:
    """The folder as a first start leaves it: all the rest is then of this start."""
    mould.pour(var)


def processes(folder: Path) -> list[psutil.Process]:
    """Everything that runs for one data folder: it is named in a command line, a working folder or an environment."""
    found = []
    for process in psutil.process_iter():
        if process.pid == os.getpid():
            continue
        try:
            told = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if any(str(folder) in text for text in told):
            found.append(process)
    return found


def api_url(environ: dict[str, str], path: str) -> str:
    return f"http://127.0.0.1:{environ['VISIONA_API_PORT']}{path}"


def wait_until(look: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def stop(started: Started, var: Path, number: int = signal.SIGINT) -> None:
    started.send(number)
    assert started.wait_end(STOP_SECONDS) == 0
    assert ENDED in started.text()
    assert processes(var) == []


def test_a_newcomers_first_minutes(dev: Callable[..., Started], var: Path, environ: dict[str, str]) -> None:
    first = dev()
    text = first.text()
    assert "Traceback" not in text

    # Each of the three lines works by itself, pasted into a shell.
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("curl ")]
    assert len(lines) == 3
    answers = []
    for line in lines:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=30, check=True)
        answers.append(json.loads(done.stdout))
    login, status, scan = answers
    assert re.fullmatch(r"vAu_[0-9a-f]{32}", login["data"]["access_token"])
    assert status["data"]["connected"] is True
    assert scan["devices"], "the demo box's own answer, unchanged"
    for page in re.findall(r"^  (?:Console|API docs|Admin) +(\S+)$", text, re.MULTILINE):
        assert http_ok(page), page

    # What operators look for stands in the command lines.
    shown = [" ".join(process.cmdline()) for process in processes(var)]
    for word in ("gunicorn", "-m tunnel", "-m tunnel.agent", "postgres", "valkey-server", "procrastinate worker"):
        assert any(word in line for line in shown), word

    # A second one in the same folder says so, and disturbs nothing.
    second = dev("second", ready=None)
    assert second.wait_end(30) == 1
    assert f"`make dev` runs here already (make dev, process {first.pid})" in second.text()
    assert len(second.text().strip().splitlines()) == 1
    assert http_ok(api_url(environ, "/healthz"))
    stop(first, var)

    # The second start keeps the data, and the box needs no new pairing.
    again = dev("again")
    devices = subprocess.run(
        ["bash", "-c", lines[1]], capture_output=True, text=True, timeout=30, check=True
    )  # with the login of the first run: sessions survive
    assert json.loads(devices.stdout)["data"]["devices"] == status_devices(status, json.loads(devices.stdout))
    stop(again, var, signal.SIGTERM)


def status_devices(before: dict[str, object], after: dict[str, object]) -> object:
    """The devices after the restart, once they are found to be the same ones as before."""

    def ids(answer: dict[str, object]) -> list[str]:
        data = answer["data"]
        assert isinstance(data, dict)
        return sorted(device["device_id"] for device in data["devices"])

    assert ids(before) == ids(after)
    data = after["data"]
    assert isinstance(data, dict)
    return data["devices"]


@pytest.mark.usefixtures("used")
def test_what_dies_is_started_again(dev: Callable[..., Started], var: Path, environ: dict[str, str]) -> None:
    started = dev()

    for name, word in (
        ("api", "gunicorn"),
        ("worker", "procrastinate"),
        ("tunnel", "-m tunnel"),
        ("agent", "tunnel.agent"),
        ("valkey", "valkey-server"),
        ("postgres", "postgres"),
    ):
        word = "-m tunnel\0" if name == "tunnel" else word
        leaders = {child.pid: child for child in psutil.Process(started.pid).children()}
        (victim,) = [p for p in leaders.values() if word in " ".join(p.cmdline()) + "\0"]
        victim.kill()
        started.wait_for_text(f"{name} was ended by SIGKILL; it is started again in 0.5 s")
        wait_until(lambda: http_ok(api_url(environ, "/healthz")), f"healthy after {name} was killed")
    wait_until(lambda: connected(var, environ, started), "the box is back")
    stop(started, var)


def connected(var: Path, environ: dict[str, str], started: Started) -> bool:
    (line,) = [line for line in started.text().splitlines() if "/api/pairing/status" in line]
    done = subprocess.run(["bash", "-c", line.strip()], capture_output=True, text=True, timeout=30, check=False)
    return '"connected":true' in done.stdout.replace(" ", "")


def test_a_copied_env_file_and_a_first_start_that_was_broken_off(
    dev: Callable[..., Started], var: Path, environ: dict[str, str]
) -> None:
    """URLs that are written down as `.env.example` has them follow the changed ports; a box that was broken off while
    it paired (it stores who it is before it dials) pairs anew."""
    copied = dict(
        line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if line[:8] == "VISIONA_"
    )
    environ.update(copied | {name: value for name, value in environ.items() if name.startswith("VISIONA_")})
    (var / "agent").mkdir(parents=True)
    (var / "agent" / "credentials.json").write_text('{"instance": "broken-off"}')
    started = dev()
    assert connected(var, environ, started)
    assert f"http://localhost:{environ['VISIONA_API_PORT']}/" in started.text()
    assert "localhost:3721" not in started.text()
    stop(started, var)


@pytest.mark.usefixtures("used")
def test_a_demo_box_that_cannot_start_takes_nothing_else_down(
    dev: Callable[..., Started], var: Path, environ: dict[str, str]
) -> None:
    (var / "agent" / "credentials.json").mkdir(parents=True)  # no file can ever be written there
    started = dev()
    assert "the demo box stays away; everything else runs: agent ended with status 2" in started.text()
    assert http_ok(api_url(environ, "/healthz"))
    stop(started, var)


def test_two_settings_on_one_port_are_told_in_one_line(dev: Callable[..., Started], environ: dict[str, str]) -> None:
    environ["VISIONA_TUNNEL_PORT"] = port = environ["VISIONA_API_PORT"]
    started = dev(ready=None)
    assert started.wait_end(30) == 1
    both = "the API (VISIONA_API_PORT) and the tunnel (VISIONA_TUNNEL_PORT)"
    assert started.text() == f"visiona: port {port} is given to both {both}: change one of them\n"


@pytest.mark.usefixtures("used")
def test_a_next_start_waits_for_one_that_is_ending_however_it_ends(dev: Callable[..., Started], var: Path) -> None:
    first = dev()
    first.send(signal.SIGINT)
    second = dev("second")
    assert ENDED in first.text()
    second.send(signal.SIGKILL)
    second.wait_end()
    third = dev("third")  # the guard of the second may still be ending things: that is waited for
    stop(third, var)


@pytest.mark.parametrize("pause", [0.0, 0.4, 1.5])
def test_a_stop_in_the_middle_of_the_start(dev: Callable[..., Started], var: Path, pause: float) -> None:
    started = dev(ready=None)
    wait_until(lambda: (var / "embedded.lock").exists() or started.popen.poll() is not None, "it has begun")
    time.sleep(pause)  # somewhere in the middle: any point has to be a good one
    started.send(signal.SIGINT)
    assert started.wait_end(STOP_SECONDS) in {0, 130}
    wait_until(lambda: processes(var) == [], "nothing is left")
    assert "Traceback" not in started.text()


def test_a_port_in_use_is_told_in_one_line(dev: Callable[..., Started], environ: dict[str, str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", int(environ["VISIONA_TUNNEL_PORT"])))
        taken.listen()
        started = dev(ready=None)
        assert started.wait_end(30) == 1
    line = f"port {environ['VISIONA_TUNNEL_PORT']} of the tunnel (VISIONA_TUNNEL_PORT) is in use by another program"
    assert started.text() == f"visiona: {line}\n"


def test_a_broken_data_folder_is_told_in_one_line(dev: Callable[..., Started], var: Path) -> None:
    (var / "postgres").mkdir(parents=True)
    (var / "postgres" / "stray").touch()
    started = dev(ready=None)
    assert started.wait_end(30) == 1
    assert started.text().splitlines()[-1] == (
        f"visiona: {var}/postgres is no whole PostgreSQL data folder: restore it, or remove it to start afresh"
    )
    assert "Traceback" not in started.text()


def test_a_folder_that_is_none_is_told_in_one_line(dev: Callable[..., Started], var: Path) -> None:
    var.mkdir()
    (var / "log").touch()
    started = dev(ready=None)
    assert started.wait_end(30) == 1
    assert started.text() == f"visiona: {var}/log cannot be used: File exists\n"


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("VISIONA_API_PORT", "http", "VISIONA_API_PORT: 'http' is not a whole number"),
        ("VISIONA_API_PROT", "3721", "VISIONA_API_PROT: unknown setting; the nearest known one is VISIONA_API_PORT"),
        ("VISIONA_DB_HOST", "db", "VISIONA_DB_USER, VISIONA_DB_NAME: missing"),
    ],
)
def test_a_bad_setting_is_told_in_one_line(
    dev: Callable[..., Started], environ: dict[str, str], name: str, value: str, line: str
) -> None:
    environ[name] = value
    started = dev(ready=None)
    assert started.wait_end(30) == 1
    assert started.text().startswith(f"visiona: {line}")
    assert len(started.text().splitlines()) == 1


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,  # Ctrl-C
        pytest.param(signal.SIGTERM, marks=pytest.mark.nightly),
        pytest.param(signal.SIGKILL, marks=pytest.mark.nightly),
    ],
)
@pytest.mark.usefixtures("used")
def test_under_make_a_signal_to_make_alone_ends_everything(
    start_process: StartProcess, environ: dict[str, str], var: Path, tmp_path: Path, number: int
) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"dev:\n\t@exec {ROOT}/.venv/bin/python -m cloud.supervisor --var {var}\n")
    make = start_process(["make", "-f", str(makefile), "dev"], env=environ, ready=READY, seconds=90)
    make.send(number)
    make.wait_end(STOP_SECONDS)
    wait_until(lambda: processes(var) == [], "nothing is left", STOP_SECONDS)


def test_real_servers_are_used_when_they_are_named(
    start_process: StartProcess, system_env: dict[str, str], var: Path
) -> None:
    command = ["python", "-m", "cloud.supervisor", "--var", str(var)]
    started = start_process(command, env=system_env | {"STARTED_FOR": str(var)}, ready=READY, seconds=90)
    assert not (var / "postgres").exists()
    assert not (var / "valkey").exists()
    stop(started, var)
