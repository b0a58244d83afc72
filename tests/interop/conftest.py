"""`go_agent`: the path of the interop agent, built once. Reusable from other folders by importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop.go_build import build


@pytest.fixture(scope="session")
def go_agent() -> Path:
    """The Go agent (hashicorp/yamux over gorilla/websocket); its flags stand in `goagent/main.go`."""
    return build(Path(__file__).parent / "goagent")
