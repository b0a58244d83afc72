"""The OpenID provider of the tests (`provider_site.py`), started, stopped and given new keys, and a browser for it;
and node's oidc-provider.
"""

import base64
import hashlib
import html
import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.apps.accounts.provider_site import CLIENT_ID, CLIENT_SECRET
from tests.interop.builds import npm_install
from tests.ports import free_port

CALLBACK = "http://localhost:3721/api/auth/oidc/callback"
PAGE = "http://spa.example/done"
"""The front end's page, which is on our list; the provider knows it too, for a front end that is its own client."""
PASSWORD = "the provider's own password"
SITE = Path(__file__).with_name("provider_site.py")
NODE = Path(__file__).resolve().parents[2] / "interop" / "oidc_provider"


@contextmanager
def node_provider(callback: str, log: Path) -> Iterator[str]:
    """node's oidc-provider runs within the block, and sends people back to `callback`; its URL."""
    command, port = npm_install(NODE, "server.js"), free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VISIONA_", "NODE_"))}
    with log.open("wb") as out:
        process = subprocess.Popen([*command, str(port), callback], env=env, stdout=out, stderr=out)
    try:
        _wait_for(f"http://127.0.0.1:{port}", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait(10)


def _wait_for(issuer: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            httpx2.get(issuer + "/.well-known/openid-configuration", timeout=5).raise_for_status()
        except httpx2.HTTPError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        else:
            return


class OpenIdProvider:
    """One running provider, with two people: `pat`, whose e-mail it verified, and `una`, whose it did not."""

    pat = "pat@example.com"
    una = "una@example.com"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.issuer = f"http://127.0.0.1:{self.port}/o"
        people = [
            {"email": self.pat, "password": PASSWORD, "name": "Pat", "verified": True},
            {"email": self.una, "password": PASSWORD, "name": "Una", "verified": False},
        ]
        (folder / "users.json").write_text(json.dumps(people))
        (folder / "keys").mkdir()
        self.new_key()
        self._process: subprocess.Popen[bytes] | None = None

    def new_key(self) -> None:
        """From the next start on it signs with this one, and still publishes the older ones."""
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        number = len(list((self.folder / "keys").iterdir()))
        (self.folder / "keys" / f"{number}.pem").write_bytes(pem)

    def start(self) -> None:
        if self._process is not None:
            return
        command = [sys.executable, str(SITE), str(self.folder), str(self.port), CALLBACK, PAGE]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("VISIONA_", "DJANGO_"))}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=self.folder)
        _wait_for(self.issuer, self._process, self.folder / "log")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def log_in(self, url: str, email: str) -> str:
        """Where a browser that opens `url` ends once the person has filled in the provider's form: the first URL that
        is not the provider's.
        """
        with httpx2.Client(timeout=20) as browser:
            while url.startswith(f"http://127.0.0.1:{self.port}/"):
                answer = browser.get(url)
                if answer.status_code == 200:
                    fields = dict(re.findall(r'name="(csrfmiddlewaretoken|next)" value="([^"]*)"', answer.text))
                    form = {name: html.unescape(value) for name, value in fields.items()}
                    answer = browser.post(url, data={**form, "username": email, "password": PASSWORD})
                assert answer.status_code == 302, answer.text
                url = str(httpx2.URL(url).join(answer.headers["Location"]))
        return url

    def token_of(self, email: str) -> str:
        """A JWT of the person's, as a front end gets it that is the provider's client by itself."""
        verifier = secrets.token_urlsafe(48)
        asked = {
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": PAGE,
            "scope": "openid email profile",
            "code_challenge": challenge(verifier),
            "code_challenge_method": "S256",
            "state": "s",
        }
        ended = self.log_in(f"{self.issuer}/authorize/?{urlencode(asked)}", email)
        form = {
            "grant_type": "authorization_code",
            "code": query(ended)["code"],
            "redirect_uri": PAGE,
            "code_verifier": verifier,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
        }
        answer = httpx2.post(self.issuer + "/token/", data=form, timeout=20)
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["id_token"]
        return token


def challenge(verifier: str) -> str:
    """RFC 7636 §4.2, S256."""
    return base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def query(url: str) -> dict[str, str]:
    """The parameters of a URL's query, or of its fragment if it has one."""
    parts = urlsplit(url)
    return {name: values[0] for name, values in parse_qs(parts.fragment or parts.query).items()}
