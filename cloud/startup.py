"""What must be true before the API listens: settings, servers, schema, seeds. Each failure is one line and an end.

Run by gunicorn's master (`cloud.server.master`), or as a one-off step before a deployment: `python -m cloud.startup`.
"""

import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import django
import psycopg
import redis
from django.conf import settings
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError
from django.db.migrations.exceptions import InconsistentMigrationHistory

from apps.storage import services as storage
from apps.storage.base import StorageError
from cloud import environment

WAIT_SECONDS: Final = 10.0
"""product.md: a server that can't be reached within 10 s at start ends the process."""
_PAUSE_SECONDS: Final = 0.25
REDIS_OLDEST: Final = 7
_POOLER: Final = (
    "a pooler stands before PostgreSQL at {where}: timeouts are set in each transaction; the worker should connect to "
    "the server itself (docs/database.md)"
)
_LABELS: Final = {"procrastinate.contrib.django": "procrastinate"}
"""Of apps whose label is not the last part of their name."""
_PACKAGES: Final = {
    "unfold.apps.BasicAppConfig": "unfold",
    "apps.accounts.factors.config.StaffAdminConfig": "django.contrib.admin",
}
"""Of apps that are named by a class of theirs, which is not loaded here."""


class StartupError(Exception):
    """Why the API does not start; the text is the one line for the operator."""


