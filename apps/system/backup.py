"""A backup of everything that must not be lost: the database by `pg_dump`, the models' bytes beside it.

    <folder>/database.dump     pg_dump's custom format
    <folder>/models/…          each ready model's bytes under its object key
    <folder>/backup.json       written last: a folder without it is no backup

The list of models is read in the very snapshot that `pg_dump` dumps, so that the two agree whatever goes on meanwhile.
Bytes that a former backup in the same folder has are not copied again: an object never changes under its key.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from django.conf import settings
from django.db import connection, transaction

from apps.common import redis
from apps.model_registry.models import AIModel, ModelStatus
from apps.storage import services as storage
from apps.storage.base import Mismatch

DUMP: Final = "database.dump"
MANIFEST: Final = "backup.json"
_CHUNK: Final = 1 << 20
_ANSWER_SECONDS: Final = 30.0
_VERSION: Final = re.compile(r"\(PostgreSQL\)\s+(\d+)")
Say = Callable[[str], None]


class BackupError(Exception):
    """It cannot be done; the text is the one line for the operator."""


def backup(folder: Path, say: Say) -> None:
    """Write a backup into `folder`. Raises BackupError, StorageError, the errors of PostgreSQL."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            cursor.execute("SELECT pg_export_snapshot()")
            (snapshot,) = cursor.fetchone()
        models = list(_ready_models())
        _run("pg_dump", "--format=custom", f"--snapshot={snapshot}", f"--file={folder / DUMP}", "--no-password")
    say(f"database: {(folder / DUMP).stat().st_size} bytes")
    copied = sum(_save(folder, key, size, sha256) for key, size, sha256 in models)
    say(f"models: {len(models)}, of which {copied} were not here yet")
    manifest = {"version": settings.VERSION, "models": len(models)}
    (folder / MANIFEST).write_text(json.dumps(manifest) + "\n")


def restore(folder: Path, say: Say) -> None:
    """Put a backup into an empty database and the object store, and end what Redis knew of before.

    Raises BackupError, StorageError, the errors of PostgreSQL and Redis.
    """
    if not (folder / MANIFEST).exists():
        raise BackupError(f"{folder} holds no whole backup: there is no {MANIFEST}")
    if connection.introspection.table_names():
        raise BackupError(f"the database {connection.settings_dict['NAME']} is not empty: name a new one to restore to")
    connection.close()
    _run("pg_restore", "--exit-on-error", "--single-transaction", "--no-owner", "--no-privileges", "--no-password",
         f"--dbname={connection.settings_dict['NAME']}", str(folder / DUMP))  # fmt: skip
    models = list(_ready_models())
    for key, size, sha256 in models:
        _bring_back(folder, key, size, sha256)
    say(f"database and the bytes of {len(models)} models restored")
    say(f"{redis.forget_all()} keys of Redis dropped: people log in again, boxes are back with a heartbeat")


def _ready_models() -> Iterator[tuple[str, int, str]]:
    """Key, size and SHA-256 of each object that a row promises."""
    ready = AIModel.objects.filter(status=ModelStatus.READY).order_by("object_key")
    yield from ready.values_list("object_key", "size", "sha256")


def _save(folder: Path, key: str, size: int, sha256: str) -> bool:
    """Copies an object unless it is there; whether it did."""
    target = folder / key
    if target.exists() and target.stat().st_size == size:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    digest = hashlib.sha256()
    with part.open("wb") as out, storage.open_range(key=key, start=0, length=size) as pieces:
        for piece in pieces:
            digest.update(piece)
            out.write(piece)
    if digest.hexdigest() != sha256:
        raise BackupError(f"{key}: its bytes are not those of its SHA-256")
    part.replace(target)
    return True


def _bring_back(folder: Path, key: str, size: int, sha256: str) -> None:
    source = folder / key
    if not source.exists():
        raise BackupError(f"the backup lacks {key}")
    with source.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
            raise BackupError(f"{source}: its bytes are not those of its SHA-256")
        file.seek(0)
        try:
            storage.store().put(key, file, limit=size)
        except Mismatch as error:
            raise BackupError(f"{key}: {error}") from None


# --- PostgreSQL's programs --------------------------------------------------------------------------------------------
def _run(name: str, *arguments: str) -> None:
    """Runs one of PostgreSQL's programs on the database of the settings. Raises BackupError with its last line."""
    # Without a timeout: it takes as long as the database is large, and the operator sees it and may interrupt it.
    done = subprocess.run(
        [_program(name), *arguments],
        env={**os.environ, **_address()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise BackupError(f"{name}: {lines[-1]}")


def _address() -> Mapping[str, str]:
    """libpq's environment: nothing of it stands on a command line, which all users of a machine may read."""
    given: dict[str, Any] = connection.settings_dict
    return {
        "PGHOST": str(given["HOST"]),
        "PGPORT": str(given["PORT"]),
        "PGUSER": str(given["USER"]),
        "PGPASSWORD": str(given["PASSWORD"]),
        "PGDATABASE": str(given["NAME"]),
        "PGSSLMODE": str(given["OPTIONS"]["sslmode"]),
    }


def _program(name: str) -> str:
    """The machine's own program, or the wheel's: one at least as new as the server, which an older one refuses."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW server_version_num")
        server = int(cursor.fetchone()[0]) // 10_000
    inside = Path(settings.POSTGRES_PROGRAMS, name) if settings.POSTGRES_PROGRAMS else None
    for program in (shutil.which(name), inside):
        if program is None:
            continue
        version = _VERSION.search(_told_version(str(program)))
        if version is not None and int(version.group(1)) >= server:
            return str(program)
    raise BackupError(f"there is no {name} of PostgreSQL {server} or newer: install postgresql-client-{server}")


def _told_version(program: str) -> str:
    try:
        return subprocess.run(
            [program, "--version"], capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS
        ).stdout
    except subprocess.TimeoutExpired:
        raise BackupError(f"{program} --version does not answer") from None
