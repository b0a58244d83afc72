"""Fixtures of the proxy's tests."""

from collections.abc import Iterator

import pytest

from tests.apps.proxy.kit import Box, StandInDaemon


@pytest.fixture
def box() -> Iterator[Box]:
    """The local server at the end of the tunnel."""
    server = Box()
    yield server
    server.close()


@pytest.fixture
def daemon(box: Box) -> Iterator[StandInDaemon]:
    """What the forwarder takes for the tunnel daemon; it knows the session `session-1`."""
    server = StandInDaemon(box.port)
    server.sessions.add("session-1")
    yield server
    server.close()
