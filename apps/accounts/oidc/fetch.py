"""One bounded HTTP exchange with the provider: no redirect, no long answer, one deadline, head included."""

import base64
import json
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

from apps.common.outbound import Policy, Refused, Reply, Unanswered, exchange

MAX_BYTES: Final = 1 << 20
"""Discovery documents, key sets and token answers have a few kilobytes."""
_ANYWHERE: Final = Policy(private=True, plain=True)
"""The operator names the provider, and it may stand beside us; which URLs it names itself `provider` judges."""
_REASON: Final = re.compile(r"[a-z][a-z0-9_.-]{0,63}\Z")


class ProviderError(Exception):
    """The provider did not answer, or not as it should. The text is for our log."""


class ProviderRefusal(ProviderError):
    """The provider answered that something is wrong (RFC 6749 §4.1.2.1, §5.2).

    `reason` is its code as `invalid_client`, empty where it names none that is one; the text, for our log, tells more.
    """

    def __init__(self, where: str, told: Mapping[str, Any]) -> None:
        words = {name: str(told[name])[:300] for name in ("error", "error_description", "error_uri") if told.get(name)}
        super().__init__(f"refused at {where}: {words!a}")
        reason = words.get("error", "")
        self.reason = reason if _REASON.match(reason) else ""


def fetch_json(
    method: str,
    url: str,
    *,
    seconds: float,
    form: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    auth: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that `url` answers with status 200. Raises ProviderError, as ProviderRefusal where it says why.

    Args:
        seconds: for the whole exchange, however slowly the answer drips.
        form: the body, `application/x-www-form-urlencoded`.
        auth: user and password of HTTP's Basic scheme, percent-encoded already where the protocol asks for it.
    """
    fields = {"Accept": "application/json", "User-Agent": "VisionA", **(headers or {})}
    if form is not None:
        fields["Content-Type"] = "application/x-www-form-urlencoded"
    if auth is not None:
        fields["Authorization"] = "Basic " + base64.b64encode(":".join(auth).encode()).decode()
    try:
        reply = exchange(
            method,
            url,
            urlencode(form).encode() if form is not None else None,
            headers=fields,
            policy=_ANYWHERE,
            connect_seconds=seconds,
            total_seconds=seconds,
            max_body=MAX_BYTES,
        )
    except (Unanswered, Refused) as error:
        why = "no whole answer in time" if str(error) == "timed out" else str(error)
        raise ProviderError(f"{why} at {url}") from error
    return _object(reply, url)


def _object(reply: Reply, url: str) -> dict[str, Any]:
    try:
        found = json.loads(reply.body)
    except (ValueError, RecursionError):
        found = None
    if reply.status != 200:
        if 400 <= reply.status < 500 and isinstance(found, dict) and "error" in found:
            raise ProviderRefusal(url, found)
        raise ProviderError(f"status {reply.status} at {url}")
    if not isinstance(found, dict):
        raise ProviderError(f"no JSON object at {url}")
    return found
