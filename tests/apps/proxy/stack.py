"""The API as a real process (gunicorn and its worker class) before the stand-in daemon and a scripted box.

`Lane` is what the cases are written for: where to connect, under which prefix the box is shown, and what a client must
send. Another lane needs no more than another `Lane`. The fixtures are in `fixtures.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from django.utils import timezone

from apps.accounts import sessions
from apps.tunnels import registry
from tests.apps.proxy.kit import Box, Got, StandInDaemon, Wire
from tests.conftest import ROOT, Started

NODE = "node-of-the-tests"


@dataclass
class Lane:
    """One way to the box. `prefix` is stripped before the box sees a path; `mount` is what `Location` gets."""

    port: int
    prefix: str
    token: str
    box: Box
    daemon: StandInDaemon
    api_pid: int
    device_id: str
    user_id: str

    def head(self, method: str, path: str, *fields: str, prefix: str | None = None) -> bytes:
        """A request head with a credential."""
        where = self.prefix if prefix is None else prefix
        lines = [f"{method} {where}{path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        return "\r\n".join([*lines, f"Authorization: Bearer {self.token}", *fields, "", ""]).encode("latin-1")

    def wire(self) -> Wire:
        return Wire(self.port)

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


def start_api(database: str, port: int, log: Path, **settings: str) -> Started:
    """gunicorn as in production, one worker, until it answers."""
    env = {
        **os.environ,
        "PYTHONUNBUFFERED": "1",
        "VISIONA_DB_NAME": database,
        "VISIONA_API_PORT": str(port),
        "VISIONA_PUBLIC_URL": f"http://127.0.0.1:{port}",
        "VISIONA_API_WORKERS": "1",
        "VISIONA_CORS_ALLOWED_ORIGINS": "http://front.example",
        "VISIONA_PROXY_BODY_MAX_BYTES": str(80 << 20),
        **{f"VISIONA_{name}": value for name, value in settings.items()},
    }
    with log.open("wb") as out:
        popen = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "-c", "cloud/gunicorn.conf.py", "cloud.wsgi"],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    started = Started("api", popen, log)
    started.wait_for_http(f"http://127.0.0.1:{port}/healthz?live=1", 40)
    return started


def api_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    """What the test module wants set otherwise: its dict `API_SETTINGS`."""
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
