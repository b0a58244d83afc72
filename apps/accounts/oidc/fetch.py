"""One bounded HTTP exchange with the provider: no redirect, no long answer, no long wait."""

import json
import time
from collections.abc import Mapping
from typing import Any, Final

import httpx2

MAX_BYTES: Final = 1 << 20
"""Discovery documents, key sets and token answers have a few kilobytes."""


class ProviderError(Exception):
    """The provider did not answer, or not as it should. The text is for our log."""


def fetch_json(
    method: str,
    url: str,
    *,
    seconds: float,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that `url` answers with status 200. Raises ProviderError.

    Args:
        seconds: for the whole exchange, however slowly the answer drips.
        form: the body, `application/x-www-form-urlencoded`.
        auth: user and password of HTTP's Basic scheme, percent-encoded already where the protocol asks for it.
    """
    deadline = time.monotonic() + seconds
    try:
        with (
            httpx2.Client(timeout=seconds, follow_redirects=False) as client,
            client.stream(
                method,
                url,
                data=dict(form) if form is not None else None,
                headers={"Accept": "application/json", "Accept-Encoding": "identity", **(headers or {})},
                auth=auth,
            ) as answer,
        ):
            body = _read(answer, deadline)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ProviderError(f"{type(error).__name__} at {url}") from error
    if answer.status_code != 200:
        raise ProviderError(f"status {answer.status_code} at {url}")
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"no JSON at {url}") from error
    if not isinstance(found, dict):
        raise ProviderError(f"no JSON object at {url}")
    return found


def _read(answer: httpx2.Response, deadline: float) -> bytes:
    body = bytearray()
    for chunk in answer.iter_raw():  # as it comes in: to wait for chunks of a size would be to wait without end
        body += chunk
        if len(body) > MAX_BYTES:
            raise ProviderError("an answer of more than a mebibyte")
        if time.monotonic() > deadline:
            raise ProviderError("an answer that does not end in time")
    return bytes(body)
