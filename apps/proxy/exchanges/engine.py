"""How one proxied request is carried: handed to the daemon that holds the box, with the grant that Django gave.

What an exchange is (heads, bodies, limits, what may be tried again) is the daemon's to know. Here is what it is told
of one, what the site adds to the answer, and what a process has one of for all of them.
"""

from __future__ import annotations

import resource
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

from apps.clusters.load import leases
from apps.common.db.connections import release_database
from apps.common.errors import DomainError
from apps.common.http.responses import request_id_of
from apps.proxy import origins, raw
from apps.proxy.exchanges.attempts import RETRY_AFTER, where
from apps.proxy.exchanges.forwarding import Forwarding
from apps.proxy.exchanges.interfaces import Others, Tap
from apps.proxy.exchanges.long_exchanges import LongExchanges
from apps.tunnels.carriage import Carriage, Copy
from apps.tunnels.client_request import (
    Limits,
    ProxyError,
    prepare,
)
from apps.tunnels.node_connections import NodeAway, connections
from apps.tunnels.route import Route
from tunnel.contract import ExchangeCall, home_of

_making = threading.Lock()


def long_exchanges() -> LongExchanges:
    """The process's loop, made at the first proxied request, after the worker forked."""
    with _making:
        return _long_exchanges()


@lru_cache(maxsize=1)
def _long_exchanges() -> LongExchanges:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return LongExchanges(max(64, min(4096, files // 4)), dead=_dead, tidy=_tidy)  # two files each


def _dead(node_urls: set[str]) -> set[str]:
    """Those that give no answer. The registry is no proof: it may have lost its data, and hears late of a hang."""
    return {url for url in node_urls if not _answers(url)}


def _answers(node_url: str) -> bool:
    try:
        connections.give(connections.connect(node_url, settings.VISIONA["INTERNAL_SECRET"][0], request_id=""))
    except NodeAway:
        return False
    return True


def _tidy() -> None:
    connections.expire()
    leases.renew()


def limits() -> Limits:
    """What an exchange goes by."""
    values = settings.VISIONA
    return Limits(
        request_body=values["PROXY_BODY_MAX_BYTES"],
        open_seconds=values["PROXY_OPEN_SECONDS"],
        head_seconds=values["PROXY_HEAD_SECONDS"],
        idle_seconds=values["PROXY_IDLE_SECONDS"],
        upgraded_idle_seconds=values["PROXY_UPGRADE_IDLE_SECONDS"],
    )


def site_fields(request: HttpRequest) -> list[tuple[str, str]]:
    """What the site adds to a box's answer, known before there is one; the rest of its rules are the daemon's."""
    fields: list[tuple[str, str]] = []
    origin: str = request.META.get("HTTP_ORIGIN", "")
    if origin and origins.listed().allow(origin):
        fields.append(("Access-Control-Allow-Origin", origin))
    if settings.SECURE_HSTS_SECONDS and request.is_secure():
        fields.append(("Strict-Transport-Security", f"max-age={settings.SECURE_HSTS_SECONDS}"))
    return fields


def _take_place(loop: LongExchanges, user_id: str, admit: Callable[[], None] | None) -> None:
    """Take a place for an exchange, since nobody knows how long it lasts; then spend the ticket. Raises DomainError."""
    if not loop.claim(user_id):
        raise DomainError("OVERLOADED", retry_after=RETRY_AFTER)
    try:
        if admit is not None:
            admit()
    except BaseException:
        loop.leave(user_id)
        raise


def forward(
    request: HttpRequest,
    route: Route,
    *,
    user_id: str,
    login: str,
    target: bytes | None = None,
    mount: bytes = b"",
    tap: Tap | None = None,
    upgrade: bool = False,
    admit: Callable[[], None] | None = None,
    others: Others | None = None,
) -> HttpResponseBase:
    """Carry the request to the device of `route` and answer with what its box says.

    Args:
        target: the target for the box; None: the request's own.
        mount: the raw prefix that the box does not see.
        tap: reads a copy of a whole answer.
        upgrade: the request must be one for an upgrade; it is passed on as such.
        admit: called as the last check before the request goes out; it spends a ticket.
        others: the devices that take the request if this one fails; the answer names the one that did.
            `others.over` is called once the answer is over; where this function raises, the caller has to do it.

    Raises DomainError.
    """
    client: Any = raw.connection(request)
    home = home_of(route.device_id, mount)
    via = raw.via(request, mount=mount, home=home, upgrade=upgrade)
    try:
        head = raw.request_head(request, raw.raw_target(request) if target is None else target)
        prepared = prepare(head, via, limits())
    except ProxyError as error:
        raise DomainError(error.code, details=error.details, retry_after=error.retry_after) from error
    if upgrade and not prepared.upgrade:
        raise DomainError("UPGRADE_REQUIRED")
    call = ExchangeCall(
        **where(route),
        user_id=user_id,
        login=login,
        body_max=settings.VISIONA["PROXY_BODY_MAX_BYTES"],
        peer=via.address,
        address=request.client_address,  # type: ignore[attr-defined]  # set by believe_proxy
        scheme="https" if via.scheme == "https" else "http",
        trusted=via.trusted,
        mount=mount.decode("latin-1"),
        home=home.decode("latin-1"),
        upgrade=upgrade,
        request_id=request_id_of(request),
        traceparent=via.traceparent or "",
        fields=site_fields(request),
        names_device=others is not None,
    )
    loop = long_exchanges()
    _take_place(loop, user_id, admit)
    release_database()
    early = client.take()
    copy = Copy() if tap is not None and loop.claim_copy(user_id) else None
    carriage = Carriage(client.sock, early, None if upgrade else prepared.body_reader(limits()), copy=copy)
    forwarding = Forwarding(
        request,
        route,
        loop=loop,
        head=head,
        idempotent=prepared.idempotent,
        call=call,
        carriage=carriage,
        copy=copy,
        client=client,
        others=others,
        tap=tap,
    )
    return forwarding.start(upgrade=upgrade)
