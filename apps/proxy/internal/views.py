"""Django's side of the seam with the daemons (tunnel.md): `/internal/*`, for whom knows the internal secret.

Plain Django views: thousands of agents may come back at once, and a call here carries hundreds of them. The shipped
proxy configuration refuses `/internal/` from outside; the secret is what keeps it shut.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import IO, Any, Final

import orjson
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.views.decorators.csrf import csrf_exempt

from apps.common.errors import DomainError
from apps.common.http.error_mapping import domain_error
from apps.common.http.responses import JSON_TYPE, error_response
from apps.devices import admission_throttle, presence
from apps.proxy import access
from apps.proxy.internal.messages import read_authorize, read_credentials, read_events, read_heartbeat
from tunnel.contract import CONTRACT_VERSION, H_CONTRACT, Forbidden, verify_secret

MAX_BODY_BYTES: Final = 16 << 20
"""A full list of 20 000 sessions has about 8 MB."""
ACCEPTED: Final = frozenset({str(CONTRACT_VERSION), str(CONTRACT_VERSION - 1)})


def internal(view: Callable[[Any], Any]) -> Callable[[HttpRequest], HttpResponse]:
    """A view of a parsed body that answers `data`. Checked in this order: secret, method, contract, body."""

    @csrf_exempt
    @wraps(view)
    def run(request: HttpRequest) -> HttpResponse:
        try:
            _authorise(request)
            if request.method != "POST":
                return error_response(request, DomainError("METHOD_NOT_ALLOWED"), {"Allow": "POST"})
            data = view(_body(request))
        except Exception as exc:  # noqa: BLE001 - the one place where it becomes an envelope; unknown ones are logged
            return error_response(request, domain_error(exc))
        return HttpResponse(orjson.dumps({"success": True, "data": data}), content_type=JSON_TYPE)

    return run


def _authorise(request: HttpRequest) -> None:
    scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
    known = verify_secret(secret.strip(), settings.VISIONA["INTERNAL_SECRET"])
    if scheme.lower() != "bearer" or not known:
        raise DomainError("UNAUTHENTICATED", "This route takes the internal secret.")


def _body(request: HttpRequest) -> Any:
    version = request.headers.get(H_CONTRACT, str(CONTRACT_VERSION))
    if version not in ACCEPTED:
        raise DomainError("BAD_REQUEST", f"{H_CONTRACT} must be one of {', '.join(sorted(ACCEPTED))}.")
    raw = _stream(request).read(MAX_BODY_BYTES + 1)
    if len(raw) > MAX_BODY_BYTES:
        raise DomainError("PAYLOAD_TOO_LARGE")
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise DomainError("BAD_REQUEST", "The body is not JSON.") from None


def _stream(request: HttpRequest) -> IO[bytes]:
    """The body's stream; of a chunked one the server's own, since Django bounds by Content-Length."""
    meta = request.META
    if "CONTENT_LENGTH" not in meta and meta.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked":
        chunked: IO[bytes] = meta["wsgi.input"]
        return chunked
    return request  # type: ignore[return-value]  # a request reads like a binary file


@internal
def authenticate(body: Any) -> Any:
    """`{node, credentials}` → `{results}`, in their order."""
    node, credentials = read_credentials(body)
    return {"results": admission_throttle.authenticate(credentials, node=node, now=timezone.now())}


@internal
def heartbeat(body: Any) -> Any:
    """A node's heartbeat → what it must close, and whether its full list is wanted."""
    return presence.heartbeat(read_heartbeat(body), now=timezone.now())


@internal
def events(body: Any) -> Any:
    """`{node, events}` → `{applied}`: how many were not of an older epoch."""
    _node, told = read_events(body)
    return {"applied": presence.apply_events(told, now=timezone.now())}


@internal
def authorize(body: Any) -> Any:
    """One caller of the fast lane → `Authorized` or `Forbidden`. A look-up that failed is 503, and refuses nobody."""
    ask = read_authorize(body)
    try:
        return access.authorize(ask, now=timezone.now())
    except DomainError as error:
        return _forbidden(error)


def _forbidden(error: DomainError) -> Forbidden:
    told = Forbidden(allowed=False, status=error.status, code=error.code, message=error.message)
    if error.details is not None:
        told["details"] = error.details
    if error.retry_after is not None:
        told["retry_after"] = error.retry_after
    if error.headers:
        told["headers"] = error.headers
    return told
