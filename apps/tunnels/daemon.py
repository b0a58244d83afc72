"""The daemon's internal API as seen from the control plane (tunnel.md, "Internal API"): every call bounded in time.

The forward API has its own client (`apps.tunnels.forwarder`), since it upgrades to raw bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Final, cast
from urllib.parse import quote, urlencode

import orjson
import urllib3
from django.conf import settings
from django.utils.translation import gettext as _

from apps.common.errors import DomainError
from tunnel.contract import CONTRACT_VERSION, H_CONTRACT, H_REQUEST_ID, Invalidate, SessionFact, request_id_from

CONNECT_SECONDS: Final = 0.5
READ_SECONDS: Final = 1.0
MAX_ANSWER_BYTES: Final = 4 << 20


class DaemonUnavailable(DomainError):
    """The daemon could not be reached in time, or answered with an error of its own."""

    def __init__(self, message: str) -> None:
        super().__init__("TUNNEL_UNAVAILABLE", message)


@cache
def _pool() -> urllib3.PoolManager:
    return urllib3.PoolManager(num_pools=64, maxsize=8, retries=False)


def _call(
    method: str,
    node_url: str,
    path: str,
    request_id: str,
    body: bytes | None = None,
    *,
    read_seconds: float = READ_SECONDS,
) -> tuple[int, bytes]:
    headers = {
        "Authorization": f"Bearer {settings.VISIONA['INTERNAL_SECRET'][0]}",
        H_CONTRACT: str(CONTRACT_VERSION),
        H_REQUEST_ID: request_id_from(request_id),
    }
    if body is not None:
        headers["Content-Type"] = "application/json"
    try:
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=read_seconds)
        answer = _pool().request(
            method, node_url.rstrip("/") + path, body, headers=headers, preload_content=False, timeout=timeout
        )
        try:
            told = answer.read(MAX_ANSWER_BYTES + 1, decode_content=True)
        except BaseException:
            answer.close()
            raise
        if len(told) > MAX_ANSWER_BYTES:
            answer.close()  # what is left of it would be taken for the next call's answer
        answer.release_conn()
    except urllib3.exceptions.HTTPError as error:
        raise DaemonUnavailable(_("The tunnel daemon does not answer; try again shortly.")) from error
    if answer.status >= 500 or answer.status in (401, 403) or len(told) > MAX_ANSWER_BYTES:
        raise DaemonUnavailable(_("The tunnel daemon refused the call; see its log."))
    return answer.status, told


def _data(body: bytes) -> Any:
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise DaemonUnavailable(_("The tunnel daemon's answer is not JSON.")) from error
    if not isinstance(answer, Mapping) or "data" not in answer:
        raise DaemonUnavailable(_("The tunnel daemon's answer lacks its envelope."))
    return answer["data"]


def close_session(node_url: str, session: str, code: int, reason: str = "", *, request_id: str = "") -> bool:
    """Close a tunnel session with a WebSocket close code. False: the daemon knows no such session (any more).

    Takes 1.5 s at most. Raises DaemonUnavailable.
    """
    query = urlencode({"code": code, "reason": reason} if reason else {"code": code})
    status, _body = _call("DELETE", node_url, f"/internal/session/{quote(session, safe='')}?{query}", request_id)
    return status < 300


def session_fact(node_url: str, session: str, *, request_id: str = "") -> SessionFact | None:
    """What the daemon says of one session; None if it knows none. Raises DaemonUnavailable."""
    status, body = _call("GET", node_url, f"/internal/session/{quote(session, safe='')}", request_id)
    return cast("SessionFact", _data(body)) if status == 200 else None


def ping(node_url: str, session: str, *, seconds: float, request_id: str = "") -> bool | None:
    """Whether the session's agent gives a sign of life within `seconds` (2 at most). False also: it is not known there.

    None: a daemon of the former release, which does not ask. Raises DaemonUnavailable.
    """
    path = f"/internal/session/{quote(session, safe='')}?ping=1"
    status, body = _call("GET", node_url, path, request_id, read_seconds=seconds + READ_SECONDS)
    if status != 200:
        return False
    answers = _data(body).get("answers")
    return answers if isinstance(answers, bool) else None


def invalidate(node_url: str, what: Invalidate, *, request_id: str = "") -> bool:
    """Drop a node's cached authorisations and end the streams that they carry. False: it would not.

    Takes 1.5 s at most. Raises DaemonUnavailable.
    """
    status, _body = _call("POST", node_url, "/internal/authz/invalidate", request_id, orjson.dumps(what))
    return status < 300
