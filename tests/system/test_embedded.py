"""The embedded PostgreSQL and Valkey: real servers below a folder of the test's own."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import psycopg
import pytest
import redis

from cloud.embedded import EmbeddedError, ensure, postgres
from cloud.embedded.state import load
from tests.conftest import ROOT, StartProcess

pytestmark = pytest.mark.system

# Prints the addresses once the servers run, then waits for its end.
OWNER = """
import json, os, sys, time
from pathlib import Path
from cloud.embedded import ensure
environ = {}
with ensure(Path(sys.argv[1]), environ, who="owner", durable=False):
    print("ADDRESSES " + json.dumps(environ), flush=True)
    time.sleep(600)
"""


@contextmanager
def servers(folder: Path, *, durable: bool = False) -> Iterator[dict[str, str]]:
    environ: dict[str, str] = {}
    with ensure(folder, environ, who="test", durable=durable, say=lambda _line: None):
        yield dict(environ)  # it is emptied again at the end


def connect(environ: dict[str, str], **changed: str) -> "psycopg.Connection[tuple[object, ...]]":
    return psycopg.connect(
        host=environ["VISIONA_DB_HOST"],
        port=int(environ["VISIONA_DB_PORT"]),
        user=environ["VISIONA_DB_USER"],
        password=changed.get("password", environ["VISIONA_DB_PASSWORD"]),
        dbname=environ["VISIONA_DB_NAME"],
        connect_timeout=5,
        autocommit=True,
    )


@contextmanager
def cache(environ: dict[str, str]) -> Iterator["redis.Redis"]:
    client = redis.Redis.from_url(environ["VISIONA_REDIS_URL"], socket_timeout=5)
    try:
        yield client
    finally:
        client.close()


def running_below(folder: Path) -> list[psutil.Process]:
    """Every server whose command line or working folder lies below ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "name"]):
        if process.info["name"] in {"postgres", "valkey-server"}:
            try:
                if process.cwd().startswith(str(folder)):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
    return found


def wait_gone(folder: Path, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while running_below(folder):
        assert time.monotonic() < deadline, running_below(folder)
        time.sleep(0.05)


def test_data_and_ports_survive_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder, durable=True) as first:
        with closing(connect(first)) as database:
            database.execute("CREATE TABLE kept (word text)")
            database.execute("INSERT INTO kept VALUES ('ä')")
            assert database.execute("SHOW fsync").fetchone() == ("on",)
            assert database.execute("SHOW server_encoding").fetchone() == ("UTF8",)
            assert database.execute("SELECT lower('ÄÖÜ')").fetchone() == ("äöü",)
        with cache(first) as client:
            client.set("login", "kept")
    assert running_below(folder) == []
    with servers(folder, durable=True) as second:
        assert second == first
        with closing(connect(second)) as database:
            assert database.execute("SELECT word FROM kept").fetchone() == ("ä",)
        with cache(second) as client:
            assert client.get("login") == b"kept"


def test_only_with_the_password_and_only_on_loopback(tmp_path: Path) -> None:
    with servers(tmp_path / "var") as environ:
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            connect(environ, password="guessed")
        url = urlsplit(environ["VISIONA_REDIS_URL"])
        with (
            closing(redis.Redis(port=url.port or 0, socket_timeout=5)) as nobody,
            pytest.raises(redis.AuthenticationError),
        ):
            nobody.ping()
        for port in (int(environ["VISIONA_DB_PORT"]), url.port or 0):
            listening = {
                c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
            }
            assert listening == {"127.0.0.1"}
        passwords = {environ["VISIONA_DB_PASSWORD"], url.password or ""}
        for process in running_below(tmp_path):
            shown = " ".join(process.cmdline())
            assert not any(password in shown for password in passwords)
            assert not any(name.startswith("VISIONA") for name in process.environ())
        role = "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        with closing(connect(environ)) as database:
            assert database.execute(role).fetchone() == (False, True)


