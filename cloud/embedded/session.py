"""The embedded servers for as long as a block of code runs: for pytest and for a lone ``manage.py``.

Whoever finds them running already (beside ``make dev``) joins them; whoever does not starts them and ends them.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from pathlib import Path

from cloud.embedded import servers, state, valkey
from cloud.embedded.errors import EmbeddedError
from cloud.embedded.guarded import Guard
from cloud.embedded.program import Program, signal_group, spawn
from cloud.embedded.servers import LOCK, Needs
from cloud.embedded.state import FolderLock

START_SECONDS = 60.0
STOP_SECONDS = 5.0
JOIN_SECONDS = 20.0
_TICK = 0.01


def _say(line: str) -> None:
    sys.stderr.write(f"visiona: {line}\n")


@contextmanager
def ensure(
    folder: Path,
    environ: MutableMapping[str, str],
    *,
    who: str,
    below: Mapping[str, str] | None = None,
    durable: bool = True,
    say: Callable[[str], None] = _say,
) -> Iterator[None]:
    """Within the block, ``environ`` leads to a PostgreSQL and a Valkey; what it named already stays as it is.

    ``folder`` is the project's ``var/``; ``who`` is how others read of us (``manage.py migrate``); ``below`` holds
    settings that ``environ`` overrides (``.env``); ``durable=False`` trades all safety for speed, for tests.
    Raises EmbeddedError, whose text is one line for the user.
    """
    wanted = servers.needs({**(below or {}), **environ})
    if not wanted:
        yield
        return
    before = {name: environ.get(name) for name in servers.addresses(state.State(), wanted)}
    deadline = time.monotonic() + JOIN_SECONDS
    try:
        while True:
            if (lock := FolderLock.take(folder, LOCK, who)) is not None:
                try:
                    with _running(folder, wanted, lock, environ, say, durable=durable):
                        yield
                finally:
                    lock.release()
                return
            if _join(folder, wanted, environ):
                yield
                return
            if time.monotonic() > deadline:
                raise EmbeddedError(_busy(folder))
            time.sleep(0.1)
    finally:
        for name, value in before.items():
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value


def _busy(folder: Path) -> str:
    holder = state.owner(folder, LOCK)
    name = f"{holder.who} (process {holder.pid})" if holder else "another process"
    return f"{name} holds the servers of {folder}, and they do not answer: end it first"


def _join(folder: Path, wanted: Needs, environ: MutableMapping[str, str]) -> bool:
    """Use the servers that the lock's holder runs, once it says that they do."""
    holder = state.owner(folder, LOCK)
    if holder is None or holder.stage != "running":
        return False
    current = state.load(folder)
    if wanted.postgres and not current.postgres.alive():
        return False
    if wanted.valkey and not valkey.answers(current.valkey.port, current.valkey.password):
        return False
    environ.update(servers.addresses(current, wanted))
    return True


@contextmanager
def _running(
    folder: Path,
    wanted: Needs,
    lock: FolderLock,
    environ: MutableMapping[str, str],
    say: Callable[[str], None],
    *,
    durable: bool,
) -> Iterator[None]:
    prepared = servers.prepare(folder, wanted, say, durable=durable)
    running: list[tuple[Program, subprocess.Popen[bytes]]] = []
    with Guard([lock.fileno()]) as guard:
        try:
            for program in prepared.programs:
                process = spawn(program)
                running.append((program, process))
                guard.add(process.pid, program.stop_signal)
                prepared.started(program.name, process.pid)
            for program, process in running:
                _wait_ready(program, process)
            lock.tell("running")
            prepared.hand_on(environ)
            yield
        finally:
            lock.tell("ending")
            stop([(program, process) for program, process in reversed(running)])
            for _, process in running:
                guard.remove(process.pid)


def _wait_ready(program: Program, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_SECONDS
    while not program.ready(process.pid):
        if process.poll() is not None:
            raise EmbeddedError(servers.failure(program))
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{program.name} was not ready within {START_SECONDS:.0f} s (see {program.log})")
        time.sleep(_TICK)


def stop(running: "list[tuple[Program, subprocess.Popen[bytes]]]", seconds: float = STOP_SECONDS) -> None:
    """Ask all to end, and kill what has not ended after that many seconds."""
    for program, process in running:
        if process.poll() is None:
            process.send_signal(program.stop_signal)
    deadline = time.monotonic() + seconds
    for _, process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            signal_group(process.pid, signal.SIGKILL)
            process.wait()
