"""Several daemons under one API: a request finds its box wherever that is, and the loss of a daemon is its own."""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from cloud.supervisor import plan as plans
from tests.apps.proxy.kit import Box, Peer, Wire
from tests.conftest import Started
from tests.system.many import CALL_SECONDS, agent, daemon, end, holds, load, online
from tests.system.nginx import need_nginx, running
from tests.system.stack import Stack, Stream, eventually, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

PICTURE = "/api/cameras/0/snapshot"
VIDEO = "/api/cameras/0/stream"
END_SECONDS = 180.0
"""For a daemon to end: the grace, and what a busy machine takes."""
PATIENT = {"VISIONA_PROXY_OPEN_SECONDS": "50", "VISIONA_TUNNEL_DRAIN_SECONDS": "100"}
"""A box on its way is waited for as long as an open may take, by a daemon that drains half of its grace. An agent
is back in seconds, on a busy machine not always within the ten of an open as shipped."""


@dataclass
class Fleet:
    """Daemons by name: their (public, internal) ports. The first is the stack's own, `tunnel`."""

    stack: Stack
    folder: Path
    daemons: dict[str, tuple[int, int]]
    boxes: list[Started]

    def start(self, name: str) -> None:
        self.stack.start(daemon(self.stack, name, *self.daemons[name]))

    def box(self, name: str, url: str, *, hands_over: bool = True) -> None:
        self.boxes.append(agent(self.stack, name, url, self.folder, hands_over=hands_over))

    def where(self) -> dict[str, str]:
        """Device → the daemon that holds it."""
        return {device: name for name, (_, internal) in self.daemons.items() for device in holds(self.stack, internal)}

    def settle(self, count: int) -> dict[str, str]:
        """Wait until `count` boxes are online and each is held; where each is."""
        eventually(lambda: len(online(self.stack)) == count, 60, f"{count} boxes are online")
        return dict(eventually(lambda: len(found := self.where()) == count and found, 20, "each is held"))


