import pytest

from tests.apps.internal.kit import Daemon


@pytest.fixture
def daemon(db: None) -> Daemon:
    """A node that has said that it lives."""
    node = Daemon()
    node.beat()
    return node
