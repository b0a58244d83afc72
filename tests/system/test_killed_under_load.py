"""Each process is killed with -9 while it is called, one after another: what was said stays, nothing else does.

What a client sees meanwhile, part by part, stands in test_faults.py; here it is what remains (docs/closing.md).
"""

import http.client
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil
import psycopg
import pytest

from cloud.environment import database_address
from cloud.supervisor import plan as plans
from cloud.supervisor.demo import DemoError
from tests.system.many import load
from tests.system.stack import Stack, eventually

pytestmark = [pytest.mark.system, pytest.mark.gameday, pytest.mark.timeout(600)]

SCAN = "/api/devices/scan"
SPARE = 24
"""What may be open more than before: kept connections and what serves them. A leak would be one for each call."""
BROKEN = (OSError, http.client.HTTPException, DemoError)


@contextmanager
def writing(stack: Stack, said: list[str]) -> Iterator[None]:
    """Within it pairing tokens are made; the ids of all that were acknowledged."""
    done = Event()

    def write() -> None:
        while not done.wait(0.02):
            try:
                answer = stack.call("POST", "/api/pairing/token", {"name": "kept"}, seconds=20)
            except BROKEN:
                continue
            if answer.status == 201:
                said.append(answer.data["id"])

    thread = Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(60)


def counts(stack: Stack) -> dict[str, float]:
    """File descriptors of each program, tasks of the daemon, streams of its tunnels."""
    found: dict[str, float] = {
        name: sum(psutil.Process(pid).num_fds() for pid in stack.pids(name).values())
        for name in ("tunnel", "api", "worker", "agent")
    }
    secret = stack.plan.settings["INTERNAL_SECRET"][0]
    told = stack.call("GET", "/metrics", token=secret, port=stack.internal_port).body.decode()
    for line in told.splitlines():
        name, _, value = line.partition(" ")
        if name in ("visiona_tunnel_tasks", "visiona_tunnel_streams"):
            found[name] = float(value)
    return found


def whole(stack: Stack, device: str) -> bool:
    """Both lanes reach the box, which is the one that is online, by the one tunnel that there is. For a second after an
    outage each process of the API still fails fast; where Redis was lost, people log in again.
    """
    try:
        if stack.call("GET", "/api/auth/me").status == 401:
            stack.log_in()
        lanes = ((stack.port, SCAN), (stack.tunnel_port, f"/d/{device}{SCAN}"))
        status = stack.call("GET", "/api/pairing/status")
        return (
            all(stack.call("GET", path, port=port).status == 200 for port, path in lanes)
            and status.status == 200
            and [one["device_id"] for one in status.data["devices"] if one["connected"]] == [device]
            and [one["device_id"] for one in stack.sessions()] == [device]
        )
    except BROKEN:
        return False


def kill(stack: Stack, name: str) -> None:
    """And start it again, as the supervisor would."""
    if name in ("postgres", "valkey"):
        with stack.stopped(name, signal.SIGKILL):
            pass
        return
    stack.kill(name)
    if name == "agent":
        stack.start_agent()
    else:
        stack.start(getattr(plans, name)(stack.plan))


def rows(stack: Stack, query: str) -> set[str]:
    """The one column of a query."""
    with psycopg.connect(**database_address(stack.plan.settings)) as db:
        return {str(row[0]) for row in db.execute(query).fetchall()}


def test_each_part_in_turn(system: Stack) -> None:
    device, said = system.device_id(), list[str]()
    calls = {"drf": (system.port, SCAN), "fast": (system.tunnel_port, f"/d/{device}{SCAN}")}

    @contextmanager
    def called(what: str) -> Iterator[None]:
        """Under load, before the block and after it."""
        with load(system, calls) as seen, writing(system, said):

            def more() -> bool:
                return len(said) >= said_then + 10 and all(one.good >= good[lane] + 10 for lane, one in seen.items())

            for moment in ("before", "after"):
                said_then, good = len(said), {lane: one.good for lane, one in seen.items()}
                eventually(more, 30, f"calls and tokens go on {moment} {what}")
                if moment == "before":
                    yield

    def settled() -> bool:
        return all(now <= before[name] + SPARE for name, now in counts(system).items())

    with called("nothing"):  # what is opened once and kept
        pass
    before = counts(system)
    for name in ("worker", "agent", "api", "tunnel", "postgres", "valkey"):
        with called(name):
            kill(system, name)
            eventually(lambda: whole(system, device), 30, f"all is whole after {name}")
        eventually(lambda: whole(system, device), 30, f"one box and one tunnel are left after {name}")
        eventually(settled, 30, f"after {name} no more is open than before: {before}")
    assert set(said) - rows(system, "SELECT id FROM pairing_tokens") == set()
    online = "SELECT id FROM devices WHERE link_status = 'online'"
    eventually(lambda: rows(system, online) == {device}, 30, "the table says so too")
