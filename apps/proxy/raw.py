"""A request as it came over the wire, before Django decoded and joined it: what a proxy must pass on unchanged.

The worker class (`cloud/server/worker.py`) puts it into the environ. It knows the environ's names and nothing of
devices or tunnels.
"""

from __future__ import annotations

import re
import secrets
from typing import Any, Final

from django.http import HttpRequest

from apps.common.http.middleware import is_trusted_proxy
from apps.common.http.responses import request_id_of
from apps.tunnels.client_request import RequestHead, Via

RAW_HEADERS: Final = "visiona.raw_headers"
RAW_TARGET: Final = "visiona.raw_target"
CONNECTION: Final = "visiona.connection"
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")


class WrongServer(RuntimeError):
    """The project is not served by its worker class, so that a proxied request cannot be passed on as it came."""


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("latin-1")


def raw_target(request: HttpRequest) -> bytes:
    """Path and query as sent. Raises WrongServer."""
    try:
        return _bytes(request.META[RAW_TARGET])
    except KeyError:
        raise WrongServer(f"no {RAW_TARGET}: serve with cloud/server/worker.py") from None


def target_or_nothing(request: Any) -> bytes:
    """As `raw_target`, of a Django or DRF request; empty where the server is another."""
    return _bytes(request.META.get(RAW_TARGET, b""))


def request_head(request: HttpRequest, target: bytes) -> RequestHead:
    """The head for `tunnel.http`, with `target` in the place of the raw one. Raises ProxyError, WrongServer."""
    try:
        fields = [(_bytes(name), _bytes(value)) for name, value in request.META[RAW_HEADERS]]
    except KeyError:
        raise WrongServer(f"no {RAW_HEADERS}: serve with cloud/server/worker.py") from None
    return RequestHead.unchecked(
        (request.method or "").encode("latin-1"),
        target,
        fields,
        http11=request.META.get("SERVER_PROTOCOL") != "HTTP/1.0",
    )


def connection(request: HttpRequest) -> Any:
    """The client's connection (`apps.proxy.exchanges.engine.Client`). Raises WrongServer."""
    try:
        return request.META[CONNECTION]
    except KeyError:
        raise WrongServer(f"no {CONNECTION}: serve with cloud/server/worker.py") from None


def via(request: HttpRequest, *, mount: bytes = b"", home: bytes = b"", upgrade: bool = False) -> Via:
    """What this lane adds to the request: who sent it, its id, its trace."""
    address = str(request.META.get("REMOTE_ADDR", ""))
    return Via(
        scheme="https" if request.META.get("wsgi.url_scheme") == "https" else "http",
        address=address,
        request_id=request_id_of(request),
        traceparent=child_traceparent(request.META.get("HTTP_TRACEPARENT")),
        trusted=is_trusted_proxy(address),
        mount=mount,
        home=home,
        upgrade=upgrade,
    )


def child_traceparent(inbound: str | None) -> str:
    """The `traceparent` of our own call (W3C Trace Context §3.2): the caller's trace if it sent one, else a new one."""
    match = _TRACEPARENT.match(inbound or "")
    if match and match.group(1) != "0" * 32 and match.group(2) != "0" * 16:
        trace, flags = match.group(1), match.group(3)
    else:
        trace, flags = secrets.token_hex(16), "00"
    return f"00-{trace}-{secrets.token_hex(8)}-{flags}"
