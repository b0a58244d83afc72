"""Middleware of every request: its id, the client's true address, a log line, trailing slashes, security headers."""

import ipaddress
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed
from django.http.response import HttpResponseBase
from django.urls import Resolver404, resolve

from apps.common.errors import DomainError
from apps.common.http.responses import error_response
from apps.common.observability import metrics
from apps.common.observability.log_line import HotLog
from tunnel.contract import H_REQUEST_ID, SECURITY_FIELDS, request_id_from

GetResponse = Callable[[HttpRequest], HttpResponseBase]
log = HotLog("visiona.request")

API_POLICY: Final = dict(SECURITY_FIELDS)["Content-Security-Policy"]
PAGE_POLICY: Final = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
# Alpine.js, which the admin's look is built on, evaluates the expressions in its attributes.
ADMIN_POLICY: Final = PAGE_POLICY + "; script-src 'self' 'unsafe-inline' 'unsafe-eval'"


class RequestContextMiddleware:
    """Outermost: gives `request.request_id` and `request.client_address`, echoes the id, writes the log line."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.perf_counter()
        request_id = request_id_from(request.META.get("HTTP_X_REQUEST_ID"))
        request.META["HTTP_X_REQUEST_ID"] = request_id
        request.request_id = request_id  # type: ignore[attr-defined]  # read by Actor.of and the envelope
        believe_proxy(request)
        # Cleared here and not at the end: a streaming body is still read, and logged, after this returns.
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        response = self.get_response(request)
        response[H_REQUEST_ID] = request_id
        if request.method == "HEAD" and isinstance(response, HttpResponse):
            response.headers.setdefault("Content-Length", str(len(response.content)))
            response.content = b""
        seconds = time.perf_counter() - started
        match = request.resolver_match
        if not getattr(response, "goes_on", False):  # what outlives its thread is counted when it ends
            metrics.observe(request.method or "", match.route if match else "unmatched", response.status_code, seconds)
        if getattr(request, "carried", None) is not response:  # a box's answer is logged when it ends, by the proxy
            log.info(
                "request",
                method=request.method,
                path=request.path,  # never the query: it may hold a ticket
                status=response.status_code,
                ms=round(seconds * 1000, 1),
                address=request.client_address,  # type: ignore[attr-defined]  # set by believe_proxy
            )
        return response


class TrailingSlashMiddleware:
    """A route with a trailing slash is served like the one without, and without a redirect.

    A path that has a route of its own as it stands (the admin's, a proxied path of a box) is left alone.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        path = request.path_info
        if len(path) > 2 and path.endswith("/") and not _routed(path) and _routed(path[:-1]):
            request.path_info = path[:-1]
        return self.get_response(request)


class PlainRefusalMiddleware:
    """Puts the empty 405 of Django's own decorators into the envelope, on pages outside the admin."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if isinstance(response, HttpResponseNotAllowed) and not request.path.startswith("/admin/"):
            return error_response(request, DomainError("METHOD_NOT_ALLOWED"), {"Allow": response["Allow"]})
        return response


def _routed(path: str) -> bool:
    try:
        resolve(path)
    except Resolver404:
        return False
    return True


class SecurityHeadersMiddleware:
    """Adds a Content-Security-Policy, and `Cache-Control: no-store` to the API's own answers.

    An answer with a policy of its own, as each proxied one has (`sandbox`), is left as it is.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        if "Content-Security-Policy" in response:
            return response
        html = response.get("Content-Type", "").startswith("text/html")
        admin = request.path.startswith("/admin/")
        response["Content-Security-Policy"] = (ADMIN_POLICY if admin else PAGE_POLICY) if html else API_POLICY
        if "Cache-Control" not in response and request.path.startswith("/api/"):
            response["Cache-Control"] = "no-store"
        return response


@lru_cache(maxsize=8)
def _networks(trusted: tuple[str, ...]) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(each, strict=False) for each in trusted)


def is_trusted_proxy(address: str) -> bool:
    """Whether `VISIONA_TRUSTED_PROXIES` names the address."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    return any(parsed in network for network in _networks(settings.VISIONA["TRUSTED_PROXIES"]))


def believe_proxy(request: HttpRequest) -> None:
    """Sets `request.client_address`; behind a trusted proxy also the scheme and host that the client used.

    The client is the rightmost address of `X-Forwarded-For` that is no trusted proxy itself: what stands left of it
    was written by the client.
    """
    meta = request.META
    peer = meta.get("REMOTE_ADDR", "")
    request.client_address = peer  # type: ignore[attr-defined]  # our own attribute
    if not settings.VISIONA["TRUSTED_PROXIES"] or not is_trusted_proxy(peer):
        return
    hops = [hop.strip() for hop in meta.get("HTTP_X_FORWARDED_FOR", "").split(",") if hop.strip()]
    for hop in reversed(hops):
        try:
            ipaddress.ip_address(hop)
        except ValueError:
            break
        request.client_address = hop  # type: ignore[attr-defined]  # our own attribute
        if not is_trusted_proxy(hop):
            break
    if host := meta.get("HTTP_X_FORWARDED_HOST", "").split(",")[-1].strip():
        meta["HTTP_HOST"] = host
    if meta.get("HTTP_X_FORWARDED_PROTO", "").split(",")[-1].strip() in ("http", "https"):
        meta["wsgi.url_scheme"] = meta["HTTP_X_FORWARDED_PROTO"].split(",")[-1].strip()
