"""The sans-IO parts by themselves, in one process: yamux sessions back to back, and the pure exchange."""

import time
from collections.abc import Callable
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import alone, growing
from benchmarks.outcome import Outcome, Sample
from tunnel.http import Exchange, RequestParser, Via
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream

NAME, TITLE = "core", "The sans-IO core by itself"
_BATCH = 65536
_REQUEST = (
    b"GET /small HTTP/1.1\r\nHost: 127.0.0.1:3800\r\nUser-Agent: bench\r\nAccept: */*\r\n"
    b"Authorization: Bearer vAu_00000000000000000000000000000000\r\n\r\n"
)
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 90\r\n"
    b"Date: Sun, 01 Nov 2026 00:00:00 GMT\r\n\r\n" + b"x" * 90
)


class Pair:
    """Daemon and agent back to back: what one says the other hears, without a transport."""

    def __init__(self) -> None:
        self.client = Session(Role.CLIENT)
        self.server = Session(Role.SERVER, SessionConfig.for_agent())
        self.now = 0.0

    def move(self) -> None:
        """Carry all that either side has to say."""
        self.now += 0.001
        while self.client.wants_to_send or self.server.wants_to_send:
            for one, other in ((self.client, self.server), (self.server, self.client)):
                if data := one.data_to_send(_BATCH, self.now):
                    for touched in other.receive_data(bytes(data), self.now):
                        touched.touched = False
            for session in (self.client, self.server):
                for touched in session.take_touched():
                    touched.touched = False

    def open(self) -> tuple[MuxStream, MuxStream]:
        """A stream, and the same as the other side has it."""
        mine = self.client.open(self.now)
        self.move()
        its = self.server.accept()
        assert its is not None
        self.move()
        return mine, its


def rate(step: Callable[[], int], seconds: float) -> tuple[float, float]:
    """Steps a second and bytes a second of `step`, which answers its bytes."""
    steps, moved, begun = 0, 0, time.perf_counter()
    while (past := time.perf_counter() - begun) < seconds:
        for _ in range(16):
            moved += step()
        steps += 16
    return steps / past, moved / past


def exchange_on(pair: Pair, mine: MuxStream, its: MuxStream, payload: bytes) -> int:
    """A request and an answer of the same size over one stream."""
    pair.client.send(mine, payload)
    pair.move()
    pair.server.send(its, pair.server.read(its))
    pair.move()
    return len(pair.client.read(mine)) * 2


def single_stream(pair: Pair, payload: bytes) -> int:
    """A stream opened, used once both ways, closed by both."""
    mine, its = pair.open()
    moved = exchange_on(pair, mine, its, payload)
    for session, stream in ((pair.server, its), (pair.client, mine)):
        session.half_close(stream)
    pair.move()
    return moved


def pour(pair: Pair, mine: MuxStream, its: MuxStream, block: bytes) -> int:
    """As much of one block as fits, and its reading at the other end."""
    pair.client.send(mine, block)
    pair.move()
    size = len(pair.server.read(its))
    pair.move()
    return size


def http_exchange() -> int:
    """Both heads parsed, checked and rewritten, the body passed on: all that a lane asks of `tunnel.http`."""
    head = RequestParser().feed(_REQUEST)
    assert head is not None
    exchange = Exchange(head, Via(scheme="http", address="127.0.0.1", request_id="req_0123456789"))
    exchange.start()
    exchange.end_body()
    pieces = exchange.receive(_ANSWER)
    exchange.client_head()
    exchange.client_body(pieces)
    exchange.client_end()
    assert exchange.complete
    return 0


def _sample(step: Callable[[], int], seconds: float) -> Sample:
    steps, moved = rate(step, seconds)
    return {"steps_s": steps, "us": 1e6 / steps, "mb_s": moved / 1e6}


def run(bench: Bench) -> Outcome:
    """Both sides' work in one process: what one side costs is about a half of it."""
    outcome, seconds, rounds = Outcome(NAME, TITLE), bench.effort.micro, bench.effort.rounds
    by_size: dict[float, list[Sample]] = {}
    for size in (32, 256, 1024, 4096):
        pair = Pair()
        mine, its = pair.open()
        payload = bytes(size)
        step = partial(exchange_on, pair, mine, its, payload)
        by_size[size] = [_sample(step, seconds) for _ in range(rounds)]
    pair, stream_a, stream_b = _pour_pair()
    block = bytes(60_000)
    jobs: dict[str, Callable[[], int]] = {
        "a stream for each exchange of 1 KiB, both sides": lambda: single_stream(pair, bytes(1024)),
        "bulk, blocks of 60 kB, both sides": lambda: pour(pair, stream_a, stream_b, block),
        "an HTTP exchange, both heads": http_exchange,
    }
    outcome.samples = {f"exchange of {size:g} B, both sides": found for size, found in by_size.items()}
    outcome.samples |= {name: [_sample(job, seconds) for _ in range(rounds)] for name, job in jobs.items()}
    for name, samples in outcome.samples.items():
        unit, key = ("MB/s", "mb_s") if name.startswith("bulk") else ("µs", "us")
        outcome.figures.append(alone(name, [sample[key] for sample in samples], unit))
    title = "A request and its answer over one stream, both sides"
    outcome.curves.append(growing("core-exchange", title, "bytes", "µs", "us", {"ours": by_size}))
    return outcome


def _pour_pair() -> tuple[Pair, MuxStream, MuxStream]:
    pair = Pair()
    mine, its = pair.open()
    return pair, mine, its
