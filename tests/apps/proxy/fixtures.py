"""Fixtures of the proxy's system tests, as a plugin: `pytest_plugins = ["tests.apps.proxy.fixtures"]`."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.apps.proxy.kit import Box
from tests.apps.proxy.stack import (
    WAYS,
    Lane,
    Stack,
    Tunnel,
    add_device,
    add_user,
    api_settings,
    log_in,
    put_online,
    start_api,
)
from tests.apps.proxy.stand_in import StandInDaemon
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
    with closing(Box()) as server:
        yield server


@pytest.fixture
def daemon(box: Box) -> Iterator[StandInDaemon]:
    """What the API takes for the tunnel daemon."""
    with closing(StandInDaemon(box.port)) as server:
        yield server


@pytest.fixture(scope="module")
def tunnel(request: pytest.FixtureRequest, stack: Stack, free_port: Callable[[], int]) -> Iterator[Tunnel]:
    """The real daemon and agent of a module's tests, the daemon with the same settings as the API."""
    with tempfile.TemporaryDirectory() as folder:
        made = Tunnel(stack, Path(folder), (free_port(), free_port(), free_port()), api_settings(request))
        yield made
        made.stop()
        if os.environ.get("SHOW_API_LOG"):
            print(made.daemon.text())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each case runs on every lane that its module names in `LANES`; a test's own parameter `lane` is not ours."""
    own = any("lane" in mark.args[:1] for mark in metafunc.definition.iter_markers("parametrize"))
    if "lane" in metafunc.fixturenames and not own:
        metafunc.parametrize("lane", getattr(metafunc.module, "LANES", ["stand-in"]), indirect=True)


@pytest.fixture
def lane(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Lane]:
    """A way to the box: one of `WAYS`, or `stand-in` for the daemon, with a fresh user."""
    if request.param in WAYS:
        way = WAYS[request.param]
        tunnel: Tunnel = request.getfixturevalue("tunnel")
        box = Box(tunnel.box_port)
        try:
            tunnel.ensure_agent()
            box.heads.clear()
            front = way.front(tunnel)
            yield Lane(
                request.param,
                way.port(tunnel),
                way.prefix.format(device=tunnel.device_id),
                log_in(tunnel.user_id),
                box,
                front.pid,
                tunnel.device_id,
                tunnel.user_id,
                cut_tunnel=tunnel.kill_agent,
                log=lambda: front.text() + ("" if front is tunnel.daemon else tunnel.daemon.text()),
                streams=tunnel.streams,
                direct=front is tunnel.daemon,
            )
        finally:
            box.close()
        return
    box, daemon = request.getfixturevalue("box"), request.getfixturevalue("daemon")
    user = add_user(stack)
    device = add_device(stack, user)
    put_online(device, user, daemon)
    prefix = f"/api/devices/{device}/proxy"
    yield Lane(
        request.param,
        stack.port,
        prefix,
        log_in(user),
        box,
        stack.process.pid,
        device,
        user,
        cut_tunnel=daemon.kill_all,
        log=stack.process.text,
        streams=lambda: len(daemon.live),
        stand_in=daemon,
    )