@pytest.fixture
def fleet(tmp_path: Path, free_port: Callable[[], int], request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """The API and as many daemons as the test asks for (`@pytest.mark.parametrize("fleet", [3], indirect=True)`), or
    as many with such settings (`[(3, {…})]`)."""
    count, settings = request.param if isinstance(request.param, tuple) else (request.param, {})
    with ExitStack() as held:
        daemons = {f"tunnel{n}" if n else "tunnel": (free_port(), free_port()) for n in range(count)}
        public, internal = daemons["tunnel"]
        stack = held.enter_context(run_stack(tmp_path / "var", (free_port(), public, internal), settings))
        stack.start(plans.tunnel(stack.plan))
        stack.start(plans.api(stack.plan))
        made = Fleet(stack, tmp_path, daemons, [])
        for name in list(daemons)[1:]:
            made.start(name)
        stack.log_in()
        held.callback(lambda: end(*made.boxes))
        yield made


@dataclass
class Site:
    """A fleet behind nginx, and where its boxes are."""

    fleet: Fleet
    url: str
    port: int

    def calls(self) -> dict[str, tuple[int, str]]:
        """Both lanes to every box, by `lane device`: the API's is asked itself, since nginx asks a daemon for a box."""
        found = {}
        for device in online(self.fleet.stack).values():
            found[f"fast {device}"] = (self.port, f"/d/{device}{PICTURE}")
            found[f"drf {device}"] = (self.fleet.stack.port, f"/api/devices/{device}/proxy{PICTURE}")
        return found


@pytest.fixture
def behind_nginx(fleet: Fleet, free_port: Callable[[], int]) -> Iterator[Site]:
    """As in production: boxes and callers know one address, and come to whichever daemon has least to do."""
    need_nginx()
    port, folder = free_port(), fleet.folder / "nginx"
    folder.mkdir()
    publics = [public for public, _ in fleet.daemons.values()]
    with running(folder, port, api=fleet.stack.port, tunnels=publics):
        yield Site(fleet, f"ws://127.0.0.1:{port}", port)
        end(*fleet.boxes)


@pytest.mark.parametrize("fleet", [2], indirect=True)
def test_a_request_goes_on_to_the_daemon_that_holds_the_box(fleet: Fleet) -> None:
    stack = fleet.stack
    fleet.box("one", f"ws://127.0.0.1:{fleet.daemons['tunnel1'][0]}")
    where = fleet.settle(1)
    (device,) = where
    assert where[device] == "tunnel1"
    here, there = fleet.daemons["tunnel"][0], fleet.daemons["tunnel1"][0]
    # the API goes where the registry says, not to PROXY_INTERNAL_URL
    assert stack.call("GET", f"/api/devices/{device}/proxy{PICTURE}").body.startswith(b"\xff\xd8")
    for port in (here, there, here):
        answer = stack.call("GET", f"/d/{device}{PICTURE}", port=port)
        assert answer.status == 200, answer.body
        assert answer.body.startswith(b"\xff\xd8")
    uploads_pass_whole(fleet, {device})
    with Wire(here) as wire:  # a moving picture, and a client that leaves
        head = f"GET /d/{device}/api/cameras/0/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {stack.token}"
        wire.send(f"{head}\r\n\r\n".encode())
        assert wire.read_head().status == 200
        while wire.buffer.count(b"\xff\xd9") < 3:
            assert wire.more()
    lines = [line for line in stack.log("tunnel").splitlines() if '"event":"forward"' in line]
    assert lines, "the first daemon carried them"
    # The box moves to the other daemon: what the first one remembered is out of date, and nobody notices.
    end(*fleet.boxes)
    fleet.boxes.clear()
    eventually(lambda: not online(stack), 40, "the box is gone")
    assert stack.call("GET", f"/d/{device}{PICTURE}", port=here).code == "TUNNEL_DISCONNECTED"


def give_back(peer: Peer) -> bool:
    """Answers with the body that came."""
    peer.answer(b"".join(peer.body()))
    return True


def uploads_pass_whole(fleet: Fleet, known: set[str]) -> None:
    """What a further box reads and what the caller reads, byte for byte, by each daemon and by the API."""
    stack, sent = fleet.stack, random.Random(7).randbytes(3_000_000)
    with closing(Box()) as local:
        local.on("/back", give_back)
        url = f"ws://127.0.0.1:{fleet.daemons['tunnel1'][0]}"
        fleet.boxes.append(agent(stack, "files", url, fleet.folder, local=local.port))
        (device,) = set(fleet.settle(len(known) + 1)) - known
        ways = [(public, f"/d/{device}") for public, _ in fleet.daemons.values()]
        for port, prefix in (*ways, (stack.port, f"/api/devices/{device}/proxy")):
            said = stack.call("PUT", f"{prefix}/up", sent, port=port, seconds=CALL_SECONDS)
            assert (said.status, said.json["size"]) == (200, len(sent)), said.body
            assert said.json["sha256"] == hashlib.sha256(sent).hexdigest()
            back = stack.call("PUT", f"{prefix}/back", sent, port=port, seconds=CALL_SECONDS)
            assert (back.status, back.body == sent) == (200, True)


@pytest.mark.parametrize("fleet", [2], indirect=True)
def test_a_box_that_dials_another_daemon_replaces_its_old_tunnel_there(fleet: Fleet) -> None:
    """The session at the old daemon is closed with 4409, and requests follow at once."""
    stack = fleet.stack
    first, second = (f"ws://127.0.0.1:{fleet.daemons[name][0]}" for name in ("tunnel", "tunnel1"))
    fleet.box("one", first)
    (device,) = fleet.settle(1)
    here = fleet.daemons["tunnel"][0]
    assert stack.call("GET", f"/d/{device}{PICTURE}", port=here).status == 200
    # A copy of the box, with the same credential, comes to the other daemon.
    shutil.copy(fleet.folder / "one.json", fleet.folder / "copy.json")
    fleet.box("copy", second)
    eventually(lambda: fleet.where().get(device) == "tunnel1", 20, "the box moved")
    eventually(lambda: device not in holds(stack, fleet.daemons["tunnel"][1]), 10, "the old tunnel is closed")
    eventually(lambda: '"code":4409' in stack.log("tunnel"), 5, "the close code in the log")
    for path, port in ((f"/d/{device}{PICTURE}", here), (f"/api/devices/{device}/proxy{PICTURE}", stack.port)):
        assert stack.call("GET", path, port=port).status == 200


@pytest.mark.gameday
@pytest.mark.parametrize("fleet", [3], indirect=True)
def test_one_daemon_of_three_is_killed_under_load(behind_nginx: Site) -> None:
    """Its boxes come back elsewhere by themselves; who calls another daemon's boxes sees nothing of it.

    But for the one answer of a caller that the killed daemon was passing on from another one: a part of that is with
    the caller, and nobody can begin it anew. The API asks the daemon that holds the box, so its callers have no such.
    """
    fleet, stack = behind_nginx.fleet, behind_nginx.fleet.stack
    for number in range(3):
        fleet.box(f"box{number}", behind_nginx.url)
    where = fleet.settle(3)
    victim = where[min(where)]
    lost = {device for device, name in where.items() if name == victim}
    with load(stack, behind_nginx.calls()) as seen:
        eventually(lambda: all(each.good > 5 for each in seen.values()), 20, "load on every box")
        stack.kill(victim)
        killed = time.monotonic()
        eventually(lambda: len(online(stack)) == 3 and len(fleet.where()) == 3, 40, "all boxes are back")
        before = {name: each.good for name, each in seen.items()}
        eventually(lambda: all(each.good > before[name] + 5 for name, each in seen.items()), 20, "all are served again")
    now = fleet.where()
    assert all(now[device] != victim for device in lost)
    assert all(now[device] == name for device, name in where.items() if name != victim)
    for name, each in seen.items():
        lane, device = name.split()
        print(f"{name} lost={device in lost} good={each.good} killed={killed} problems={each.problems}")
        if device not in lost:
            assert (each.but_one_cut(killed) if lane == "fast" else each.problems) == [], name


def moving(stream: Stream, seconds: float) -> int:
    """Bytes of a moving picture within so many seconds. Raises what a cut stream raises."""
    until, got = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = stream.read()
        assert data, "the stream has ended"
        got += len(data)
    return got


@pytest.mark.gameday
@pytest.mark.parametrize("fleet", [2], indirect=True)
def test_a_rolling_restart_under_load(behind_nginx: Site) -> None:
    """No request fails, and no stream in flight is cut while its daemon waits for it: boxes are handed over."""
    fleet, stack = behind_nginx.fleet, behind_nginx.fleet.stack
    for number in range(2):
        fleet.box(f"box{number}", behind_nginx.url)
    fleet.settle(2)
    with load(stack, behind_nginx.calls()) as seen, ThreadPoolExecutor(1) as pool:
        eventually(lambda: all(each.good > 5 for each in seen.values()), 60, "load on every box")
        for name in fleet.daemons:
            other = next(each for each in fleet.daemons if each != name)
            mine = {device for device, holder in fleet.where().items() if holder == name}
            with ExitStack() as held:
                ways = ((behind_nginx.port, "/d/{}"), (stack.port, "/api/devices/{}/proxy"))
                asked = [(port, prefix.format(device) + VIDEO) for device in mine for port, prefix in ways]
                streams = [held.enter_context(stack.stream(path, port=port)) for port, path in asked]
                assert all(moving(stream, 0.5) for stream in streams)
                ended = pool.submit(stack.stop, name, END_SECONDS)
                eventually(lambda o=other, m=mine: m <= holds(stack, fleet.daemons[o][1]), 30, "boxes are handed over")
                assert all(moving(stream, 3.0) > 10_000 for stream in streams), "cut, or starved"
                assert not streams or not ended.done()
            assert ended.result(END_SECONDS) == 0
            assert '"event":"drained","cut":0' in stack.log(name)
            fleet.start(name)
            fleet.settle(2)
            before = {lane: each.good for lane, each in seen.items()}
            eventually(lambda then=before: all(s.good > then[n] + 5 for n, s in seen.items()), 60, "all are served")
    for name, each in seen.items():
        print(f"{name} good={each.good} problems={each.problems}")
        assert each.problems == [], name


@pytest.mark.parametrize("fleet", [(2, PATIENT)], indirect=True)
def test_a_rolling_restart_of_boxes_that_cannot_be_handed_over(behind_nginx: Site) -> None:
    """As agents in the field: their tunnels end with their streams. Who asks meanwhile waits for them; none fails."""
    fleet, stack = behind_nginx.fleet, behind_nginx.fleet.stack
    for number in range(2):
        fleet.box(f"box{number}", behind_nginx.url, hands_over=False)
    fleet.settle(2)
    with load(stack, behind_nginx.calls()) as seen:
        eventually(lambda: all(each.good > 5 for each in seen.values()), 60, "load on every box")
        for name in fleet.daemons:
            assert stack.stop(name, END_SECONDS) == 0
            fleet.start(name)
            fleet.settle(2)
            before = {lane: each.good for lane, each in seen.items()}
            eventually(lambda then=before: all(s.good > then[n] + 5 for n, s in seen.items()), 60, "all are served")
    for name, each in seen.items():
        print(f"{name} good={each.good} problems={each.problems}")
        assert each.problems == [], name
