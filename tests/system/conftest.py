"""The whole system for tests that need one."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.system.stack import Stack, run_stack


@pytest.fixture
def system(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Stack]:
    """A whole system of one test's own, all programs running, the demo box online: it may be broken at will."""
    no_quota = {"VISIONA_QUOTA_PAIRING_TOKENS": "0"}  # a test may write as many rows as time allows
    with run_stack(tmp_path / "var", (free_port(), free_port(), free_port()), no_quota, durable=True) as stack:
        yield stack.start_all()


@pytest.fixture(scope="module")
def shared_system(tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int]) -> Iterator[Stack]:
    """A whole system for the tests of one module, which leave it as they found it."""
    with run_stack(tmp_path_factory.mktemp("system") / "var", (free_port(), free_port(), free_port())) as stack:
        yield stack.start_all()
