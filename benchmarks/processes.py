"""Processes of a run: started, watched and ended by their id, and what the kernel says of their cost (Linux)."""

import os
import random
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")
ROOT: Final = Path(__file__).resolve().parents[1]
_PORTS: Final = (16_384, 32_000)


class BenchError(Exception):
    """A measurement could not be made; the text says why."""


def free_port() -> int:
    """A port of this machine that nobody uses now, nor its neighbour above (the daemon's second process listens there).

    Below those that the kernel gives to clients: a load of thousands of connections leaves such ports taken for a
    minute, and a daemon that is started again would not get its own.
    """
    while True:
        port = random.randrange(*_PORTS)
        with socket.socket() as probe, socket.socket() as above, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            above.bind(("127.0.0.1", port + 1))
            return port


def wait_for(look: Callable[[], Any], seconds: float, what: str, pause: float = 0.02) -> Any:
    """What `look` answers, as soon as it is true. Raises BenchError naming `what` when the time is up."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise BenchError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)
    return seen


def listens(port: int) -> bool:
    """Whether somebody accepts connections there."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Running:
    """One process, the leader of a group of its own; all that it writes goes to a file."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                [str(word) for word in argv],
                stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
                cwd=ROOT, env=dict(env) if env is not None else None, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def wait_until(self, look: Callable[[], Any], seconds: float, what: str) -> Any:
        """As `wait_for`, but ends at once when the process does."""

        def alive() -> Any:
            if (status := self.process.poll()) is not None:
                raise BenchError(f"{what}: it ended with {status}: {self.words()}")
            return look()

        return wait_for(alive, seconds, what)

    def words(self) -> str:
        """The last that it wrote."""
        return self.log.read_text(errors="replace")[-2000:]

    def stop(self, number: int = signal.SIGTERM, seconds: float = 10.0) -> None:
        """End it and its group."""
        if self.process.poll() is None:
            self.process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes so far; a resolution of a tick, commonly 10 ms."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total / _TICKS


def memory(pid: int, field: str = "VmRSS") -> int:
    """Resident bytes of a process; `VmHWM` is the most there was since `reset_peak`."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"no {field} of process {pid}")
    return int(found.group(1)) * 1024


def reset_peak(pid: int) -> None:
    """Let VmHWM begin anew (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def children(pid: int) -> list[int]:
    """The processes that it started, one level deep."""
    return [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]
