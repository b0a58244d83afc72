"""The paths or commands of the interop agents, each built once. Reusable from other folders by importing it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.interop import builds
from tests.interop.go_build import build

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def go_agent() -> Path:
    """The Go agent (hashicorp/yamux over gorilla/websocket); its flags stand in `goagent/main.go`."""
    return build(HERE / "goagent")


@pytest.fixture(scope="session")
def rust_agent() -> list[str]:
    """The command of the Rust agent (the crates yamux and tungstenite); a URL and a token come behind it."""
    return builds.cargo_build(HERE / "rustagent")


@pytest.fixture(scope="session")
def node_agent() -> list[str]:
    """The command of the Node agent (the packages yamux-js and ws); a URL and a token come behind it."""
    return builds.npm_install(HERE / "nodeagent")
