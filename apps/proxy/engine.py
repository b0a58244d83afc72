"""How one proxied request runs, and what a process has one of for that: the gate, the watchdog, the limits.

It joins a Django request (`raw`), a route and a `Forward`, and knows no URLs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final, Protocol

import redis.exceptions
import structlog
from django.conf import settings
from django.db import Error, connection
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase

from apps.clusters.load import leases
from apps.common.db.connections import release_database
from apps.common.errors import DomainError
from apps.common.http.responses import request_id_of
from apps.common.observability.log_line import HotLog
from apps.proxy import raw, selectors
from apps.proxy.answer import BoxAnswer
from apps.proxy.running import RETRY_AFTER, Gate, Running, Watchdog
from apps.tunnels import registry
from apps.tunnels.forwarder import (
    AnswerHead,
    ClientLeft,
    Ended,
    Exchange,
    Forward,
    Limits,
    ProxyError,
    Route,
    Tap,
    pool,
)
from apps.tunnels.registry import Entry
from tunnel.contract import home_of

logger = structlog.get_logger("visiona.forward")
_LINE: Final = HotLog("visiona.forward")

CLIENT_CLOSED: Final = 499
"""The status in logs for a client that left before its answer; nobody receives it (nginx's convention)."""
ADMISSION_SECONDS: Final = 0.2
"""Seconds within which an admission that has raised a device's epoch has written the registry too."""
ANY_EPOCH: Final = 1 << 62
"""The epoch of an exchange that waits for its device's next admission: no admission is a reason to end it."""
H_SERVED_BY: Final = "X-VisionA-Device-Id"
"""The response header that names the member of a cluster which answered."""
_ENDLESS: Final = (b"multipart/x-mixed-replace", b"text/event-stream")


@dataclass(frozen=True, slots=True)
class Engine:
    """What carries the exchanges of this process; there is one a process."""

    gate: Gate
    watchdog: Watchdog
    limits: Limits
    secret: str


_making = threading.Lock()


def engine() -> Engine:
    """The process's engine, made at the first proxied request, after the worker forked."""
    with _making:  # two made at once would each watch only their own exchanges
        return _engine()


@lru_cache(maxsize=1)
def _engine() -> Engine:
    values = settings.VISIONA
    gate = Gate(threads=values["API_THREADS"], long_limit=values["API_LONG_EXCHANGES"])
    limits = Limits(
        request_body=values["PROXY_BODY_MAX_BYTES"],
        open_seconds=values["PROXY_OPEN_SECONDS"],
        head_seconds=values["PROXY_HEAD_SECONDS"],
        idle_seconds=values["PROXY_IDLE_SECONDS"],
        upgraded_idle_seconds=values["PROXY_UPGRADE_IDLE_SECONDS"],
    )
    return Engine(gate, Watchdog(gate.running, check, tidy), limits, values["INTERNAL_SECRET"][0])


def check(running: list[Running]) -> None:
    """End those whose login is over, whose device is gone or was admitted anew, or whose owner was disabled.

    Only a definite word ends one: while Redis or PostgreSQL cannot be asked, all go on.
    """
    try:
        logins = {each.login for each in running if each.login}
        live = selectors.live_logins(logins) if logins else set()
        held = [(each, each.target) for each in running]
        epochs = selectors.device_epochs(device_id for _, (device_id, _epoch) in held)
        anew = {device_id for _, (device_id, epoch) in held if epochs.get(device_id, 0) > epoch}
        bases = _bases(anew, epochs) if anew else {}  # what was handed over goes on, until its daemon ends
    except (Error, redis.exceptions.RedisError) as error:
        logger.warning("exchanges_not_checked", running=len(running), error=type(error).__name__)
        return
    finally:
        connection.close()
    for each, target in held:
        epoch = epochs.get(target[0])
        if each.login and each.login not in live:
            each.end("UNAUTHENTICATED")
        elif each.target != target:
            continue  # it went elsewhere meanwhile
        elif epoch is None:
            each.end("NOT_FOUND")
        elif epoch > target[1] and not _handed_over(target[1], epoch, bases.get(target[0])):
            each.end("TUNNEL_DISCONNECTED")


def _bases(anew: set[str], epochs: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Device → (epoch, base) of devices that were admitted anew, as the registry has them.

    An admission raises the epoch in the table first and writes the registry a moment later: for devices of which only
    the first is done, the registry is asked once more.
    """
    found = registry.bases(anew)
    behind = {device for device, (epoch, _base) in found.items() if epoch < epochs[device]}
    if behind:
        time.sleep(ADMISSION_SECONDS)
        found |= registry.bases(behind)
    return found


def _handed_over(mine: int, epoch: int, known: tuple[int, int] | None) -> bool:
    """Whether streams of the epoch `mine` may go on beside the admission of `epoch`, by the registry's word `known`."""
    return known is not None and known[0] >= epoch and mine >= known[1]


def _find_route(running: Running, than: str) -> Route | None:
    """Where the device is now; with a session other than `than`, the exchange is watched as one of that admission from
    here on, and until there is one, as of none."""
    device_id, _epoch = running.target
    running.target = (device_id, ANY_EPOCH)  # before the look: an admission raises the epoch before the registry tells
    route = selectors.route_of(device_id)
    if route is not None and route.session not in ("", than):
        running.target = (device_id, route.epoch)
    return route


def tidy(now: float) -> int:
    """Close idle streams that are old, or of daemons that drain, and go on counting what runs on clusters.

    Returns how many streams are left. `now` in monotonic seconds.
    """
    try:
        pool.leave(selectors.draining_nodes())
        leases.renew()
    except redis.exceptions.RedisError as error:  # a daemon that drains waits for the streams' idle time then
        logger.warning("draining_not_asked", error=type(error).__name__)
    return pool.expire(now)


class Others(Protocol):
    """The other devices that may take a request whose device failed (`apps.clusters.dispatcher`)."""

    def next(self, code: str) -> Entry | None:
        """The next device after a failure with `code`; None: no device is left. Raises the errors of Redis."""

    def answered(self) -> None:
        """Report that the device began to answer."""

    def over(self, code: str = "") -> None:
        """Report that the request is over; `code` is that of the last failure, empty if there was none. Idempotent."""


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
        upgrade: the request must be one for an upgrade; it is passed on as such.
        admit: called as the last check before the request goes out; it spends a ticket.
        others: the devices that take the request if this one fails; the answer names the one that did by H_SERVED_BY.
            `others.over` is called once the answer is over; where this function raises, the caller has to do it.

    Raises DomainError.
    """
    own = engine()
    client = raw.connection(request)
    home = home_of(route.device_id, mount)
    try:
        head = raw.request_head(request, raw.raw_target(request) if target is None else target)
        exchange = Exchange(head, raw.via(request, mount=mount, home=home, upgrade=upgrade), own.limits)
    except ProxyError as error:
        raise refusal(error) from error
    if upgrade and not exchange.request.upgrade:
        raise DomainError("UPGRADE_REQUIRED")
    epoch = route.epoch if route.session else ANY_EPOCH
    running = Running(own.gate, device_id=route.device_id, epoch=epoch, user_id=user_id, login=login)
    forwarded = Forward(
        exchange,
        request_id=request_id_of(request),
        route=route,
        find_route=partial(_find_route, running),
        client=client,
        control=running,
        limits=own.limits,
        secret=own.secret,
        tap=tap,
        elsewhere=None if others is None else _turning(running, others),
    )
    with own.gate.held(running):
        own.watchdog.wake()
        if upgrade and not own.gate.claim_long(running):  # it will be a long one: no box is asked in vain
            raise DomainError("OVERLOADED", retry_after=RETRY_AFTER)
        if admit is not None:
            admit()
        release_database()
        answer = _head(own, running, forwarded, request)
        if answer is None:
            own.gate.leave(running)
            if others is not None:
                others.over()
            return HttpResponse(status=CLIENT_CLOSED)

        def done() -> None:
            if own.gate.leave(running):
                log(request, forwarded)
                if others is not None:
                    others.over(forwarded.problem.partition(":")[0] if forwarded.outcome == "cut" else "")

        carried = BoxAnswer(forwarded, answer, done)
        if others is not None:
            others.answered()
            carried[H_SERVED_BY] = forwarded.route.device_id
        request.carried = carried  # type: ignore[attr-defined]  # read by CarriedMiddleware
        return carried


def _turning(running: Running, others: Others) -> Callable[[str], Route | None]:
    """A function that asks `others` for the next device and lets the watchdog check that device from then on."""

    def turn(code: str) -> Route | None:
        entry = others.next(code)
        if entry is None:
            return None
        running.target = (entry.device_id, entry.epoch)
        return selectors.as_route(entry)

    return turn


def _head(own: Engine, running: Running, forwarded: Forward, request: HttpRequest) -> AnswerHead | None:
    """Wait for the answer's head; None: the client left. Raises DomainError."""
    try:
        answer = forwarded.to_head()
        if _endless(answer) and not own.gate.claim_long(running):
            forwarded.refuse("OVERLOADED")
            raise DomainError("OVERLOADED", retry_after=5)
    except ClientLeft:
        log(request, forwarded)
        return None
    except Ended as error:
        log(request, forwarded)
        raise DomainError(error.code) from error
    except ProxyError as error:
        log(request, forwarded)
        raise refusal(_located(error, forwarded.route.device_id)) from error
    except DomainError:
        log(request, forwarded)
        raise
    return answer


def _endless(answer: AnswerHead) -> bool:
    """Whether the answer is one without an end (by its type), which counts as a long exchange from its first byte."""
    return any(
        name.lower() == b"content-type" and value.strip().lower().startswith(_ENDLESS) for name, value in answer.fields
    )


def _located(error: ProxyError, device_id: str) -> ProxyError:
    """The fault with the address on the box at which nothing answers, if its agent said it: where to look."""
    if error.code != "AGENT_UNREACHABLE":
        return error
    try:
        address = selectors.local_address(device_id)
    except Error:  # the fault is told all the same
        return error
    return ProxyError(error.code, str(error), details={"local_address": [address]}) if address else error


def refusal(error: ProxyError) -> DomainError:
    """The DomainError with the same code and details as `error`."""
    return DomainError(error.code, details=error.details, retry_after=error.retry_after)


def log(request: HttpRequest, forwarded: Forward) -> None:
    """The one line of an exchange (tunnel.md, "Running it"): never the query, which may hold a ticket."""
    now = time.monotonic()
    head = forwarded.exchange.answer
    _LINE.info(
        "forward",
        lane="drf",
        outcome=forwarded.outcome,
        problem=forwarded.problem or None,
        method=request.method,
        path=request.path,
        status=None if head is None else head.status,
        device=forwarded.route.device_id,
        node=forwarded.route.node_url,
        session=forwarded.route.session,
        attempts=forwarded.attempts,
        reused=forwarded.reused,
        bytes_up=forwarded.bytes_up,
        bytes_down=forwarded.bytes_down,
        head_ms=None if forwarded.head_at is None else round((forwarded.head_at - forwarded.started) * 1000, 1),
        ms=round((now - forwarded.started) * 1000, 1),
        address=request.client_address,  # type: ignore[attr-defined]  # set by believe_proxy
    )
