"""`provider`: a real OpenID provider, one for all tests of a process; `scripted`: one that does what the test says."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.apps.accounts.code_flow import named
from tests.apps.accounts.provider_kit import PAGE, OpenIdProvider
from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.apps.accounts.scripted_provider import CLIENT_ID as SCRIPTED_ID
from tests.apps.accounts.scripted_provider import ScriptedProvider


@pytest.fixture(scope="session")
def running_provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIdProvider]:
    found = OpenIdProvider(Path(tmp_path_factory.mktemp("provider")))
    found.start()
    yield found
    found.stop()


@pytest.fixture
def provider(running_provider: OpenIdProvider, monkeypatch: pytest.MonkeyPatch) -> Iterator[OpenIdProvider]:
    """It runs, our settings name it, and we know nothing of it yet."""
    running_provider.start()  # if the test before stopped it
    with named(monkeypatch, running_provider.issuer, CLIENT_ID, CLIENT_SECRET, (PAGE, "app.example:/done")):
        yield running_provider


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedProvider]:
    """It runs, our settings name it, and we know nothing of it yet."""
    found = ScriptedProvider()
    with named(monkeypatch, found.issuer, SCRIPTED_ID, ""):
        yield found
    found.close()
