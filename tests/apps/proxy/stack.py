"""The API as a real process (gunicorn and its worker class) before the stand-in daemon and a scripted box.

`Lane` is what the cases are written for: where to connect, under which prefix the box is shown, and what a client must
send. Another lane needs no more than another `Lane`. The fixtures are in `fixtures.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import psycopg
import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.tunnels import registry
from tests.apps.proxy.kit import WAIT, Box, Got, Wire
from tests.apps.proxy.stand_in import StandInDaemon
from tests.conftest import ROOT, Started

NODE = "node-of-the-tests"


@dataclass
class Lane:
    """One way to the box. `prefix` is stripped before the box sees a path and put before a `Location`.

    `api_pid` is the process in front: gunicorn's master, or the daemon. `log` is what it has written, `streams` the
    number of streams to the box that are open, idle ones included.
    """

    name: str
    port: int
    prefix: str
    token: str
    box: Box
    api_pid: int
    device_id: str
    user_id: str
    cut_tunnel: Callable[[], object]
    """Let what carries the streams die, as by SIGKILL."""
    log: Callable[[], str]
    streams: Callable[[], int]
    direct: bool = False
    """The daemon itself serves the client."""
    stand_in: StandInDaemon | None = None

    @property
    def daemon(self) -> StandInDaemon:
        """The daemon's stand-in, where there is one."""
        assert self.stand_in is not None
        return self.stand_in

    def head(self, method: str, path: str, *fields: str, prefix: str | None = None) -> bytes:
        """A request head with a credential."""
        where = self.prefix if prefix is None else prefix
        lines = [f"{method} {where}{path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        return "\r\n".join([*lines, f"Authorization: Bearer {self.token}", *fields, "", ""]).encode("latin-1")

    def wire(self, *, room: int = 0) -> Wire:
        return Wire(self.port, room=room)

    def ask(
        self, method: str, path: str, *fields: str, body: bytes = b"", prefix: str | None = None, close: bool = True
    ) -> Got:
        """One request on a connection of its own, and its whole answer."""
        own = [*fields, *(["Connection: close"] if close else [])]
        if body:
            own.append(f"Content-Length: {len(body)}")
        with self.wire() as wire:
            wire.send(self.head(method, path, *own, prefix=prefix) + body)
            got = wire.read(head_only=method == "HEAD")
            if close and got.complete:
                got.ended = wire.wait_end()
            return got


class Tunnel:
    """The real daemon and a real agent in front of one local port. The agent is started again when a test killed it.

    `settings` are the daemon's, by their names without `VISIONA_`.
    """

    def __init__(self, stack: Stack, folder: Path, ports: tuple[int, int, int], settings: dict[str, str]) -> None:
        self.stack = stack
        self.folder = folder
        self.public, self.internal, self.box_port = ports
        self.user_id = add_user(stack)
        self.device_id = ""
        own = {
            "TUNNEL_PORT": str(self.public),
            "PROXY_INTERNAL_PORT": str(self.internal),
            "API_INTERNAL_URL": f"http://127.0.0.1:{stack.port}",
            "NODE_URL": f"http://127.0.0.1:{self.internal}",
            "CORS_ALLOWED_ORIGINS": "http://front.example",
            "TUNNEL_PUBLIC_URL": "http://tunnel.example",
        }
        self.daemon = start_process("tunnel", folder / "tunnel.log", ["tunnel"], **(own | settings))
        self.daemon.wait_for_http(f"http://127.0.0.1:{self.internal}/readyz", 30)
        self.agent: Started | None = None

    def ensure_agent(self) -> None:
        """Return when the device is online."""
        if self.agent is None or self.agent.popen.poll() is not None:
            pairing = "" if self.device_id else self._pairing_token()
            self.agent = start_process(
                "agent", self.folder / "agent.log", ["tunnel.agent", "run"],
                AGENT_URL=f"http://127.0.0.1:{self.public}", AGENT_LOCAL=f"127.0.0.1:{self.box_port}",
                AGENT_CREDENTIALS=str(self.folder / "credentials.json"), AGENT_PAIRING_TOKEN=pairing,
            )  # fmt: skip
        self.agent.wait_for(self._online, "device online")

    def _online(self) -> bool:
        found = registry.lookup_user(self.user_id)
        if len(found) != 1 or self.daemon.popen.poll() is not None:
            return False
        (self.device_id,) = found
        return self._forwards(self.device_id)

    def _forwards(self, device_id: str) -> bool:
        """Whether a request gets through: the registry may still name the tunnel of an agent that was killed."""
        with Wire(self.stack.port) as wire:
            token = log_in(self.user_id)
            wire.send(
                f"GET /api/devices/{device_id}/proxy/ready HTTP/1.1\r\nHost: localhost\r\n"
                f"Authorization: Bearer {token}\r\nConnection: close\r\n\r\n".encode()
            )
            try:
                return wire.read().status == 200
            except OSError:  # no answer within the time, on a busy machine: asked again
                return False

    def _pairing_token(self) -> str:
        with Wire(self.stack.port) as wire:
            head = f"POST /api/pairing/token HTTP/1.1\r\nAuthorization: Bearer {log_in(self.user_id)}\r\n"
            wire.send(
                head.encode() + b"Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
            )
            return str(wire.read().json["data"]["token"])

    def kill_agent(self) -> None:
        """SIGKILL."""
        assert self.agent is not None
        self.agent.kill()

    def streams(self) -> int:
        """The streams that the daemon has open, by its own metrics."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.internal}/metrics", timeout=WAIT) as answer:
            lines = answer.read().decode().splitlines()
        (value,) = [line.split()[1] for line in lines if line.startswith("visiona_tunnel_streams ")]
        return int(float(value))

    def stop(self) -> None:
        if self.agent is not None:
            self.agent.stop()
        self.daemon.stop()


class Way(NamedTuple):
    """How a request reaches the box through the real daemon and agent."""

    port: Callable[[Tunnel], int]
    prefix: str
    """With `{device}`."""
    front: Callable[[Tunnel], Started]
    """The process in front."""


WAYS: Final = {
    "tunnel": Way(lambda tunnel: tunnel.stack.port, "/api/devices/{device}/proxy", lambda tunnel: tunnel.stack.process),
    "fast": Way(lambda tunnel: tunnel.public, "/d/{device}", lambda tunnel: tunnel.daemon),
    "front": Way(lambda tunnel: tunnel.public, "/api/devices/{device}/proxy", lambda tunnel: tunnel.daemon),
}
"""What is held on one of them is held on all: a further way is one more line here. `front` is the front end's own URLs
on the daemon's port."""
EVERY_WAY: Final = [*WAYS]
EVERY_CARRIER: Final = ["tunnel", "fast"]
"""One way by each program that carries, for cases that cost seconds and that no URL can make different."""


@dataclass
class Stack:
    port: int
    database: str
    process: Started

    def rows(self, statement: str, *values: object) -> list[tuple[object, ...]]:
        """Run SQL in the API's database; the rows, if it gives any."""
        with psycopg.connect(
            host=os.environ["VISIONA_DB_HOST"],
            port=int(os.environ["VISIONA_DB_PORT"]),
            user=os.environ["VISIONA_DB_USER"],
            password=os.environ.get("VISIONA_DB_PASSWORD", ""),
            dbname=self.database,
            autocommit=True,
        ) as connection:
            done = connection.execute(statement, values)  # type: ignore[call-overload]  # a literal of the tests
            return list(done.fetchall()) if done.description else []


def start_process(name: str, log: Path, argv: list[str], **settings: str) -> Started:
    """A Python program in a session of its own."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1"} | {f"VISIONA_{key}": value for key, value in settings.items()}
    with log.open("ab") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", *argv],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    return Started(name, popen, log)


def start_api(database: str, port: int, log: Path, **settings: str) -> Started:
    """gunicorn as in production, one worker, until it answers."""
    own = {
        "DB_NAME": database,
        "API_PORT": str(port),
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
        "API_WORKERS": "1",
        "CORS_ALLOWED_ORIGINS": "http://front.example",
        "TUNNEL_PUBLIC_URL": "http://tunnel.example",
        "PROXY_BODY_MAX_BYTES": str(80 << 20),
    }
    started = start_process("api", log, ["gunicorn", "-c", "cloud/gunicorn.conf.py", "cloud.wsgi"], **(own | settings))
    started.wait_for_http(f"http://127.0.0.1:{port}/healthz?live=1", 40)
    return started


def api_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the test module wants set otherwise, of the API and of the real daemon: its dict `API_SETTINGS`."""
    return dict(getattr(request.module, "API_SETTINGS", {}))


def add_user(stack: Stack) -> str:
    """A user who may log in by nothing but what a test gives out; the id."""
    user_id = str(uuid.uuid4())
    stack.rows(
        "INSERT INTO users (id, created_at, updated_at, email, name, password, is_active, is_staff, is_superuser,"
        " locale, oidc_issuer, oidc_subject) VALUES (%s, now(), now(), %s, 'A', '!', true, false, false, '', '', '')",
        user_id, f"{user_id}@example.com",
    )  # fmt: skip
    return user_id


def add_device(stack: Stack, owner: str, name: str = "box") -> str:
    """A device of the owner's, of epoch 1; the id."""
    device_id = str(uuid.uuid4())
    stack.rows(
        "INSERT INTO devices (id, created_at, updated_at, owner_id, name, chip, firmware, agent_version, address,"
        " epoch, link_status, device_status, metadata) VALUES (%s, now(), now(), %s, %s, '', '', '', '', 1, 'offline',"
        " 'unknown', '{}')",
        device_id, owner, name,
    )  # fmt: skip
    return device_id


def log_in(user_id: str) -> str:
    """A fresh login token."""
    token, _ = sessions.create(user_id=uuid.UUID(user_id), address="192.0.2.1", agent="tests", now=timezone.now())
    return token


def put_online(device_id: str, owner: str, daemon: StandInDaemon, *, node: str = NODE, epoch: int = 1) -> str:
    """Tell the registry that the stand-in holds the device's tunnel; the session."""
    registry.heartbeat(
        node=node, url=daemon.url, version="0", started_at=datetime.now(UTC), sessions_count=1, streams_count=0,
        draining=False,
    )  # fmt: skip
    session = f"session-{uuid.uuid4()}"
    daemon.sessions.add(session)
    put = registry.put(
        node,
        [registry.Session(device_id, session, epoch, owner, datetime.now(UTC).isoformat(), features=("keepalive",))],
    )
    assert put[0].verdict == "ok"
    return session
