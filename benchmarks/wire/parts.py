"""The processes of `benchmarks.wire` as the scenarios have them: started, spoken to in lines of JSON, ended."""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.build import program
from benchmarks.outcome import Sample
from benchmarks.processes import ROOT, BenchError, Running, cpu_seconds
from benchmarks.sides import MB
from benchmarks.system import Agent

START_SECONDS = 30.0
GIB = 1024 * 1024 * 1024
_SLOWEST = 100_000  # bytes a second: below that it hangs


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
        with suppress(BrokenPipeError):  # it has ended: listening for its answer tells why
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
def linked(
    folder: Path, to: int, *, delay: float = 0.0, rate: float = 0.0, buffer: int = 0, bound: int = 0
) -> Iterator[int]:
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


@contextmanager
def gorilla(folder: Path, port: int, upstream: int, *, buffer: int = 4096, socket: int = 0) -> Iterator[Agent]:
    """The Go agent in the place of ours, before `upstream`: fragments of `buffer` bytes, sockets that hold `socket`."""
    words = [str(program("agent")), "-url", f"ws://127.0.0.1:{port}/tunnel/connect", "-local", f"127.0.0.1:{upstream}"]
    running = Running([*words, "-buffer", str(buffer), "-socket", str(socket)], folder / f"go-agent-{port}.log")
    try:
        agent = Agent(running, 1)
        agent.wait_online()
        yield agent
    finally:
        running.stop()


def order(direction: str, size: int, *, go: bool = False) -> dict[str, Any]:
    """What the daemon's end has to do so that `size` bytes come down or go up one stream. Pure."""
    if not go:
        return {"ask": f"down {size}\n"} if direction == "down" else {"ask": "up\n", "send": size}
    first = f"GET /bytes/{size}" if direction == "down" else "POST /sink"
    length = size if direction == "up" else 0
    head = f"{first} HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    # An agent of hashicorp/yamux may take our half-close for the wish to end: the answer's end is enough.
    return {"ask": head, "send": length, "eof": False}


def whole(direction: str, size: int, result: dict[str, Any]) -> bool:
    """Whether all came of what was ordered so. Pure."""
    if result["fault"]:
        return False
    if direction == "down":
        return bool(result["bytes"] >= size)  # an HTTP head comes beside the bytes
    said = result["said"].strip()
    return bool(said == str(size) or said.endswith(f'{{"bytes":{size}}}'))


def pour(daemon: Part, agent: int, direction: str, size: int, *, go: bool = False) -> Sample:
    """So many bytes down or up one new stream, and what that cost each end; `agent` is a process.

    From the request until the last byte came, or until its receipt was answered: either way, what a window holds
    back takes a round trip for each window full of bytes. Raises BenchError when bytes are missing.
    """
    cpu = cpu_seconds([agent])
    done = daemon.ask(30 + size / _SLOWEST, do="carry", streams=[order(direction, size, go=go)])
    (stream,) = done["streams"]
    if not whole(direction, size, stream):
        raise BenchError(f"{direction}: {stream['bytes']} bytes came: {stream['fault'] or done['end']}")
    return {
        "mb_s": size / stream["seconds"] / MB,
        "seconds": stream["seconds"],
        "frames": float(done["frames"]),
        "daemon_cpu_s_gib": done["cpu"] / size * GIB,
        "agent_cpu_s_gib": (cpu_seconds([agent]) - cpu) / size * GIB,
    }
