"""Against dex: claims in the ID token, access tokens that are JWTs, and keys that it rotates while we go on.

A Go program of ours (`tests/interop/dex`) runs its server over its store in memory: what the stores of its own command
need would take minutes to build.
"""

import base64
import io
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx2
import pytest
from django.conf import settings
from django.core.management import call_command
from django.utils import timezone

from apps.accounts import leaving
from apps.accounts.models import User, UserIdentity
from apps.accounts.oidc import provider as ours
from apps.common.actor import Actor
from tests.apps.accounts.code_flow import begin, come_back, enter, named, through
from tests.apps.accounts.provider_kit import CALLBACK, PAGE, query
from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.apps.conftest import Api
from tests.interop.go_build import build
from tests.ports import free_port

FOLDER = Path(__file__).resolve().parents[2] / "interop" / "dex"
ME, PAT = "/api/auth/me", "pat@example.com"
pytestmark = [pytest.mark.django_db, pytest.mark.interop, pytest.mark.timeout(1000)]  # it is built once


class Dex:
    """The running provider. A person is known to it by `id`; their e-mail and name may change."""

    def __init__(self, program: Path, log: Path) -> None:
        port = free_port()
        self.issuer = f"http://127.0.0.1:{port}/dex"
        env = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
        command = [str(program), str(port), CLIENT_ID, CLIENT_SECRET, CALLBACK]
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, text=True
            )
        try:
            assert self._said() == "ready", log.read_text()
        except BaseException:
            self.stop()
            raise

    def _said(self) -> str:
        out = self._process.stdout
        assert out
        assert select.select([out], [], [], 120)[0], "dex says nothing"
        return out.readline().strip()

    def do(self, line: str) -> None:
        """Tell it what happens (`tests/interop/dex/main.go`), and wait until it has."""
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        assert self._said() == "done"

    def person(self, email: str, name: str, id: str = "1") -> None:  # noqa: A002 - its word
        self.do(json.dumps({"email": email, "name": name, "id": id}))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=30)

    def tokens(self, email: str) -> dict[str, Any]:
        """What an app of its own gets there for the person's password."""
        form = {"grant_type": "password", "username": email, "password": "password", "scope": "openid email profile"}
        answer = httpx2.post(self.issuer + "/token", data=form, auth=(CLIENT_ID, CLIENT_SECRET), timeout=20)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dex]:
    found = Dex(build(FOLDER), tmp_path_factory.mktemp("dex") / "log")
    yield found
    found.stop()


@pytest.fixture
def dex(running: Dex, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dex]:
    """Our settings name it, we know nothing of it yet, and it knows Pat."""
    running.person(PAT, "Pat")
    with named(monkeypatch, running.issuer, CLIENT_ID, CLIENT_SECRET):
        yield running


def log_in(email: str = PAT) -> dict[str, Any]:
    """The user of somebody who goes the whole way."""
    answer = enter(login=email, password="password")
    assert answer.status == 200, answer.json
    return answer.data["user"]


def there(api: Api) -> str:
    """Where Pat comes back to, having logged in at dex."""
    return through(begin(api), login=PAT, password="password")


def test_the_whole_way_and_what_changes_there(dex):
    first = log_in()
    assert first | {"email": PAT, "email_verified": True, "name": "Pat"} == first
    dex.person("patricia@example.com", "Patricia")
    second = log_in("patricia@example.com")
    assert (second["id"], second["email"], second["name"]) == (first["id"], "patricia@example.com", "Patricia")
    assert UserIdentity.objects.get().issuer == dex.issuer


def test_its_tokens_are_taken_as_ours(dex):
    """Both are JWTs: the ID token, and the access token."""
    user = log_in()
    for name in ("id_token", "access_token"):
        assert Api(dex.tokens(PAT)[name])("GET", ME).data["id"] == user["id"]
    token = dex.tokens(PAT)["id_token"]
    head, claims, signature = token.split(".")
    told = json.loads(base64.urlsafe_b64decode(claims + "=="))
    forged = base64.urlsafe_b64encode(json.dumps({**told, "sub": "another"}).encode()).decode().rstrip("=")
    assert Api(f"{head}.{forged}.{signature}")("GET", ME).status == 401
    logged_out = Api(token)
    assert logged_out("POST", "/api/auth/logout").status == 200
    assert logged_out("GET", ME).code == "TOKEN_REVOKED"
    assert User.objects.count() == 1


def test_an_ended_account_comes_back_by_a_login_alone(dex):
    """dex tells no `auth_time`: no token of it shows that somebody has logged in anew."""
    token = dex.tokens(PAT)["id_token"]
    user_id = Api(token)("GET", ME).data["id"]
    leaving.end_account(actor=Actor.system(), user_id=user_id, now=timezone.now())
    User.objects.all().delete()
    assert Api(token)("GET", ME).code == "TOKEN_REVOKED"
    assert Api(dex.tokens(PAT)["id_token"])("GET", ME).code == "TOKEN_REVOKED"
    assert not User.objects.exists()
    assert log_in()["email"] == PAT


@pytest.mark.parametrize("how", ["rotate", "replace"])
def test_keys_change_under_it(dex, how):
    user = log_in()
    before = dex.tokens(PAT)["id_token"]
    dex.do(how)
    assert log_in()["id"] == user["id"]  # at once: the token came from the provider itself
    assert Api(before)("GET", ME).status == (200 if how == "rotate" else 401)
    dex.do(how)
    deadline = time.monotonic() + 30
    token = dex.tokens(PAT)["id_token"]
    while Api(token)("GET", ME).status != 200:  # a stranger may have sent it: one fetch in two seconds
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_its_errors(dex, monkeypatch):
    api = Api()
    url = urlsplit(begin(api))
    asked = {**dict(parse_qsl(url.query)), "scope": "openid made-up"}
    ended = come_back(api, through(url._replace(query=urlencode(asked)).geturl(), login=PAT, password="password"))
    assert ended == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_scope"
    path = there(api)
    spent = urlsplit(path)
    assert "code" in query(come_back(api, path))
    again = {**dict(parse_qsl(spent.query)), "state": dict(parse_qsl(urlsplit(begin(api)).query))["state"]}
    ended = come_back(api, spent._replace(query=urlencode(again)).geturl())
    assert ended.startswith(f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_")
    monkeypatch.setitem(settings.VISIONA, "OIDC_CLIENT_SECRET", "wrong")
    ended = come_back(api, there(api))
    assert ended == f"{PAGE}#error=PROVIDER_ERROR&reason=invalid_client"


def test_the_operators_look_at_it(dex):
    out = io.StringIO()
    call_command("oidc_check", token=dex.tokens(PAT)["id_token"], stdout=out)
    told = out.getvalue().splitlines()
    assert [line for line in told if not line.startswith("ok    ")] == []
    assert f"ok    discovery: issuer {dex.issuer}" in told
    assert f"ok    token: {PAT}, verified" in told


def test_a_dex_that_is_gone(dex, running, monkeypatch):
    """What is known goes on; a new login is told."""
    log_in()
    token = dex.tokens(PAT)["id_token"]
    api = Api()
    path = there(api)
    known = ours._provider(dex.issuer, 20.0).known()
    gone = f"http://127.0.0.1:{free_port()}/token"
    monkeypatch.setitem(known.endpoints, "token_endpoint", gone)
    assert come_back(api, path) == f"{PAGE}#error=OVERLOADED"
    assert Api(token)("GET", ME).status == 200
