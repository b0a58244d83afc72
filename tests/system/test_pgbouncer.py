"""The product behind Debian's PgBouncer in transaction mode, with nothing set for it in ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cloud.environment import database_address
from cloud.supervisor import plan as plans
from tests.system.stack import Stack, run_stack

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
BINARY = shutil.which("pgbouncer", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
SERVERS = 2
ASKED = """
import asyncio, json, time
import django
django.setup()
from django.db import OperationalError, connection, connections, transaction
from procrastinate.contrib.django import app
from procrastinate.exceptions import ConnectorException

def cancelled(statement):
    began = time.monotonic()
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    except OperationalError as error:
        return getattr(error.__cause__, "sqlstate", None), time.monotonic() - began < 1.95
    return "done", False

def locked():
    other = connections["default"].copy()
    other.set_autocommit(False)
    with other.cursor() as cursor:
        cursor.execute("LOCK TABLE django_migrations IN ACCESS EXCLUSIVE MODE")
    try:
        return cancelled("SELECT count(*) FROM django_migrations")
    finally:
        other.rollback()
        other.close()

async def queue(statement):
    queue = app.connector.get_worker_connector()
    await queue.open_async()
    began = time.monotonic()
    try:
        await queue.execute_query_async(statement)
    except ConnectorException as error:
        return getattr(error.__cause__, "sqlstate", None), time.monotonic() - began < 1.95
    finally:
        await queue.close_async()
    return "done", False

told = {"queue": asyncio.run(queue("SELECT pg_sleep(4)"))}
told |= {"alone": cancelled("SELECT pg_sleep(4)"), "lock": locked()}
with transaction.atomic():
    told["atomic"] = cancelled("SELECT pg_sleep(4)")
    transaction.set_rollback(True)
with connection.cursor() as cursor:
    cursor.execute("SELECT %s, 'a' WHERE %s = 2", ["x%", 2])
    told["row"] = cursor.fetchone()
    told["count"] = cursor.rowcount
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def pooled(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]
) -> Iterator[tuple[Stack, plans.Plan]]:
    """A system whose programs are told the pooler's address."""
    if BINARY is None:
        if os.environ.get("CI") == "true":
            pytest.fail("pgbouncer is not on the PATH (.ci/tools installs it)")
        pytest.skip("pgbouncer is not installed")
    var = tmp_path_factory.mktemp("pgbouncer") / "var"
    with run_stack(var, (free_port(), free_port(), free_port()), {"VISIONA_DB_DEADLINE_SECONDS": "2"}) as stack:
        settings, port = stack.plan.settings, free_port()
        folder = Path(tempfile.mkdtemp(prefix="pgbouncer-"))  # readable for whom it runs as
        folder.chmod(0o755)
        (folder / "users").write_text(f'"{settings["DB_USER"]}" "{settings["DB_PASSWORD"]}"\n')
        (folder / "ini").write_text(
            f"[databases]\n* = host={settings['DB_HOST']} port={settings['DB_PORT']}\n[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = scram-sha-256\nauth_file = {folder}/users\n"
            f"pool_mode = transaction\ndefault_pool_size = {SERVERS}\nmax_client_conn = 200\nunix_socket_dir =\n"
        )
        user = ["-u", "nobody"] if os.geteuid() == 0 else []
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen([BINARY, *user, str(folder / "ini")], stdout=log, stderr=log)
        try:
            environ = {**stack.plan.environ, "VISIONA_DB_HOST": "127.0.0.1", "VISIONA_DB_PORT": str(port)}
            behind = plans.make(var, environ)
            _wait(behind, folder / "log")
            yield stack, behind
        finally:
            stack.close()
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()
            process.wait()
            shutil.rmtree(folder)


def _wait(behind: plans.Plan, log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            psycopg.connect(**database_address(behind.settings), connect_timeout=2).close()
        except psycopg.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        else:
            return


def test_it_starts_and_serves(pooled: tuple[Stack, plans.Plan]) -> None:
    stack, behind = pooled
    stack.start(plans.api(behind))
    stack.log_in()
    assert stack.call("POST", "/api/pairing/token", {"name": "a box"}).status == 201
    assert stack.call("GET", "/api/pairing/tokens").status == 200
    assert stack.call("GET", "/healthz", token="").status == 200
    assert stack.log("api").count("a pooler stands before PostgreSQL") == 1


def test_migrate_leaves_no_lock(pooled: tuple[Stack, plans.Plan]) -> None:
    """The lock is a transaction's: a session's would be left in a connection that is another's by then."""
    _, behind = pooled
    command = [sys.executable, "manage.py", "migrate", "--verbosity", "0"]
    done = subprocess.run(command, cwd=plans.ROOT, env=dict(behind.environ), timeout=120, check=False)
    assert done.returncode == 0
    with psycopg.connect(**database_address(behind.settings)) as database:
        assert database.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'").fetchone() == (0,)


def test_timeouts_hold_and_are_left_in_no_session(pooled: tuple[Stack, plans.Plan]) -> None:
    _, behind = pooled
    environ = {**behind.environ, "DJANGO_SETTINGS_MODULE": "cloud.settings"}
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=plans.ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert told["queue"] == ["57014", True]
    assert told["alone"] == ["57014", True]
    assert told["atomic"] == ["57014", True]
    assert told["lock"] == ["55P03", True]
    assert (told["row"], told["count"]) == (["x%", "a"], 1)
    for _ in range(2 * SERVERS):
        with psycopg.connect(**database_address(behind.settings)) as database:
            assert database.execute("SHOW statement_timeout").fetchone() == ("0",)
            assert database.execute("SHOW lock_timeout").fetchone() == ("0",)