def test_secrets_are_for_the_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder):
        for name in ("embedded.json", "valkey/valkey.conf"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name
        for name in ("postgres", "valkey"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o700, name
    assert not list(folder.glob(".initdb*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user for PostgreSQL")
def test_root_runs_them_unprivileged_below_a_closed_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "deep").mkdir(parents=True)
    closed.chmod(0o700)
    said: list[str] = []
    environ: dict[str, str] = {}
    with ensure(closed / "deep" / "var", environ, who="test", durable=False, say=said.append):
        assert {process.username() for process in running_below(closed)} == {"pgserver"}
    assert any(str(closed) in line for line in said)
    # Others still cannot look in: not even the group's or the others' bits were given read access.
    assert stat.S_IMODE(closed.stat().st_mode) & 0o066 == 0
    closed.chmod(0o700)  # closed again: opened again
    with servers(closed / "deep" / "var") as again, closing(connect(again)) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run them as somebody else")
def test_root_serves_another_users_folder_as_that_user(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder):
        pass
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    with servers(folder) as environ, closing(connect(environ)) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
        assert {process.uids().real for process in running_below(folder)} == {65534}
    assert (folder / "embedded.json").stat().st_uid == 65534


def test_a_second_process_joins_the_first_ones_servers(tmp_path: Path, start_process: StartProcess) -> None:
    folder = tmp_path / "var"
    with servers(folder) as environ:
        before = {process.pid for process in running_below(folder)}
        other = start_process(["python", "-c", OWNER, str(folder)], name="joiner", ready="ADDRESSES")
        assert json.loads(other.text().split("ADDRESSES ")[1].splitlines()[0]) == environ
        other.stop()
        with closing(connect(environ)) as database:  # its end ended nothing
            assert database.execute("SELECT 1").fetchone() == (1,)
        leaders = {process.pid for process in running_below(folder)}
        assert before & leaders


def test_they_end_with_an_owner_that_was_killed(tmp_path: Path, start_process: StartProcess) -> None:
    folder = tmp_path / "var"
    owner = start_process(["python", "-c", OWNER, str(folder)], name="owner", ready="ADDRESSES")
    assert running_below(folder)
    owner.send(signal.SIGKILL)
    owner.wait_end()
    wait_gone(folder)
    with servers(folder) as environ, closing(connect(environ)) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_the_next_start_ends_orphans(tmp_path: Path, start_process: StartProcess) -> None:
    """Owner and guard killed at once: nobody is left to end the servers but the next owner."""
    folder = tmp_path / "var"
    owner = start_process(["python", "-c", OWNER, str(folder)], name="owner", ready="ADDRESSES")
    environ = json.loads(owner.text().split("ADDRESSES ")[1].splitlines()[0])
    with closing(connect(environ)) as database:
        database.execute("CREATE TABLE kept (id int)")
    (guard,) = [child for child in psutil.Process(owner.pid).children() if "guard.py" in " ".join(child.cmdline())]
    guard.kill()
    owner.send(signal.SIGKILL)
    owner.wait_end()
    orphans = {process.pid for process in running_below(folder)}
    assert orphans
    with servers(folder) as again:
        assert not orphans & {process.pid for process in running_below(folder)}
        with closing(connect(again)) as database:
            assert database.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_killed_postgres_recovers_at_the_next_start(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder, durable=True) as environ:
        with closing(connect(environ)) as database:
            database.execute("CREATE TABLE kept (id int)")
        os.kill(load(folder).postgres.pid, signal.SIGKILL)
    assert (folder / "postgres" / "postmaster.pid").exists()
    with servers(folder, durable=True) as environ, closing(connect(environ)) as database:
        assert database.execute("SELECT count(*) FROM kept").fetchone() == (0,)


def test_a_stale_pid_file_that_names_another_program_is_no_obstacle(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder):
        pass
    (folder / "postgres" / "postmaster.pid").write_text(f"{os.getppid()}\n{folder}/postgres\n")
    with servers(folder) as environ, closing(connect(environ)) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)


def test_a_port_that_was_taken_meanwhile_is_given_up(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    with servers(folder) as first:
        pass
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(first["VISIONA_DB_PORT"])))
        taken.listen()
        with servers(folder) as second, closing(connect(second)) as database:
            assert second["VISIONA_DB_PORT"] != first["VISIONA_DB_PORT"]
            assert database.execute("SELECT 1").fetchone() == (1,)


