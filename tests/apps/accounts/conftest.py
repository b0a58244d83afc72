"""`provider`: a real OpenID provider, one for all tests of a process; `scripted`: one that does what the test says."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.conf import settings

from apps.accounts.oidc import provider as ours
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
    values = {
        "OIDC_ISSUER": running_provider.issuer,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_REDIRECT_URIS": (PAGE, "app.example:/done"),
        "OIDC_TIMEOUT_SECONDS": 20.0,  # on a busy machine
    }
    for name, value in values.items():
        monkeypatch.setitem(settings.VISIONA, name, value)
    ours._provider.cache_clear()
    yield running_provider
    ours._provider.cache_clear()


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedProvider]:
    """It runs, our settings name it, and we know nothing of it yet."""
    found = ScriptedProvider()
    values = {
        "OIDC_ISSUER": found.issuer,
        "OIDC_CLIENT_ID": SCRIPTED_ID,
        "OIDC_CLIENT_SECRET": "",
        "OIDC_REDIRECT_URIS": (PAGE,),
        "OIDC_TIMEOUT_SECONDS": 20.0,
    }
    for name, value in values.items():
        monkeypatch.setitem(settings.VISIONA, name, value)
    ours._provider.cache_clear()
    yield found
    ours._provider.cache_clear()
    found.close()
