"""Settings: `.env.example` and the list agree; what cannot be used stops the start with one line."""

import itertools
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import psycopg
import pytest
import redis as redis_package
from django.db import connections
from dotenv import dotenv_values

import manage
from apps.common.management.commands import migrate
from cloud import environment, startup
from tunnel.contract import PREFIX, SETTINGS, SettingError, read_settings

ROOT = Path(__file__).resolve().parents[3]
PRODUCTION = {
    "VISIONA_ENV": "production",
    "VISIONA_SECRET_KEY": "kQ3vX8nR1mZ7tB5wY2jL9pD4sF6gH0cAeUiOxNqMrTyWzPvJb-0123456789",
    "VISIONA_INTERNAL_SECRET": "i" * 32,
    "VISIONA_STORAGE_SIGNING_SECRET": "s" * 32,
    "VISIONA_DB_HOST": "db.invalid",
    "VISIONA_DB_USER": "u",
    "VISIONA_DB_NAME": "n",
    "VISIONA_REDIS_URL": "redis://cache.invalid",
    "VISIONA_PUBLIC_URL": "https://cloud.example",
    "VISIONA_TUNNEL_PUBLIC_URL": "https://tunnel.example",
}


def test_the_example_names_each_setting_with_its_default_and_a_line_about_it():
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = dict(line.split("=", 1) for line in lines if line.startswith(PREFIX))
    assert found == {PREFIX + setting.name: setting.default for setting in SETTINGS}
    for above, line in itertools.pairwise(lines):
        assert not line.startswith(PREFIX) or above.startswith("# "), line


def test_the_example_unchanged_is_the_defaults():
    values = {key: value or "" for key, value in dotenv_values(ROOT / ".env.example").items()}
    assert read_settings(values, "api") == read_settings({}, "api")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CORS_ALLOWED_ORIGINS", "localhost:3000"),
        ("CORS_ALLOWED_ORIGINS", "http://a.example/path"),
        ("CORS_ALLOWED_ORIGINS", "*"),
        ("TRUSTED_PROXIES", "proxy.example"),
        ("REDIS_URL", "http://localhost"),
        ("SECRET_KEY", " , "),
        ("DB_POOL_MIN", "17"),
        ("API_PORT", "none"),
        ("DB_AUTO_MIGRATE", "perhaps"),
        ("LANGUAGE", "tlh"),
        ("DB_HOST", "alone.example"),
    ],
)
def test_a_bad_value_is_named(monkeypatch, name, value):
    for known in ("DB_HOST", "DB_USER", "DB_NAME", "REDIS_URL"):
        monkeypatch.delenv(PREFIX + known, raising=False)
    monkeypatch.setenv(PREFIX + name, value)
    with pytest.raises(SettingError, match=PREFIX + "DB_USER" if name == "DB_HOST" else PREFIX + name):
        environment.load()


def test_an_unknown_name_is_a_warning_that_names_the_nearest(monkeypatch, capsys):
    monkeypatch.setenv("VISIONA_LOG_LEVLE", "info")
    environment.load()
    assert "VISIONA_LOG_LEVLE: unknown setting; the nearest known one is VISIONA_LOG_LEVEL" in capsys.readouterr().err


