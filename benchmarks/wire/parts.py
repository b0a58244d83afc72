"""The processes of `benchmarks.wire` as the scenarios have them: started, spoken to in lines of JSON, ended."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, BenchError

START_SECONDS = 30.0


class Part:
    """One of them. What it writes to standard error goes to a file."""

    def __init__(self, name: str, words: Sequence[str], folder: Path) -> None:
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.log").open("ab") as log:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT, bufsize=0
            )
        self._log, self._rest = folder / f"{name}.log", b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ask(self, seconds: float, **what: Any) -> dict[str, Any]:
        """Its answer to a command. Raises BenchError when none comes in `seconds`, or when it tells of a fault."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        answer = self.hear(seconds)
        if answer.get("fault"):
            raise BenchError(f"{self.name}: {answer['fault']}")
        return answer

    def hear(self, seconds: float) -> dict[str, Any]:
        """Its next line. Raises BenchError when none comes in `seconds`."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise BenchError(f"{self.name} said nothing within {seconds:g} s")
            if not (data := os.read(self._process.stdout.fileno(), 65536)):
                raise BenchError(f"{self.name} ended: {self._log.read_text(errors='replace')[-1000:]}")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def stop(self) -> None:
        """End it."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process.wait(10)


@contextmanager
def listening(
    folder: Path, config: Mapping[str, Any] | None = None, *, buffer: int = 0, flags: Sequence[str] = ()
) -> Iterator[tuple[Part, int]]:
    """The daemon's end and its port."""
    words = [sys.executable, "-m", "benchmarks.wire.end", "listen", "--config", json.dumps(dict(config or {}))]
    with _part("listen", [*words, "--buffer", str(buffer), *flags], folder) as part:
        yield part, int(part.hear(START_SECONDS)["port"])


@contextmanager
def dialling(folder: Path, port: int, config: Mapping[str, Any] | None = None, *, buffer: int = 0) -> Iterator[Part]:
    """The agent's end, once it is connected."""
    words = [sys.executable, "-m", "benchmarks.wire.end", "dial", "--port", str(port), "--buffer", str(buffer)]
    with _part("dial", [*words, "--config", json.dumps(dict(config or {}))], folder) as part:
        part.hear(START_SECONDS)
        yield part


@contextmanager
def linked(folder: Path, to: int, *, delay: float = 0.0, rate: float = 0.0, buffer: int = 0, bound: int = 0) -> Iterator[int]:
    """A line to a port: the port that stands before it. `delay` in seconds, each way; `rate` in bytes a second."""
    words = [sys.executable, "-m", "benchmarks.wire.link", "--to", str(to), "--delay", str(delay)]
    words += ["--rate", str(rate)] if rate else []
    words += ["--buffer", str(buffer)] if buffer else []
    words += ["--bound", str(bound)] if bound else []
    with _part("link", words, folder) as part:
        yield int(part.hear(START_SECONDS)["port"])


@contextmanager
def _part(name: str, words: Sequence[str], folder: Path) -> Iterator[Part]:
    part = Part(name, words, folder)
    try:
        yield part
    finally:
        part.stop()
