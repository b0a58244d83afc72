"""The demo user's calls to the public API: log in, and see whether the box is connected."""

import http.client
import json
from typing import Any, Final

from cloud.supervisor.probes import PROBE_SECONDS


class DemoError(Exception):
    """A call was refused or not answered; the text says which and why."""


SECONDS: Final = 5 * PROBE_SECONDS


def call(
    port: int, method: str, path: str, token: str = "", body: dict[str, Any] | None = None, *, seconds: float = SECONDS
) -> dict[str, Any]:
    """The ``data`` of one call to the API on this machine. Raises DemoError."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)
    try:
        link.request(method, path, body=json.dumps(body) if body is not None else None, headers=headers)
        answer = json.loads(link.getresponse().read())
        if answer["success"]:
            return dict(answer["data"])
        reason = f"{answer['error']['code']}: {answer['error']['message']}"
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
    except (ValueError, KeyError, TypeError):
        reason = "the answer is no envelope"
    finally:
        link.close()
    raise DemoError(f"{method} {path}: {reason}")


def log_in(port: int, email: str, password: str, *, seconds: float = SECONDS) -> str:
    """An access token of the demo user. Raises DemoError (somebody changed the password, say)."""
    body = {"email": email, "password": password}
    return str(call(port, "POST", "/api/auth/login", body=body, seconds=seconds)["access_token"])


def box_connected(port: int, token: str) -> bool:
    """Whether a box of the demo user is connected now."""
    try:
        return bool(call(port, "GET", "/api/pairing/status", token)["connected"])
    except DemoError:
        return False