def run(argv: list[str], **env: str) -> tuple[int, list[str]]:
    """The exit status and the lines on stderr of a command with these settings alone."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
    done = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env={**kept, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr.strip().splitlines()


_START = ["-m", "cloud.startup"]


@pytest.mark.parametrize(
    ("argv", "change", "named"),
    [
        (_START, {"VISIONA_SECRET_KEY": ""}, "VISIONA_SECRET_KEY"),
        (_START, {"VISIONA_INTERNAL_SECRET": "development-only-internal-secret"}, "VISIONA_INTERNAL_SECRET"),
        (_START, {"VISIONA_REDIS_URL": ""}, "VISIONA_REDIS_URL"),
        (_START, {"VISIONA_STATIC_USER_ID": "demo-user"}, "VISIONA_STATIC_USER_ID"),
        (["manage.py", "check"], {"VISIONA_REDIS_URL": ""}, "VISIONA_REDIS_URL"),
        (["-c", "import cloud.wsgi"], {"VISIONA_REDIS_URL": ""}, "VISIONA_REDIS_URL"),
    ],
)
def test_production_refuses_defaults_with_one_line(argv, change, named):
    status, lines = run(argv, **{**PRODUCTION, **change})
    assert status != 0
    assert len(lines) == 1
    assert lines[0].startswith("visiona: ")
    assert named in lines[0]


def test_production_passes_djangos_deployment_check():
    mail = {"VISIONA_EMAIL_HOST": "mail.example"}  # without one, mails are written to a folder: nothing to deploy
    status, lines = run(["manage.py", "check", "--deploy", "--fail-level", "INFO"], **PRODUCTION, **mail)
    expected = ("System check", "visiona: warning: VISIONA_STORAGE_DIR")  # a folder serves one host: a true warning
    assert (status, [line for line in lines if not line.startswith(expected)]) == (0, [])


class TestStartup:
    @pytest.fixture(autouse=True)
    def _quick(self, monkeypatch):
        monkeypatch.setattr(startup, "WAIT_SECONDS", 0.3)

    def test_an_unreachable_database_is_named_without_its_password(self, free_port):
        port = free_port()
        values = {
            **read_settings({}, "api")[0], "DB_HOST": "127.0.0.1", "DB_PORT": port, "DB_USER": "me",
            "DB_PASSWORD": "hush", "DB_NAME": "mine",
        }  # fmt: skip
        with pytest.raises(startup.StartupError) as caught:
            startup.wait_for_database(values)
        assert str(caught.value).startswith(f"PostgreSQL at me@127.0.0.1:{port}/mine cannot be reached: ")
        assert "hush" not in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_unreachable_redis_is_named_without_its_password(self, free_port):
        port = free_port()
        with pytest.raises(startup.StartupError) as caught:
            startup.wait_for_redis({"REDIS_URL": f"redis://:hush@127.0.0.1:{port}/0"})
        assert str(caught.value).startswith(f"Redis at redis://:***@127.0.0.1:{port}/0 cannot be reached: ")
        assert "hush" not in str(caught.value)

    @pytest.mark.parametrize("policy", ["noeviction", "allkeys-lru", "volatile-ttl"])
    def test_a_redis_that_drops_keys_is_named(self, monkeypatch, settings, capsys, policy):
        monkeypatch.setattr(redis_package.Redis, "info", lambda _self, _section: {"maxmemory_policy": policy})
        startup.wait_for_redis({"REDIS_URL": settings.VISIONA["REDIS_URL"]})
        said = capsys.readouterr().err.splitlines()
        assert [policy in line and "set noeviction" in line for line in said] == [True] * (policy != "noeviction")

    def test_one_that_may_not_be_asked_is_none(self, monkeypatch, settings, capsys):
        def refuse(_self: object, _section: str) -> None:
            raise redis_package.exceptions.NoPermissionError("NOPERM")

        monkeypatch.setattr(redis_package.Redis, "info", refuse)
        startup.wait_for_redis({"REDIS_URL": settings.VISIONA["REDIS_URL"]})
        assert capsys.readouterr().err == ""

    @pytest.mark.parametrize("command", [["migrate"], ["seed"], ["procrastinate", "worker"]])
    def test_a_command_on_the_data_ends_with_the_same_line(self, monkeypatch, settings, free_port, command):
        """The migrate step and the worker of an installation are started beside its servers, and may be there first."""
        port = free_port()
        address = {"DB_HOST": "127.0.0.1", "DB_PORT": port, "DB_USER": "me", "DB_PASSWORD": "hush", "DB_NAME": "mine"}
        settings.VISIONA = {**settings.VISIONA, **address}
        assert self.end_of(monkeypatch, command).startswith(f"visiona: PostgreSQL at me@127.0.0.1:{port}/mine cannot")

    def test_the_worker_waits_for_redis_too(self, monkeypatch, settings, free_port):
        port = free_port()
        settings.VISIONA = {**settings.VISIONA, "REDIS_URL": f"redis://:hush@127.0.0.1:{port}/0"}
        monkeypatch.setattr(startup, "wait_for_database", lambda _values: None)
        said = self.end_of(monkeypatch, ["procrastinate", "worker"])
        assert said.startswith(f"visiona: Redis at redis://:***@127.0.0.1:{port}/0 cannot be reached: ")

    @pytest.mark.parametrize("command", [["check"], ["migrate", "--help"], ["procrastinate", "healthchecks"]])
    def test_others_do_not_wait(self, monkeypatch, settings, free_port, command):
        settings.VISIONA = {**settings.VISIONA, "DB_HOST": "127.0.0.1", "DB_PORT": free_port()}
        assert self.end_of(monkeypatch, command) == "it runs"

    def end_of(self, monkeypatch, command: list[str]) -> str:
        """What `manage.py` with this command ends with; `it runs` once Django has it."""

        def run_it(_argv: list[str]) -> None:
            sys.exit("it runs")

        monkeypatch.setattr(sys, "argv", ["manage.py", *command])
        monkeypatch.setattr(manage, "ensure", lambda *_args, **_kwargs: nullcontext())
        monkeypatch.setattr(manage, "execute_from_command_line", run_it)
        with pytest.raises(SystemExit) as ended:
            manage.main()
        assert "hush" not in str(ended.value)
        return str(ended.value)

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("redis://localhost:6379/0", "redis://localhost:6379/0"),
            ("redis://user:p%40ss@[::1]:6379/1", "redis://user:***@[::1]:6379/1"),
            ("rediss://:p@h", "rediss://:***@h"),
        ],
    )
    def test_masked(self, url, shown):
        assert startup.masked(url) == shown


def _shown(connection, setting: str) -> str:
    with connection.cursor() as cursor:
        cursor.execute(f"SHOW {setting}")
        return cursor.fetchone()[0]


class TestSchema:
    """Real databases, beside the test's own: empty, the prototype's, and an older one."""

    def make(self, system_env: dict[str, str], *statements: str) -> dict[str, str]:
        named = {key: system_env[f"VISIONA_DB_{key.upper()}"] for key in ("host", "port", "user", "password")}
        with psycopg.connect(**named, dbname=system_env["VISIONA_DB_NAME"], autocommit=True) as database:
            for statement in statements:
                database.execute(statement)
        return {key: value for key, value in system_env.items() if key.startswith(PREFIX)}

    def test_the_prototypes_database_is_refused(self, system_env):
        env = self.make(
            system_env, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public",
            "CREATE TABLE schema_migrations (version bigint, dirty boolean)",
        )  # fmt: skip
        for argv in (["-m", "cloud.startup"], ["manage.py", "migrate"]):
            status, lines = run(argv, **env)
            assert status != 0
            assert len(lines) == 1
            assert "golang-migrate" in lines[0]

    def test_an_older_schema_is_refused_where_migrating_is_off(self, system_env):
        env = self.make(system_env, "DELETE FROM django_migrations WHERE app = 'sessions'")
        status, lines = run(["-m", "cloud.startup"], **{**env, "VISIONA_DB_AUTO_MIGRATE": "false"})
        assert status == 1
        assert len(lines) == 1
        assert "VISIONA_DB_AUTO_MIGRATE is false" in lines[0]

    @pytest.mark.parametrize(
        ("statement", "current"),
        [
            ("SELECT 1", True),
            ("DELETE FROM django_migrations WHERE app = 'sessions'", False),
            ("INSERT INTO django_migrations (app, name, applied) VALUES ('devices', '9999_later', now())", False),
            ("DROP TABLE django_migrations", False),
            ("TRUNCATE auth_permission CASCADE", False),  # the first start was killed after its last migration
        ],
    )
    def test_a_current_schema_is_told_without_loading_the_apps(self, system_env, statement, current):
        self.make(system_env, statement)
        names = ("HOST", "PORT", "USER", "PASSWORD", "NAME")
        values = {f"DB_{name}": system_env[f"VISIONA_DB_{name}"] for name in names}
        values["DB_SSLMODE"] = system_env.get("VISIONA_DB_SSLMODE", "prefer")  # a server of one's own needs none named
        assert startup.schema_is_current(values) is current

    def test_who_waits_to_migrate_keeps_no_index_from_being_made(self, system_env):
        """`CREATE INDEX CONCURRENTLY`, of the one that migrates, waits for every statement that has begun before it."""
        env = self.make(system_env)
        named = {key: system_env[f"VISIONA_DB_{key.upper()}"] for key in ("host", "port", "user", "password")}
        kept = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        with psycopg.connect(**named, dbname=system_env["VISIONA_DB_NAME"], autocommit=True) as database:
            database.execute("SELECT pg_advisory_lock(%s)", [migrate.LOCK_KEY])
            waits = subprocess.Popen([sys.executable, "manage.py", "migrate", "-v0"], cwd=ROOT, env={**kept, **env})
            asking = "SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%advisory%'"
            while database.execute(asking).fetchone() is None:
                assert waits.poll() is None
                time.sleep(0.05)
            database.execute("SET lock_timeout = '3s'")
            database.execute("CREATE INDEX CONCURRENTLY of_a_migration ON django_migrations (app)")
            database.execute("DROP INDEX of_a_migration")
            database.execute("SELECT pg_advisory_unlock(%s)", [migrate.LOCK_KEY])
            assert waits.wait(60) == 0

    def test_an_index_waits_for_the_transactions_of_others(self, transactional_db):
        with connections["default"].copy().schema_editor(atomic=False) as editor:
            assert _shown(editor.connection, "lock_timeout") == "0"
        assert _shown(editor.connection, "lock_timeout") not in ("", "0")
        editor.connection.close()

    def test_two_that_migrate_at_once_both_succeed(self, system_env):
        env = self.make(system_env, "DROP SCHEMA public CASCADE", "CREATE SCHEMA public")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "cloud.startup"],
                cwd=ROOT,
                env={**kept, **env},
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(2)
        ]
        ended = [(each.communicate(timeout=120)[1], each.returncode) for each in both]
        assert [status for _, status in ended] == [0, 0], ended
        assert not any(re.search("Traceback", text) for text, _ in ended)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SECRET_KEY": "x" * 31}, "SECRET_KEY: a secret of fewer than 32 characters"),
        ({"INTERNAL_SECRET": "i" * 32 + ",short"}, "INTERNAL_SECRET: a secret of fewer than 32 characters"),
        ({"INTERNAL_SECRET": "s" * 32}, "STORAGE_SIGNING_SECRET: the same secret as VISIONA_INTERNAL_SECRET"),
        ({"PUBLIC_URL": "http://cloud.example"}, "PUBLIC_URL: it must be the https:// URL"),
        ({"PUBLIC_URL": "https://localhost:3721"}, "PUBLIC_URL: it must be the https:// URL"),
        ({"TUNNEL_PUBLIC_URL": ""}, "TUNNEL_PUBLIC_URL: it must be the https:// URL"),
        ({"DB_PASSWORD": "visiona"}, "DB_PASSWORD: production needs one of its own"),
    ],
)
def test_production_refuses_what_is_weak_and_says_no_secret(change, named):
    values = {**PRODUCTION, **{PREFIX + name: value for name, value in change.items()}}
    with pytest.raises(SettingError) as caught:
        read_settings(values, "api")
    assert PREFIX + named in str(caught.value)
    assert "short" not in str(caught.value).replace("shorter", "")


def test_production_names_all_that_is_missing_in_one_start():
    with pytest.raises(SettingError) as caught:
        read_settings({"VISIONA_ENV": "production"}, "api")
    for name in (
        "SECRET_KEY", "INTERNAL_SECRET", "STORAGE_SIGNING_SECRET", "DB_HOST", "REDIS_URL", "PUBLIC_URL",
        "TUNNEL_PUBLIC_URL",
    ):  # fmt: skip
        assert f"{PREFIX}{name}: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bucket", ["", "models"])
def test_production_warns_of_a_storage_that_one_host_alone_can_serve(monkeypatch, capsys, bucket):
    for name, value in {**PRODUCTION, "VISIONA_S3_BUCKET": bucket}.items():
        monkeypatch.setenv(name, value)
    environment.load()
    assert ("VISIONA_STORAGE_DIR: only one API host" in capsys.readouterr().err) == (not bucket)


def test_half_a_key_for_s3(monkeypatch):
    monkeypatch.setenv("VISIONA_S3_ACCESS_KEY_ID", "key")
    with pytest.raises(SettingError, match="VISIONA_S3_SECRET_ACCESS_KEY"):
        environment.load()
