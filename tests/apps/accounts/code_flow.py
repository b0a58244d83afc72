"""The code flow as a test goes it: our settings name a provider, a browser goes there, fills in forms, comes back."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urljoin

import httpx2
import pytest
from django.conf import settings

from apps.accounts.oidc import provider as ours
from tests.apps.accounts.provider_kit import CALLBACK, PAGE, query
from tests.apps.conftest import Answer, Api

LOGIN, TOKEN = "/api/auth/oidc/login", "/api/auth/oidc/token"
STEPS = 12
"""A provider's pages and redirects until it is done with somebody; a form that is refused comes again."""


@contextmanager
def named(
    patch: pytest.MonkeyPatch, issuer: str, client_id: str, client_secret: str, pages: tuple[str, ...] = (PAGE,)
) -> Iterator[None]:
    """Our settings name the provider, and we know nothing of it yet.

    `patch` is the test's own: what the test changes besides is then undone before, and in the right order.
    """
    values = {
        "OIDC_ISSUER": issuer,
        "OIDC_CLIENT_ID": client_id,
        "OIDC_CLIENT_SECRET": client_secret,
        "OIDC_REDIRECT_URIS": pages,
        "OIDC_TIMEOUT_SECONDS": 20.0,  # on a busy machine
    }
    for name, value in values.items():
        patch.setitem(settings.VISIONA, name, value)
    ours._provider.cache_clear()
    yield
    ours._provider.cache_clear()


def begin(api: Api) -> str:
    """Where a login that begins now is sent."""
    answer = api.client.get(LOGIN, {"redirect_uri": PAGE})
    assert answer.status_code == 302, answer.content
    return answer["Location"]


def come_back(api: Api, path: str) -> str:
    """Where our callback sends the browser on to."""
    answer = api.client.get(path)
    assert answer.status_code == 302, answer.content
    return answer["Location"]


def through(url: str, **fields: str) -> str:
    """Where a browser ends that fills each form of the provider's with `fields`: our callback, path and query."""
    with httpx2.Client(timeout=20) as browser:
        answer = browser.get(url)
        for _ in range(STEPS):
            if answer.status_code in (302, 303):
                url = urljoin(str(answer.url), answer.headers["Location"])
                if url.startswith(CALLBACK):
                    return url.removeprefix("http://localhost:3721")
                answer = browser.get(url)
                continue
            assert answer.status_code == 200, answer.text
            form = re.findall(r'name="(\w+)" value="([^"]*)"', answer.text)
            target = re.search(r'action="([^"]+)"', answer.text)
            assert target, answer.text
            to = urljoin(str(answer.url), html.unescape(target[1]))
            answer = browser.post(to, data={**{name: html.unescape(value) for name, value in form}, **fields})
        pytest.fail(f"the provider goes on asking:\n{answer.text}")


def enter(**fields: str) -> Answer:
    """The whole way in a browser of its own; the answer to the front end's code."""
    api = Api()
    ended = come_back(api, through(begin(api), **fields))
    assert "code" in query(ended), ended
    return api("POST", TOKEN, {"code": query(ended)["code"]})
