"""What is needed to run one program: shared by the embedded servers and by the supervisor."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloud.embedded.account import Account


@dataclass(frozen=True, slots=True)
class Program:
    """A program as it is started, told when it is ready, and stopped.

    ``ready`` looks once, quickly, and answers whether the process with that id serves. ``log`` takes what it writes.
    ``final`` are the exit statuses after which it is useless to start it again.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str]
    log: Path
    ready: Callable[[int], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    account: Account | None = None
    final: frozenset[int] = frozenset()


def start_options(program: Program) -> dict[str, Any]:
    """The keyword arguments that ``subprocess.Popen`` and ``trio.lowlevel.open_process`` take for this program.

    Each program leads a session of its own: Ctrl-C in the terminal reaches its owner only, who then stops all in
    order, and the whole group of its children can be ended at once.
    """
    options: dict[str, Any] = {
        "cwd": program.cwd,
        "env": dict(program.env),
        "stdin": subprocess.DEVNULL,
        "start_new_session": True,
    }
    if program.account is not None:
        options |= {"user": program.account.user, "group": program.account.group, "extra_groups": []}
    return options


def spawn(program: Program) -> "subprocess.Popen[bytes]":
    """Start it with its output appended to its log file."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("ab") as log:
        return subprocess.Popen(program.argv, stdout=log, stderr=subprocess.STDOUT, **start_options(program))


def signal_group(pid: int, number: int) -> None:
    """Signal a program and all its children; silent when they are gone already."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):
        return  # macOS answers EPERM for a group of zombies


def last_words(log: Path, limit: int = 4096) -> str:
    """The last telling line of a log: the last one that names an error, else the last one."""
    lines = _last_lines(log, limit)
    telling = [line for line in lines if any(word in line for word in ("FATAL", "Error", "error", "Fatal", "Bad "))]
    return (telling or lines or ["it wrote nothing"])[-1]


def last_failure(log: Path, since: int = 0, limit: int = 16384) -> str:
    """The newest warning or error among a log's JSON lines behind byte ``since``, as "event: error"; "" for none."""
    for line in reversed(_last_lines(log, limit, since)):
        try:
            facts = json.loads(line)
        except ValueError:
            continue
        if isinstance(facts, dict) and facts.get("level") in ("warning", "error", "critical"):
            told = [facts.get(key) for key in ("event", "error", "reason", "message")]
            return ": ".join(dict.fromkeys(str(each) for each in told if each))
    return ""


def _last_lines(log: Path, limit: int, since: int = 0) -> list[str]:
    try:
        with log.open("rb") as file:
            file.seek(max(since, log.stat().st_size - limit))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]
