"""Against node's oidc-provider, a certified one: userinfo instead of claims in the ID token, its own pages, JWTs."""

import io
import re
from collections.abc import Iterator
from urllib.parse import quote, urljoin

import httpx2
import pytest
from django.conf import settings
from django.core.management import call_command

from apps.accounts.models import User, UserIdentity
from tests.apps.accounts.code_flow import begin, enter, named, through
from tests.apps.accounts.provider_kit import CALLBACK, PAGE, node_provider
from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.apps.conftest import Api

pytestmark = [pytest.mark.django_db, pytest.mark.interop, pytest.mark.timeout(1000)]  # with what it builds


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The provider's URL; it runs for this file."""
    with node_provider(CALLBACK, tmp_path_factory.mktemp("node") / "log") as url:
        yield url


@pytest.fixture(autouse=True)
def _it_is_ours(issuer: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with named(monkeypatch, issuer, CLIENT_ID, CLIENT_SECRET):
        yield


def test_the_whole_way_with_claims_from_userinfo(issuer):
    first = enter(login="pat", password="x")
    assert first.status == 200
    assert (
        first.data["user"] | {"email": "pat@example.com", "email_verified": True, "name": "Pat"} == first.data["user"]
    )
    assert enter(login="pat", password="x").data["user"]["id"] == first.data["user"]["id"]
    assert UserIdentity.objects.get().issuer == issuer


def test_who_is_not_verified_there(issuer):
    assert enter(login="una", password="x").data["user"]["email_verified"] is False


def test_who_gives_up_there_is_told_so(issuer):
    api = Api()
    with httpx2.Client(timeout=20) as browser:
        answer = browser.get(begin(api), follow_redirects=True)
        abort = re.search(r'href="([^"]+/abort)"', answer.text)
        assert abort, answer.text
        answer = browser.get(urljoin(str(answer.url), abort[1]))
        while not (url := urljoin(str(answer.url), answer.headers["Location"])).startswith(CALLBACK):
            answer = browser.get(url)
    back = api.client.get(url.removeprefix("http://localhost:3721"))
    assert back["Location"] == f"{PAGE}#error=FORBIDDEN"


def test_a_wrong_secret_is_told_in_the_providers_word(issuer, monkeypatch):
    monkeypatch.setitem(settings.VISIONA, "OIDC_CLIENT_SECRET", "wrong")
    api = Api()
    back = api.client.get(through(begin(api), login="pat", password="x"))
    assert back["Location"] == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_client"


def test_a_machines_token_registers_nobody(issuer):
    form = {"grant_type": "client_credentials"}
    auth = (CLIENT_ID, quote(CLIENT_SECRET, safe=""))
    answer = httpx2.post(f"{issuer}/token", data=form, auth=auth, timeout=20)
    assert answer.status_code == 200, answer.text
    refused = Api(answer.json()["access_token"])("GET", "/api/auth/me")
    assert (refused.status, refused.code) == (401, "UNAUTHENTICATED")
    assert not User.objects.exists()


def test_the_operators_look_at_it(issuer):
    out = io.StringIO()
    call_command("oidc_check", stdout=out)
    told = out.getvalue().splitlines()
    assert [line for line in told if not line.startswith("ok    ")] == []
    assert f"ok    discovery: issuer {issuer}" in told
