"""The control plane: the DRF lane against the same view answering by itself, events, and a list of devices."""

import http.client
import socket
import time
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import against, alone, growing
from benchmarks.outcome import Outcome, Sample, at_least, at_most
from benchmarks.processes import BenchError, free_port
from benchmarks.sides import Ask, Side, compare, interleaved, measure, warm
from benchmarks.stats import percentile
from cloud.supervisor.demo import call

NAME, TITLE = "control", "The API: its own lane, event streams, lists"
ONLINE = 10  # of the 50 devices listed
LIST_CONNECTIONS = (1, 4, 8)
_BY_ITS_VIEW = {16: 0.8, 64: 0.95}  # goals by connections


def run(bench: Bench) -> Outcome:
    """All three."""
    outcome = Outcome(NAME, TITLE)
    _lane(bench, outcome)
    _events(bench, outcome)
    _list(bench, outcome)
    return outcome


def _lane(bench: Bench, outcome: Outcome) -> None:
    system, (device, agent) = bench.system, bench.box()
    lane = system.drf(device, agent.pid)
    itself = Side("the view itself", f"http://127.0.0.1:{system.port}/api/bench/{device}", lane.headers, lane.relay)
    by_side: dict[str, dict[float, list[Sample]]] = {lane.name: {}, itself.name: {}}
    for connections in sorted({*bench.effort.connections, 16}):
        found = compare(bench.effort, [lane, itself], Ask(connections=connections))
        for name, samples in found.items():
            by_side[name][connections] = samples
            outcome.samples[f"{name}, c={connections}"] = samples
        goal = at_least(_BY_ITS_VIEW[connections]) if connections in _BY_ITS_VIEW else None
        mine, its = found[lane.name], found[itself.name]
        outcome.figures.append(against(f"DRF lane by its view, c={connections}", mine, its, "rps", "req/s", goal))
    outcome.curves.append(
        growing("control-drf", "The DRF lane and its view", "connections", "requests/s", "rps", by_side)
    )


def first_event(side: Side, seconds: float = 10.0) -> tuple[float, list[float]]:
    """Milliseconds from the box's writing to our reading: of the first event, and of twenty that follow."""
    host, _, prefix = side.url.removeprefix("http://").partition("/")
    link = http.client.HTTPConnection(host, timeout=seconds)
    delays: list[float] = []
    try:
        link.connect()
        link.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.request("GET", f"/{prefix}/events", headers=dict(h.split(": ", 1) for h in side.headers))
        answer = link.getresponse()
        if answer.status != 200:
            raise BenchError(f"{side.name}: events answered {answer.status}")
        while len(delays) < 21:
            line = answer.readline()
            now = time.time_ns()
            if not line:
                raise BenchError(f"{side.name}: the events ended")
            if line.startswith(b"data: "):
                delays.append((now - int(line[6:])) / 1e6)
    finally:
        link.close()
    return delays[0], delays[1:]


def _events(bench: Bench, outcome: Outcome) -> None:
    system, (device, agent) = bench.system, bench.box()
    sides = [system.drf(device, agent.pid)]
    if system.answers(fast := system.fast(device, agent.pid)) == 200:
        sides.append(fast)
    for side in (*sides, bench.reference()):
        firsts, later = [], []
        for _ in range(bench.effort.events):
            first, rest = first_event(side)
            firsts.append(first)
            later += rest
        outcome.samples[f"{side.name}, events"] = [{"first_ms": first} for first in firsts]
        goal = at_most(20) if side in sides else None
        outcome.figures += [
            alone(f"{side.name}: first byte of an event stream", firsts, "ms", goal),
            alone(f"{side.name}: p99 of later events", [percentile(later, 0.99)], "ms"),
        ]


def _list(bench: Bench, outcome: Outcome) -> None:
    system = bench.system
    email = "lists@example.com"
    token = system.register(email)
    devices = system.devices(50, "listed", email)
    agent = system.go_agent([session for _, session in devices[:ONLINE]], local=bench.upstream)
    agent.wait_online()
    path = "/api/devices?limit=50"
    listed = call(system.port, "GET", "/api/pairing/status", token)["devices"]
    if len(listed) != 50:
        raise BenchError(f"{len(listed)} devices instead of 50")
    queries = float(system.run("benchmarks.queries", {"path": path, "token": token}))
    port = system.api(workers=1, port=free_port())
    name = f"api-{port}"
    side = Side(
        "one worker", f"http://127.0.0.1:{port}", (f"Authorization: Bearer {token}",), tuple(system.workers(name))
    )
    asks = {f"c={connections}": Ask(path=path, connections=connections) for connections in LIST_CONNECTIONS}
    for ask in asks.values():
        warm(side, ask, bench.effort.warm_up)
    jobs = {key: partial(measure, side, ask, bench.effort.seconds) for key, ask in asks.items()}
    outcome.figures.append(alone("list of 50 devices, queries", [queries], "", at_most(4)))
    for key, samples in interleaved(bench.effort.rounds, jobs).items():
        outcome.samples[f"list of 50 devices, {key}"] = samples
        goal, cost = (at_least(300), at_most(1e6 / 300)) if key == "c=4" else (None, None)
        outcome.figures += [
            alone(f"list of 50 devices, one worker, {key}", [s["rps"] for s in samples], "req/s", goal),
            alone(f"list of 50 devices, the worker's CPU, {key}", [s["relay_cpu_us"] for s in samples], "µs", cost),
        ]
    system.stop(name)
    agent.running.stop()
