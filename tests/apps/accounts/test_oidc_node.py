"""Against node's oidc-provider, a certified one: userinfo instead of claims in the ID token, its own pages, JWTs."""

import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urljoin

import httpx2
import pytest
from django.conf import settings

from apps.accounts.models import User, UserIdentity
from apps.accounts.oidc import provider as ours
from tests.apps.accounts.provider_kit import CALLBACK, PAGE, query, quiet_port
from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.apps.conftest import Api
from tests.interop.builds import npm_install

FOLDER = Path(__file__).resolve().parents[2] / "interop" / "oidc_provider"
LOGIN, BACK, TOKEN = "/api/auth/oidc/login", "/api/auth/oidc/callback", "/api/auth/oidc/token"
pytestmark = [pytest.mark.django_db, pytest.mark.interop]


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The provider's URL; it runs for this file."""
    command, port = npm_install(FOLDER, "server.js"), quiet_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VISIONA_", "NODE_"))}
    log = tmp_path_factory.mktemp("node") / "log"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, str(port), CALLBACK], env=env, stdout=out, stderr=out)
    deadline = time.monotonic() + 60
    while True:
        try:
            httpx2.get(f"http://127.0.0.1:{port}/.well-known/openid-configuration", timeout=5).raise_for_status()
        except httpx2.HTTPError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            break
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait(10)


@pytest.fixture(autouse=True)
def _it_is_ours(issuer: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    values = {
        "OIDC_ISSUER": issuer,
        "OIDC_CLIENT_ID": CLIENT_ID,
        "OIDC_CLIENT_SECRET": CLIENT_SECRET,
        "OIDC_REDIRECT_URIS": (PAGE,),
        "OIDC_TIMEOUT_SECONDS": 20.0,
    }
    for name, value in values.items():
        monkeypatch.setitem(settings.VISIONA, name, value)
    ours._provider.cache_clear()
    yield
    ours._provider.cache_clear()


def begin(api: Api) -> str:
    answer = api.client.get(LOGIN, {"redirect_uri": PAGE})
    assert answer.status_code == 302, answer.content
    return answer["Location"]


def through(url: str, who: str) -> str:
    """Where a browser ends that fills in each form of the provider's pages: our callback, path and query."""
    with httpx2.Client(timeout=20) as browser:
        answer = browser.get(url)
        while True:
            if answer.status_code in (302, 303):
                url = urljoin(str(answer.url), answer.headers["Location"])
                if url.startswith(CALLBACK):
                    return url.removeprefix("http://localhost:3721")
                answer = browser.get(url)
                continue
            assert answer.status_code == 200, answer.text
            form = dict(re.findall(r'name="(\w+)" value="([^"]*)"', answer.text))
            target = re.search(r'action="([^"]+)"', answer.text)
            assert target, answer.text
            answer = browser.post(urljoin(str(answer.url), target[1]), data={**form, "login": who, "password": "x"})


def enter(who: str):
    api = Api()
    back = api.client.get(through(begin(api), who))
    assert back.status_code == 302, back.content
    return api("POST", TOKEN, {"code": query(back["Location"])["code"]})


def test_the_whole_way_with_claims_from_userinfo(issuer):
    first = enter("pat")
    assert first.status == 200
    assert (
        first.data["user"] | {"email": "pat@example.com", "email_verified": True, "name": "Pat"} == first.data["user"]
    )
    assert enter("pat").data["user"]["id"] == first.data["user"]["id"]
    assert UserIdentity.objects.get().issuer == issuer


def test_who_is_not_verified_there(issuer):
    assert enter("una").data["user"]["email_verified"] is False


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
    back = api.client.get(through(begin(api), "pat"))
    assert back["Location"] == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_client"


def test_a_machines_token_registers_nobody(issuer):
    form = {"grant_type": "client_credentials"}
    auth = (CLIENT_ID, quote(CLIENT_SECRET, safe=""))
    answer = httpx2.post(f"{issuer}/token", data=form, auth=auth, timeout=20)
    assert answer.status_code == 200, answer.text
    refused = Api(answer.json()["access_token"])("GET", "/api/auth/me")
    assert (refused.status, refused.code) == (401, "UNAUTHENTICATED")
    assert not User.objects.exists()
