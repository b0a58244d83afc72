"""Fixtures of the proxy's system tests, as a plugin: `pytest_plugins = ["tests.apps.proxy.fixtures"]`."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from apps.common import redis
from tests.apps.proxy.kit import Box, StandInDaemon
from tests.apps.proxy.stack import Lane, Stack, add_device, add_user, api_settings, log_in, put_online, start_api
from tests.conftest import _admin


@pytest.fixture(scope="module")
def stack(request: pytest.FixtureRequest, migrated_template: str, free_port: Callable[[], int]) -> Iterator[Stack]:
    """One API for a module's tests, with a database of its own."""
    database = f"proxy_{uuid.uuid4().hex[:12]}"
    with closing(_admin()) as admin:
        admin.execute(f'CREATE DATABASE "{database}" TEMPLATE "{migrated_template}"')
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        process = start_api(database, port, Path(folder) / "api.log", **api_settings(request))
        yield Stack(port, database, process)
        process.stop()
        if os.environ.get("SHOW_API_LOG"):
            print(process.text())
    with closing(_admin()) as admin:
        admin.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')


@pytest.fixture
def box() -> Iterator[Box]:
    """The local server at the end of the tunnel."""
    server = Box()
    yield server
    server.close()


@pytest.fixture
def daemon(box: Box) -> Iterator[StandInDaemon]:
    """What the API takes for the tunnel daemon."""
    server = StandInDaemon(box.port)
    yield server
    server.close()


@pytest.fixture
def lane(stack: Stack, box: Box, daemon: StandInDaemon) -> Iterator[Lane]:
    """The DRF lane, by the generic proxy, as a fresh user with one device online."""
    user = add_user(stack)
    device = add_device(stack, user)
    put_online(device, user, daemon)
    yield Lane(stack.port, f"/api/devices/{device}/proxy", log_in(user), box, daemon, stack.process.pid, device, user)
    redis.client().flushdb()
