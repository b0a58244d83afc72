"""Who shares a tunnel: one who reads nothing among a hundred; small requests beside eight that take all they get."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from benchmarks.bench import NO_FAST_LANE, Bench
from benchmarks.figures import alone
from benchmarks.outcome import RATIO, Outcome, Sample, at_least, at_most
from benchmarks.sides import Ask, Side, command, interleaved, measure, warm

NAME, TITLE = "neighbours", "Streams that share a tunnel"
_ENDLESS = "/bytes/1000000000000"


@contextmanager
def wedged(side: Side) -> Iterator[None]:
    """A reader that asked for an endless body and reads none of it."""
    host, _, prefix = side.url.removeprefix("http://").partition("/")
    address, _, port = host.partition(":")
    with socket.socket() as link:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        link.connect((address, int(port)))
        fields = "".join(f"{header}\r\n" for header in side.headers)
        link.sendall(f"GET /{prefix}{_ENDLESS} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n".encode())
        time.sleep(0.3)  # all buffers on the way fill up
        yield


@contextmanager
def beside(side: Side, connections: int, seconds: float) -> Iterator[None]:
    """A load that takes all it gets, within the block."""
    words = command(side, Ask(path=_ENDLESS, connections=connections), seconds)
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        time.sleep(0.5)  # it runs at full speed
        try:
            yield
        finally:
            process.kill()


def run(bench: Bench) -> Outcome:
    """Both, over ours and over the Go reference."""
    outcome = Outcome(NAME, TITLE)
    ours, reference = bench.ours(), bench.reference()
    if ours.name != "fast lane":
        outcome.notes.append(NO_FAST_LANE)
    _slow_reader(bench, [ours, reference], outcome)
    _beside_bulk(bench, [ours, reference], outcome)
    return outcome


def _slow_reader(bench: Bench, sides: list[Side], outcome: Outcome) -> None:
    ask, seconds = Ask(path="/bytes/1000000", connections=99), max(1.5, bench.effort.seconds)

    def among(side: Side) -> Sample:
        with wedged(side):
            return measure(side, ask, seconds)

    for side in sides:
        warm(side, ask, bench.effort.warm_up)
        jobs = {"alone": partial(measure, side, ask, seconds), "wedged": partial(among, side)}
        found = interleaved(bench.effort.rounds, jobs)
        outcome.samples |= {f"{side.name}, 99 readers, {name}": samples for name, samples in found.items()}
        kept = [b["in_mb_s"] / a["in_mb_s"] for a, b in zip(found["alone"], found["wedged"], strict=True)]
        goal = at_least(0.95) if side is sides[0] else None
        outcome.figures.append(alone(f"{side.name}: what 99 keep beside one that reads nothing", kept, RATIO, goal))


def _beside_bulk(bench: Bench, sides: list[Side], outcome: Outcome) -> None:
    ask, seconds = Ask(), bench.effort.seconds

    def loaded(side: Side) -> Sample:
        with beside(side, 8, seconds + 10):
            return measure(side, ask, seconds)

    for side in sides:
        warm(side, ask, bench.effort.warm_up)
        jobs = {"alone": partial(measure, side, ask, seconds), "beside": partial(loaded, side)}
        found = interleaved(bench.effort.rounds, jobs)
        outcome.samples |= {f"{side.name}, small, {name}": samples for name, samples in found.items()}
        slower = [b["p99_ms"] / a["p99_ms"] for a, b in zip(found["alone"], found["beside"], strict=True)]
        goal = at_most(2.0) if side is sides[0] else None
        outcome.figures += [
            alone(f"{side.name}: p99 of small requests beside 8 bulk streams, by p99 alone", slower, RATIO, goal),
            alone(f"{side.name}: that p99", [b["p99_ms"] for b in found["beside"]], "ms"),
        ]