def test_somebody_elses_server_on_the_folder_is_left_alone(tmp_path: Path, free_port: Callable[[], int]) -> None:
    folder = tmp_path / "var"
    with servers(folder):
        pass
    data = folder / "postgres"
    owner = data.stat()
    as_owner = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []} if os.geteuid() == 0 else {}
    command = [str(postgres.binaries() / "postgres"), "-D", str(data), "-p", str(free_port())]
    other = subprocess.Popen(
        [*command, "-c", "unix_socket_directories="],
        env={"LC_ALL": "C"}, cwd=data, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_owner,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 10
        while not ((data / "postmaster.pid").exists() and "ready" in (data / "postmaster.pid").read_text()):
            assert other.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        line = rf"another PostgreSQL \(process {other.pid}\) runs on"
        with pytest.raises(EmbeddedError, match=line), servers(folder):
            pass
        assert other.poll() is None
    finally:
        other.send_signal(signal.SIGINT)
        other.wait(10)


def _no_version(folder: Path) -> None:
    (folder / "postgres" / "PG_VERSION").unlink()


def _other_version(folder: Path) -> None:
    (folder / "postgres" / "PG_VERSION").write_text("17\n")


def _no_password(folder: Path) -> None:
    (folder / "embedded.json").unlink()


def _bad_state(folder: Path) -> None:
    (folder / "embedded.json").write_text('{"postgres": {"port": ')


def _no_control_file(folder: Path) -> None:
    (folder / "postgres" / "global" / "pg_control").unlink()


def _bad_append_only_file(folder: Path) -> None:
    (folder / "valkey" / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")


@pytest.mark.parametrize(
    ("harm", "line"),
    [
        (_no_version, "is no whole PostgreSQL data folder: restore it, or remove it to start afresh"),
        (_other_version, "was made by PostgreSQL 17, and 18 is installed"),
        (_no_password, "its password in .* is gone"),
        (_bad_state, "embedded.json cannot be read .*restore it, or remove"),
        (_no_control_file, "PostgreSQL did not start: .*pg_control"),
        (_bad_append_only_file, "Valkey did not start: "),
    ],
)
def test_a_broken_folder_gets_one_clear_line(tmp_path: Path, harm: object, line: str) -> None:
    folder = tmp_path / "var"
    with servers(folder, durable=True):
        pass
    assert callable(harm)
    harm(folder)
    with pytest.raises(EmbeddedError, match=line) as caught, servers(folder, durable=True):
        pass
    assert "\n" not in str(caught.value)
    assert running_below(folder) == []


def test_an_interrupted_first_start_leaves_nothing_half_made(tmp_path: Path) -> None:
    folder = tmp_path / "var"
    half = folder / "postgres.new"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    with servers(folder) as environ, closing(connect(environ)) as database:
        assert database.execute("SELECT 1").fetchone() == (1,)
    assert not half.exists()


def test_the_environment_is_as_before_when_they_are_gone(tmp_path: Path) -> None:
    environ = {"VISIONA_DB_PORT": "5499", "OTHER": "x"}
    with ensure(tmp_path / "var", environ, who="test", durable=False, say=lambda _line: None):
        assert environ["VISIONA_DB_PORT"] != "5499"
    assert environ == {"VISIONA_DB_PORT": "5499", "OTHER": "x"}


def test_servers_that_are_named_are_not_embedded(tmp_path: Path) -> None:
    named = {name: os.environ[name] for name in os.environ if name.startswith(("VISIONA_DB", "VISIONA_REDIS"))}
    with ensure(tmp_path / "var", named, who="test"):
        pass
    assert not (tmp_path / "var").exists()


def _manage(copy: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=copy, env=environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The project's code in a folder of its own, and thereby with a ``var/`` of its own."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("apps", "cloud", "tunnel"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "manage.py", copy)
    return copy


def test_a_lone_manage_py_brings_its_servers_and_takes_them_away(checkout: Path) -> None:
    done = _manage(checkout, "showmigrations", "accounts")
    assert done.returncode == 0, done.stderr
    assert "[ ] 0001_initial" in done.stdout
    assert running_below(checkout) == []


def test_a_lone_manage_py_beside_running_servers_uses_them(checkout: Path) -> None:
    with servers(checkout / "var") as environ:
        with closing(connect(environ)) as database:
            database.execute("CREATE TABLE django_site_marker (id int)")
        done = _manage(checkout, "inspectdb", "django_site_marker")
        assert done.returncode == 0, done.stderr
        assert "class DjangoSiteMarker" in done.stdout


def test_a_lone_manage_py_tells_of_a_broken_folder_in_one_line(checkout: Path) -> None:
    (checkout / "var" / "postgres").mkdir(parents=True)
    (checkout / "var" / "postgres" / "stray").write_text("")
    done = _manage(checkout, "showmigrations")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("visiona: ")
    assert "is no whole PostgreSQL data folder" in done.stderr
    assert "Traceback" not in done.stderr
