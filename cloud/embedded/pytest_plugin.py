"""Pytest plugin: the embedded servers for one run of the tests, before Django's settings are read.

Named in pyproject.toml with ``-p``, because pytest-django reads the settings before any conftest.py is loaded. Data and
ports are the run's own, below ``var/test-…``, and are removed at its end, so that a run goes on beside ``make dev`` and
beside other runs. Under pytest-xdist the controller starts the servers and the workers inherit their addresses; each
worker has a database (pytest-django) and a numbered Valkey database of its own.
"""

import os
import secrets
import shutil
import signal
from collections.abc import Generator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit, urlunsplit

import pytest
from dotenv import dotenv_values

from cloud.embedded.errors import EmbeddedError
from cloud.embedded.session import ensure

_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("VISIONA_DB_", "VISIONA_REDIS_URL")  # real servers may be named for a run
PATIENCE = {
    "VISIONA_DB_DEADLINE_SECONDS": "30",
    "VISIONA_DB_LOCK_TIMEOUT_MS": "30000",
    "VISIONA_REDIS_TIMEOUT_SECONDS": "30",
}
"""Where a test is not about a part that is away: on a busy machine an answer may take long."""
_stack = pytest.StashKey[ExitStack]()
_folder = pytest.StashKey[Path]()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> Generator[None, None, None]:
    """Start the servers and set the environment, then let pytest-django read its settings."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    stack = ExitStack()
    early_config.stash[_stack] = stack
    early_config.add_cleanup(stack.close)
    if not worker:
        _forget_settings()
        _on_terminate(stack)
        folder = early_config.stash[_folder] = _run_folder(stack)
        os.environ.update(PATIENCE)
        os.environ["VISIONA_STORAGE_DIR"] = str(folder / "storage")
        try:
            stack.enter_context(ensure(folder, os.environ, who="pytest", durable=False))
        except EmbeddedError as error:
            stack.close()
            raise pytest.UsageError(str(error)) from None
    else:
        os.environ["VISIONA_REDIS_URL"] = _numbered(os.environ["VISIONA_REDIS_URL"], int(worker.removeprefix("gw")) + 1)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Temporary folders lie in the run's own too: pytest's usual place is closed again by every other run of pytest,
    which shuts a PostgreSQL out that does not run as root.
    """
    if config.option.basetemp is None and _folder in config.stash:
        config.option.basetemp = str(config.stash[_folder] / "tmp")


def _run_folder(stack: ExitStack) -> Path:
    folder = _ROOT / "var" / f"test-{secrets.token_hex(5)}"
    folder.mkdir(parents=True)
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _forget_settings() -> None:
    """A developer's own settings change no test: neither those exported nor those in ``.env`` (empty is unset)."""
    for name in [name for name in os.environ if name.startswith("VISIONA_") and not name.startswith(_KEPT)]:
        del os.environ[name]
    for name in dotenv_values(_ROOT / ".env"):
        if name.startswith("VISIONA_"):
            os.environ.setdefault(name, "")


def _on_terminate(stack: ExitStack) -> None:
    """SIGTERM and SIGHUP end a run like Ctrl-C does: through the clean-up."""

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # whoever handles it just now: pytest, or Trio in a test

    for number in (signal.SIGTERM, signal.SIGHUP):
        before = signal.signal(number, stop)
        stack.callback(signal.signal, number, before)


def _numbered(url: str, number: int) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{number % 16}"))
