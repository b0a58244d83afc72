"""Fixtures of the proxy's tests."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.apps.proxy.kit import Box
from tests.apps.proxy.stand_in import StandInDaemon


@pytest.fixture
def box() -> Iterator[Box]:
    """The local server at the end of the tunnel."""
    with closing(Box()) as server:
        yield server


@pytest.fixture
def daemon(box: Box) -> Iterator[StandInDaemon]:
    """What the forwarder takes for the tunnel daemon; it knows the session `session-1`."""
    with closing(StandInDaemon(box.port)) as server:
        server.sessions.add("session-1")
        yield server