def main() -> int:
    """Checks and prepares everything; the exit status."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "cloud.settings")
    try:
        values = environment.load()
        wait_for_database(values)
        wait_for_redis(values)
        check_storage(values)
        if not values["SEED_DEMO_DATA"] and schema_is_current(values):
            return 0
        django.setup()
        prepare_schema(values)
        if values["SEED_DEMO_DATA"]:
            call_command("seed", stdout=io.StringIO())  # it tells a pairing token, which belongs in no log
    except (environment.SettingError, StartupError, CommandError, InconsistentMigrationHistory) as error:
        print(f"visiona: {error}", file=sys.stderr)  # noqa: T201 - the one line, before logging matters
        return 1
    except (DatabaseError, redis.RedisError) as error:
        reason = _first_line(error)
        print(f"visiona: the database or Redis failed during the start: {reason}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    return 0


def wait_for_database(values: Mapping[str, Any]) -> None:
    """Returns once PostgreSQL answers. Raises StartupError with its address after WAIT_SECONDS."""
    where = f"{values['DB_USER']}@{values['DB_HOST']}:{values['DB_PORT']}/{values['DB_NAME']}"
    if not values["DB_HOST"]:
        raise StartupError("VISIONA_DB_HOST: missing; `make dev` starts an embedded PostgreSQL, the API alone does not")

    def ask() -> None:
        with _connect(values) as database:
            row = database.execute("SELECT pg_backend_pid()").fetchone()
            if row is not None and row[0] != database.info.backend_pid:
                print(f"visiona: {_POOLER.format(where=where)}", file=sys.stderr)  # noqa: T201 - one line for the operator

    _wait(f"PostgreSQL at {where}", ask, psycopg.Error)


def _connect(values: Mapping[str, Any]) -> "psycopg.Connection[tuple[Any, ...]]":
    return psycopg.connect(**environment.database_address(values), connect_timeout=2)


def wait_for_redis(values: Mapping[str, Any]) -> None:
    """Returns once Redis answers. Raises StartupError with its address after WAIT_SECONDS."""
    url = values["REDIS_URL"]
    if not url:
        raise StartupError("VISIONA_REDIS_URL: missing; `make dev` starts an embedded Valkey, the API alone does not")

    def ask() -> None:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.ping()
            check_redis_version(client)
            name_eviction(client, masked(url))

    _wait(f"Redis at {masked(url)}", ask, redis.RedisError)


def check_redis_version(client: redis.Redis) -> None:
    """Raises StartupError for one that lacks PEXPIRETIME and EXPIRE NX. One that does not tell passes."""
    try:
        version = str(client.info("server").get("redis_version", ""))
    except redis.ResponseError:  # a user of Redis who may not ask
        return
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < REDIS_OLDEST:
        raise StartupError(f"VISIONA_REDIS_URL: this is Redis {version}; {REDIS_OLDEST} or newer is needed, or Valkey")


def check_storage(values: Mapping[str, Any]) -> None:
    """Raises StartupError where the bucket of models is missing or refuses us.

    One that does not answer is told and no reason to stay down: calls that need no bytes go on without it.
    """
    if not values["S3_BUCKET"]:
        return
    where = values["S3_ENDPOINT_URL"] or "AWS"
    try:
        problem = storage.store().problem()
    except StorageError:
        print(  # noqa: T201 - logging is not set up yet
            f"visiona: warning: the storage of models at {where} does not answer; starting without it", file=sys.stderr
        )
        return
    if problem:
        raise StartupError(f"VISIONA_S3_BUCKET: {problem} at {where}")


def name_eviction(client: redis.Redis, where: str) -> None:
    """Say in one line that this Redis drops keys where its memory is full: logins and presence are no cache."""
    try:
        policy = client.info("memory").get("maxmemory_policy", "noeviction")
    except redis.ResponseError:  # a user of Redis who may not ask
        return
    if policy != "noeviction":
        print(  # noqa: T201 - logging is not set up yet
            f"visiona: warning: Redis at {where} drops keys when its memory is full (maxmemory-policy {policy}): "
            "people are logged out, and boxes look offline for seconds; set noeviction",
            file=sys.stderr,
        )


def masked(url: str) -> str:
    """The URL with `***` in place of its password."""
    parts = urlsplit(url)
    if not parts.password:
        return url
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:***@{host}"))


def schema_is_current(values: Mapping[str, Any]) -> bool:
    """Whether the database has every migration that the code has and no other, so that `migrate` has nothing to do.

    Told by the names of files and one table: to load the apps takes longer than all the rest of a start. False where
    anything is unclear; Django's own `migrate` then decides, and says what is wrong.
    """
    try:
        with _connect(values) as database:
            database.execute("SET LOCAL statement_timeout = '5s'")
            applied = set(database.execute("SELECT app, name FROM django_migrations").fetchall())
            # What follows the last migration makes the permissions: without them the first start was cut short.
            finished = database.execute("SELECT 1 FROM auth_permission LIMIT 1").fetchone() is not None
    except psycopg.Error:
        return False
    return finished and applied == set(_migrations_of_the_code())


def _migrations_of_the_code() -> Iterator[tuple[str, str]]:
    """App label and name of each. A label that is wrong makes the schema look unclear, which costs time alone."""
    for entry in settings.INSTALLED_APPS:
        app = _PACKAGES.get(entry, entry)
        try:
            spec = importlib.util.find_spec(app)
        except ModuleNotFoundError:  # an entry that names a class, which is on no list
            yield entry, "unknown"
            continue
        for folder in (spec and spec.submodule_search_locations) or ():
            for file in Path(folder, "migrations").glob("[!_~]*.py"):
                yield _LABELS.get(app, app.rpartition(".")[2]), file.stem


def prepare_schema(values: Mapping[str, Any]) -> None:
    """Migrates, or refuses to serve an older schema where `VISIONA_DB_AUTO_MIGRATE` is false."""
    if values["DB_AUTO_MIGRATE"]:
        call_command("migrate", verbosity=0, interactive=False)
        return
    try:
        call_command("migrate", verbosity=0, check_unapplied=True)
    except SystemExit:
        raise StartupError(
            "the database's schema is older than this release, and VISIONA_DB_AUTO_MIGRATE is false: run make migrate"
        ) from None


def _wait(what: str, ask: Callable[[], None], failure: type[Exception]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            ask()
        except failure as error:
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise StartupError(f"{what} cannot be reached: {_first_line(error)}") from None
            time.sleep(_PAUSE_SECONDS)
        else:
            return


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
