"""What the embedded servers remember under ``var/``: ports, passwords, process ids; and who runs them now.

``embedded.json`` (0600) is read by whoever joins running servers; ``embedded.lock`` is held, by flock, by the one
process that runs them. The lock lives as long as its owner *or* the owner's guard does, so that it falls free only
when everything that the owner had started is gone.
"""

import fcntl
import json
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import IO, Final, Literal

import psutil

from cloud.embedded.errors import EmbeddedError

Stage = Literal["starting", "running", "ending"]


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server: its TCP port on 127.0.0.1, its passwords, and the process that was last started (0: none)."""

    port: int = 0
    password: str = ""
    admin_password: str = ""
    pid: int = 0
    started: float = 0.0

    def alive(self) -> bool:
        """Whether that very process still runs (ids are reused; its time of birth tells them apart)."""
        if not self.pid:
            return False
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            return abs(process.create_time() - self.started) < 2.0
        except psutil.Error:
            return False

    def with_process(self, pid: int) -> "ServerState":
        """The same server, run by this process."""
        try:
            return replace(self, pid=pid, started=psutil.Process(pid).create_time())
        except psutil.Error:
            return replace(self, pid=0, started=0.0)


@dataclass(frozen=True, slots=True)
class State:
    """Both servers."""

    postgres: ServerState = field(default_factory=ServerState)
    valkey: ServerState = field(default_factory=ServerState)


def new_password() -> str:
    """A random password that needs no quoting in a URL, a configuration file or SQL."""
    return secrets.token_hex(24)


QUIET: Final = range(28_000, 32_000)
"""Below the ports that systems give to outgoing connections (Linux: from 32 768 on): none of those takes one before the
server binds it, nor while the server is started again."""


def free_port(preferred: int = 0) -> int:
    """The preferred port of 127.0.0.1 when it is free, else one that is."""
    wanted = [preferred] if preferred else []
    for port in (*wanted, *secrets.SystemRandom().sample(QUIET, 20), 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise EmbeddedError("no free TCP port on 127.0.0.1")


def load(folder: Path) -> State:
    """What is remembered; an empty state on the first start. Raises EmbeddedError when it cannot be read."""
    path = folder / "embedded.json"
    try:
        raw = json.loads(path.read_text())
        return State(**{f.name: ServerState(**raw[f.name]) for f in fields(State)})
    except FileNotFoundError:
        return State()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EmbeddedError(
            f"{path} cannot be read ({error}): restore it, or remove {folder} to start afresh"
        ) from error


def save(folder: Path, state: State) -> None:
    """Written beside and renamed, so that a reader never sees half of it; readable for the folder's owner only."""
    try:
        descriptor, name = tempfile.mkstemp(dir=folder, prefix=".embedded-")  # mkstemp: mode 0600
        with os.fdopen(descriptor, "w") as file:
            json.dump(asdict(state), file)
        if os.geteuid() == 0:  # a start as root shuts the folder's owner out of nothing
            os.chown(name, folder.stat().st_uid, folder.stat().st_gid)
        Path(name).replace(folder / "embedded.json")
    except OSError as error:
        raise EmbeddedError(f"{folder} cannot be written: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a folder's lock, as far as the lock file tells."""

    pid: int
    who: str
    stage: Stage

    def ending(self) -> bool:
        """Whether it is on its way out: it said so, or it is dead and its guard still clears up."""
        return self.stage == "ending" or not psutil.pid_exists(self.pid)


class FolderLock:
    """The lock of one ``var/`` folder. ``fileno()`` may be handed to a child that shall hold it too."""

    def __init__(self, file: IO[str], who: str) -> None:
        self._file = file
        self._who = who

    @classmethod
    def take(cls, folder: Path, name: str, who: str) -> "FolderLock | None":
        """The lock, or None when somebody else holds it (``owner`` tells who)."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / name).open("a+")
        except OSError as error:
            raise EmbeddedError(f"{folder} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        lock = cls(file, who)
        lock.tell("starting")
        return lock

    def fileno(self) -> int:
        """The descriptor that holds the lock."""
        return self._file.fileno()

    def tell(self, stage: Stage) -> None:
        """Say in the file how far we are, for those who meet the lock."""
        self._file.seek(0)
        self._file.truncate()
        json.dump(asdict(Owner(os.getpid(), self._who, stage)), self._file)
        self._file.flush()

    def release(self) -> None:
        """Give it up (a child that was handed the descriptor may hold it a moment longer)."""
        self._file.close()


def owner(folder: Path, name: str) -> Owner | None:
    """Who holds the lock according to its file; None when that cannot be told just now."""
    with suppress(OSError, ValueError, TypeError):
        return Owner(**json.loads((folder / name).read_text()))
    return None
