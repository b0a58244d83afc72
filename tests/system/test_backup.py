"""Backup and restore by the commands of docs/operations.md, on real servers and real files."""

import hashlib
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.conftest import ROOT, _admin

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
