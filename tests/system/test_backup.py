"""Backup and restore by the commands of docs/operations.md, on real servers and real files."""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from cloud.supervisor import plan as plans
from tests.conftest import ROOT, _admin
from tests.system.stack import Stack, eventually, run_stack

pytestmark = pytest.mark.system

Env = dict[str, str]
Rows = dict[str, list[tuple[Any, ...]]]


def manage(env: Env, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def connected(env: Env) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(
        host=env["VISIONA_DB_HOST"],
        port=int(env["VISIONA_DB_PORT"]),
        user=env["VISIONA_DB_USER"],
        password=env.get("VISIONA_DB_PASSWORD", ""),
        dbname=env["VISIONA_DB_NAME"],
    )


def rows_of(env: Env) -> Rows:
    """All that stands in all tables."""
    with connected(env) as db:
        tables = [row[0] for row in db.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        every = {name: sql.SQL("SELECT t::text FROM {} t ORDER BY 1").format(sql.Identifier(name)) for name in tables}
        return {name: db.execute(query).fetchall() for name, query in every.items()}


def files_of(folder: Path) -> dict[str, str]:
    models = folder / "models"
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in models.rglob("*")
        if path.is_file()
    }


@contextmanager
def database(template: str = "template1") -> Iterator[str]:
    name = f"backup_{uuid.uuid4().hex[:12]}"
    with closing(_admin()) as admin:
        owner = sql.Identifier(os.environ["VISIONA_DB_USER"])
        make = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
        admin.execute(make.format(sql.Identifier(name), owner, sql.Identifier(template)))
    yield name
    with closing(_admin()) as admin:
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def lived_in(migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Env]:
    """An installation with a user, a device, tokens, a ready model and its bytes."""
    folder = tmp_path_factory.mktemp("storage")
    with database(migrated_template) as name:
        env = {**os.environ, "VISIONA_DB_NAME": name, "VISIONA_STORAGE_DIR": str(folder)}
        done = manage(env, "seed")
        assert done.returncode == 0, done.stderr
        assert files_of(folder)
        yield env


@pytest.fixture(scope="module")
def saved(lived_in: Env, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its backup."""
    folder = tmp_path_factory.mktemp("backups") / "today"
    done = manage(lived_in, "backup", str(folder))
    assert done.returncode == 0, done.stderr
    assert folder.stat().st_mode & 0o077 == 0
    return folder


@pytest.fixture
def elsewhere(lived_in: Env, tmp_path: Path) -> Iterator[Env]:
    """An empty database and an empty folder."""
    with database() as name:
        yield lived_in | {"VISIONA_DB_NAME": name, "VISIONA_STORAGE_DIR": str(tmp_path)}


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A copy of the backup, to be spoilt."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def test_what_is_restored_is_what_was(lived_in: Env, saved: Path, elsewhere: Env, tmp_path: Path) -> None:
    """Every row of every table and every byte; the triggers hold again; nothing is restored over what is there."""
    done = manage(elsewhere, "restore", str(saved))
    assert done.returncode == 0, done.stderr
    assert rows_of(elsewhere) == rows_of(lived_in)
    assert files_of(tmp_path) == files_of(Path(lived_in["VISIONA_STORAGE_DIR"]))
    with (
        connected(elsewhere) as db,
        pytest.raises(psycopg.errors.RaiseException, match="append-only"),
    ):
        db.execute("DELETE FROM audit_events")
    again = manage(elsewhere, "restore", str(saved))
    assert (again.returncode, "is not empty" in again.stderr) == (1, True)


def test_a_second_backup_copies_no_bytes_twice(lived_in: Env, copy: Path) -> None:
    done = manage(lived_in, "backup", str(copy))
    assert "of which 0 were not here yet" in done.stdout


def test_a_backup_that_was_broken_off_is_none(elsewhere: Env, copy: Path) -> None:
    (copy / "backup.json").unlink()
    done = manage(elsewhere, "restore", str(copy))
    assert (done.returncode, "no whole backup" in done.stderr) == (1, True)


def test_wrong_bytes_are_not_restored(elsewhere: Env, copy: Path, tmp_path: Path) -> None:
    name, *_ = files_of(copy)
    (copy / name).write_bytes(os.urandom((copy / name).stat().st_size))
    done = manage(elsewhere, "restore", str(copy))
    assert (done.returncode, "not those of its SHA-256" in done.stderr) == (1, True)
    assert not (tmp_path / name).exists()


def test_bytes_that_are_lost_are_noticed_by_the_backup(lived_in: Env, tmp_path: Path) -> None:
    done = manage(lived_in | {"VISIONA_STORAGE_DIR": str(tmp_path / "empty")}, "backup", str(tmp_path / "backup"))
    assert (done.returncode, "CommandError: backup: " in done.stderr) == (1, True)
    assert not (tmp_path / "backup" / "backup.json").exists()


# --- boxes, of which the backup knows less than the registry ----------------------------------------------------------
def _epoch(stack: Stack, device: str) -> int:
    """Of the box's session that the daemon holds; 0: it holds none."""
    return max((each["epoch"] for each in stack.sessions() if each["device_id"] == device), default=0)


def _reconnected(stack: Stack, device: str) -> int:
    """The box comes back with its own credential; its epoch."""
    stack.stop("agent")
    eventually(lambda: not _epoch(stack, device), 10, "the box has left")
    stack.start_agent()
    return int(eventually(lambda: _epoch(stack, device), 20, "the box is back"))


def _moved(stack: Stack, name: str) -> Stack:
    """The same installation, its programs on another, new database."""
    with closing(connected(dict(stack.plan.environ) | {"VISIONA_DB_NAME": "postgres"})) as db:
        db.autocommit = True
        db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    environ = stack.environ | {"VISIONA_DB_NAME": name}
    return replace(stack, environ=environ, plan=plans.make(stack.var, environ), processes={})


def _started(stack: Stack) -> str:
    """All but the worker, which nothing here needs; the box's device id once it is online."""
    stack.start(plans.tunnel(stack.plan))
    stack.start(plans.api(stack.plan))
    stack.log_in()
    stack.start_agent()
    return stack.device_id()


@pytest.mark.gameday
@pytest.mark.timeout(420)
def test_boxes_that_reconnected_since_the_backup_come_back_after_it(
    tmp_path: Path, free_port: Callable[[], int]
) -> None:
    """Backup, a reconnect, restore: the table knows of fewer admissions than the registry did. Then it forgets the
    rest while the registry stands (a failover that lost commits). The box is back both times, as the device it was."""
    ports = free_port(), free_port(), free_port()
    with run_stack(tmp_path / "var", ports) as before, ExitStack() as stack:
        device = _started(before)
        saved = manage(dict(before.plan.environ), "backup", str(tmp_path / "backup"))
        assert saved.returncode == 0, saved.stderr
        _reconnected(before, device)
        for name in ("agent", "api", "tunnel"):
            before.stop(name)
        after = _moved(before, "restored")
        stack.callback(after.close)
        done = manage(dict(after.plan.environ), "restore", str(tmp_path / "backup"))
        assert done.returncode == 0, done.stderr
        assert _started(after) == device

        with connected(dict(after.plan.environ)) as db:
            db.execute("UPDATE devices SET epoch = 0")
        assert _reconnected(after, device) > 1
