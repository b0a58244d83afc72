"""Who may no longer is cut off the fast lane: each way to lose a right, with the real API, worker, daemon and agent.

The rule is 5 s. How soon it is on a busy machine is not asserted; the times that make it up are.
"""

from __future__ import annotations

import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from cloud.supervisor import plan as plans
from cloud.supervisor.demo import log_in
from tests.apps.proxy.kit import Box, Peer, Wire, until
from tests.system.many import agent
from tests.system.many import end as end_agents
from tests.system.stack import CALL_SECONDS, Stack, eventually, run_stack, standing_still
from tests.system.ws_kit import WS, echo, receive
from tunnel.daemon.lane import lane as fast
from tunnel.daemon.lane import reauthorize as fast_watch

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PASSWORD: Final = "a-long-enough-pass"
PICTURE: Final = b"--b\r\nContent-Type: image/jpeg\r\nContent-Length: 3\r\n\r\nabc\r\n"


def words(peer: Peer) -> bool:
    """An answer that has no end."""
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nword\r\n")
    peer.wait_gone()
    return False


def pictures(peer: Peer) -> bool:
    """One that is shared among those who look at it."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"
    peer.sock.sendall(head + PICTURE + b"--b\r\n")
    peer.wait_gone()
    return False


@dataclass(frozen=True, slots=True)
class Home:
    """A user with one device, and a login that nothing else uses."""

    stack: Stack
    email: str
    token: str
    device: str

    def log_in(self) -> str:
        return log_in(self.stack.port, self.email, PASSWORD, seconds=CALL_SECONDS)

    def open(self, kind: str, token: str = "") -> Wire:
        """A connection of a login (this home's own) on the daemon's public port, on which something has come."""
        paths = {"words": f"/d/{self.device}/words", "pictures": f"/d/{self.device}/pictures"}
        path = paths.get(kind, f"/ws/echo?device_id={self.device}")
        fields = ["Host: h", f"Authorization: Bearer {token or self.token}", *(WS if kind == "socket" else ())]
        wire = Wire(self.stack.tunnel_port)
        wire.send("\r\n".join([f"GET {path} HTTP/1.1", *fields, "", ""]).encode())
        assert wire.read_head().status == (101 if kind == "socket" else 200)
        if kind == "socket":
            wire.send(b"word")
        receive(wire, 4)
        return wire


@dataclass(frozen=True, slots=True)
class Town:
    """The whole system, and a local server behind every box."""

    stack: Stack
    box: Box
    folder: Path


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("revocation")
    with ExitStack() as held:
        stack = held.enter_context(run_stack(folder / "var", (free_port(), free_port(), free_port())))
        stack.start(plans.tunnel(stack.plan))
        stack.start(plans.api(stack.plan))
        stack.start(plans.worker(stack.plan))
        box = Box()
        held.callback(box.close)
        for path, script in (("/words", words), ("/pictures", pictures), ("/ws/echo", echo)):
            box.on(path, script)
        yield Town(stack, box, folder)


@pytest.fixture
def home(town: Town) -> Iterator[Home]:
    stack, name = town.stack, uuid.uuid4().hex
    email = f"{name}@example.com"
    token = stack.register(email, PASSWORD)
    url = f"ws://127.0.0.1:{stack.tunnel_port}"
    box = agent(stack, name, url, town.folder, local=town.box.port, token=token)

    def online() -> str:
        devices = stack.call("GET", "/api/pairing/status", token=token).data["devices"]
        return next((str(one["device_id"]) for one in devices if one["connected"]), "")

    try:
        yield Home(stack, email, token, str(eventually(online, 40, "the box is online")))
    finally:
        end_agents(box)


# --- the ways to lose a right -----------------------------------------------------------------------------------------
def called(home: Home, method: str, path: str, token: str) -> None:
    answer = home.stack.call(method, path, token=token)
    assert answer.status == 200, answer.body


def act(home: Home, code: str) -> None:
    """What only the admin site can do, by the service that it calls."""
    program = f"""
import uuid
from django.utils import timezone
from apps.accounts import services as accounts
from apps.common.actor import Actor
from apps.pairing import services as pairing
from apps.pairing.models import SessionToken
actor, now = Actor.system("test"), timezone.now()
{code}
"""
    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "-v", "0", "-c", program],
        cwd=plans.ROOT, env=dict(home.stack.plan.environ), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def log_out(home: Home) -> None:
    called(home, "POST", "/api/auth/logout", home.token)


def log_out_everywhere(home: Home) -> None:
    called(home, "POST", "/api/auth/logout-all", home.log_in())


def end_the_login(home: Home) -> None:
    """By another login of the same user."""
    other = home.log_in()
    logins = home.stack.call("GET", "/api/auth/sessions", token=other).data
    (mine,) = [one for one in logins if not one["current"]]
    called(home, "DELETE", f"/api/auth/sessions/{mine['id']}", other)


def disable(home: Home) -> None:
    user = home.stack.call("GET", "/api/auth/me", token=home.token).data["id"]
    act(home, f"assert accounts.set_active(actor=actor, user_id=uuid.UUID('{user}'), active=False, now=now)")


def revoke_the_pairing_token(home: Home) -> None:
    (token,) = home.stack.call("GET", "/api/pairing/tokens", token=home.token).data
    called(home, "DELETE", f"/api/pairing/tokens/{token['id']}", home.token)


def revoke_the_session_token(home: Home) -> None:
    found = f"SessionToken.objects.get(device_id='{home.device}', revoked_at=None).id"
    act(home, f"pairing.revoke_session_token(actor=actor, token_id={found}, now=now)")


def unpair(home: Home) -> None:
    called(home, "DELETE", f"/api/devices/{home.device}", home.token)


WAYS: Final = {
    way.__name__: way
    for way in (
        log_out, log_out_everywhere, end_the_login, disable, revoke_the_pairing_token, revoke_the_session_token, unpair,
    )
}  # fmt: skip
BY_A_JOB: Final = ("log_out", "log_out_everywhere", "end_the_login", "disable")
"""The daemons are told of these by the worker alone."""
KINDS: Final = ("words", "pictures", "socket")


@pytest.mark.parametrize("way", WAYS)
def test_what_runs_ends_with_the_right_to_it(town: Town, home: Home, way: str) -> None:
    """An abort, never a clean end; and the box is let go."""
    with ExitStack() as held:
        wires = {kind: held.enter_context(home.open(kind)) for kind in KINDS}
        WAYS[way](home)
        if way in BY_A_JOB:  # the word of the worker ends them: asking the API anew, which stands still, cannot
            held.enter_context(standing_still(town.stack.processes["api"].pid))
        assert {kind: wire.wait_end() for kind, wire in wires.items()} == dict.fromkeys(KINDS, "reset")
    until(lambda: not town.box.live)


@pytest.mark.parametrize("way", ["log_out", "disable"])
def test_and_it_ends_where_no_worker_runs(town: Town, home: Home, way: str) -> None:
    """Nobody tells the daemon: it asks anew."""
    town.stack.stop("worker")
    try:
        with ExitStack() as held:
            wires = {kind: held.enter_context(home.open(kind)) for kind in KINDS}
            WAYS[way](home)
            assert {kind: wire.wait_end() for kind, wire in wires.items()} == dict.fromkeys(KINDS, "reset")
    finally:
        town.stack.start(plans.worker(town.stack.plan))
    until(lambda: not town.box.live)


def test_another_login_of_the_same_user_goes_on(home: Home) -> None:
    other = home.log_in()
    with home.open("words") as mine, home.open("socket", other) as theirs:
        log_out(home)
        assert mine.wait_end() == "reset"
        theirs.send(b"still")
        assert receive(theirs, 5) == b"still"
        called(home, "POST", "/api/auth/logout", other)
        assert theirs.wait_end() == "reset"


def test_the_times_that_make_up_the_five_seconds() -> None:
    """Revoked streams end within 5 s: the fast lane's renewal and one look, or the other lane's watchdog."""
    assert fast_watch.REAUTHORIZE_SECONDS + fast._LOOK_SECONDS <= 5.0
