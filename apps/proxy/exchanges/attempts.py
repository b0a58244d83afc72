"""Where a request is sent, and where next: to the daemon with the box, a newer session, another member.

What may wait (the registry, a connection) happens here, in a thread that may; what became of an attempt is decided
from the carriage. It knows neither how the bytes were moved nor what becomes of the client's connection.
"""

from __future__ import annotations

import select
import time
from typing import Final, Literal, TypedDict

import orjson
import redis.exceptions
import structlog
from django.conf import settings
from django.http import HttpRequest

from apps.common.observability.log_line import HotLog
from apps.proxy import selectors
from apps.proxy.exchanges.interfaces import Client, Others
from apps.tunnels import registry
from apps.tunnels.carriage import Carriage
from apps.tunnels.client_request import ProxyError, RequestHead, head_bytes
from apps.tunnels.node_connections import NodeAway, NodeConnection, NodeTooOld, connections
from apps.tunnels.route import Route
from tunnel.contract import ERROR_STATUS, ExchangeCall, ExchangeEnd

logger = structlog.get_logger("visiona.forward")
_LINE: Final = HotLog("visiona.forward")

LOOK_SECONDS: Final = 0.1
"""The pause between two looks for a device that changes daemons."""
RETRY_AFTER: Final = 5
ATTEMPTS: Final = 16

Outcome = Literal["", "done", "refused", "left", "cut"]


class Where(TypedDict):
    device_id: str
    epoch: int
    session: str
    node_url: str
    moving: bool


def where(route: Route) -> Where:
    """The part of a call that changes when the request goes elsewhere."""
    return Where(
        device_id=route.device_id,
        epoch=route.epoch,
        session=route.session,
        node_url=route.node_url,
        moving=route.moving,
    )


class Attempts:
    """One request, and its attempts. `attempt`, move the carriage's bytes until it is over, `settled`; again if not."""

    def __init__(
        self,
        request: HttpRequest,
        route: Route,
        *,
        head: RequestHead,
        idempotent: bool,
        call: ExchangeCall,
        carriage: Carriage,
        client: Client,
        others: Others | None,
    ) -> None:
        self.route = route
        self.outcome: Outcome = ""
        self._request = request
        self._head = head
        self._raw = head_bytes(head)
        self._idempotent = idempotent
        self._call = call
        self._carriage = carriage
        self._client = client
        self._others = others
        self._code = ""
        self._message = ""
        self._refused: ProxyError | None = None
        self._renew_until = 0.0
        self._attempts = 0
        self._may_wait = False
        """This thread is one that may wait for a device on its way between two daemons."""
        self._has_to_wait = False
        self._started = time.monotonic()

    # --- attempts: in a thread that may wait --------------------------------------------------------------------------
    def attempt(self) -> None:
        """Send it to the daemon of its route, or to where the device is by then; `outcome` is set if that fails.

        Where the device is on its way and this thread may not wait for it, `_has_to_wait` is set: to be called again in
        one that may.
        """
        self._has_to_wait = False
        while not (self.outcome or self._has_to_wait):
            self._attempts += 1
            node = self._connection()
            if node is not None:
                self._carriage.begin(node, orjson.dumps({**self._call, **where(self.route)}), self._raw)
                return

    def _connection(self) -> NodeConnection | None:
        """A connection to the daemon; None: the route is another by now, or `outcome` is set."""
        route = self.route
        if not route.session:
            self._move_on("TUNNEL_DISCONNECTED", "the device is between two daemons")
            return None
        try:
            return self._connect(route.node_url)
        except NodeTooOld:
            other = self._newer_daemon()
            if other is None:
                self._move_on("TUNNEL_UNAVAILABLE", "the daemon is of the release before, and there is no other")
            return other
        except NodeAway as error:
            connections.drop(route.node_url)
            self._move_on("TUNNEL_UNAVAILABLE", str(error))
            return None

    def _connect(self, node_url: str) -> NodeConnection:
        return connections.take(node_url) or connections.connect(
            node_url, settings.VISIONA["INTERNAL_SECRET"][0], request_id=self._call["request_id"]
        )

    def _newer_daemon(self) -> NodeConnection | None:
        """A daemon that takes exchanges in the place of the one that does not yet: it reaches the box through that."""
        try:
            nodes = registry.nodes()
        except redis.exceptions.RedisError:
            nodes = []
        for node in nodes:
            if node.url == self.route.node_url or node.draining or connections.is_older(node.url):
                continue
            try:
                return self._connect(node.url)
            except NodeAway:
                continue
        logger.warning("daemon_too_old", node=self.route.node_url)
        return None

    def _move_on(self, code: str, problem: str) -> None:
        """Turn to where the request may be taken now; else it is refused with this code."""
        try:
            other = self._elsewhere(code)
        except redis.exceptions.RedisError:
            other = None
        if self._has_to_wait:
            self._attempts -= 1
        elif other is None or self._attempts >= ATTEMPTS:
            self._refuse(ProxyError(code, problem, retry_after=RETRY_AFTER))
        else:
            self.route = other

    def _elsewhere(self, code: str) -> Route | None:
        """Another of the cluster, or the device's newer session; one on its way is waited for, as an open may take."""
        now = time.monotonic()
        self._renew_until = self._renew_until or now + settings.VISIONA["PROXY_OPEN_SECONDS"]
        while True:
            entry = None if self._others is None else self._others.next(code)
            if entry is not None:
                return selectors.as_route(entry)
            newer = selectors.route_of(self.route.device_id)
            if newer is None:
                return None
            if newer.session not in ("", self.route.session):
                return newer
            if not newer.moving or time.monotonic() >= self._renew_until or self._client_gone():
                return None
            if not self._may_wait:
                self._has_to_wait = True
                return None
            time.sleep(LOOK_SECONDS)

    def _client_gone(self) -> bool:
        poll = select.poll()
        poll.register(self._client.sock, 0)
        return bool(poll.poll(0))

    # --- what became of an attempt ------------------------------------------------------------------------------------
    def settled(self) -> bool:
        """Whether it is over, after the carriage is; else it is to be attempted anew, by a thread that may wait."""
        carriage = self._carriage
        end = carriage.end
        if carriage.left:
            carriage.abort()
            self.outcome = "left"
        elif end is None:
            self._lost()
        elif end["outcome"] == "refused":
            self._told(end)
        else:
            outcomes: dict[str, Outcome] = {"ok": "done", "client_left": "left"}
            self.outcome = outcomes.get(end["outcome"], "cut")
            self._code = end["code"]
            self._keep_node()
        return bool(self.outcome)

    def _keep_node(self) -> None:
        node = self._carriage.take_node()
        if node is not None:
            connections.give(node)

    def _lost(self) -> None:
        """The daemon's connection ended without its word."""
        carriage, node = self._carriage, self._carriage.node
        stale = node is not None and node.uses > 1
        carriage.abort()
        if carriage.answered:
            self.outcome, self._code = "cut", "TUNNEL_UNAVAILABLE"
            self._log_lost()
            return
        again = carriage.may_begin_again and (not carriage.accepted or self._idempotent)
        connections.drop(self.route.node_url)
        if again and stale and self._attempts < ATTEMPTS:
            return  # its daemon may have closed it as it idled: a new one tells
        if again:
            self._move_on("TUNNEL_UNAVAILABLE", "the daemon ended the call")
        else:
            self._refuse(ProxyError("TUNNEL_UNAVAILABLE", "the daemon ended the call", retry_after=RETRY_AFTER))
        if self.outcome:
            self._log_lost()

    def _told(self, end: ExchangeEnd) -> None:
        """The daemon refused it, or a box did not answer."""
        self._keep_node()
        code = end["code"]
        if self._others is not None and end["repeatable"] and self._carriage.may_begin_again:
            try:
                entry = self._others.next(code)
            except redis.exceptions.RedisError:
                entry = None
            if entry is not None:
                self.route = selectors.as_route(entry)
                return
        error = ProxyError(
            code if code in ERROR_STATUS else "INTERNAL_ERROR",
            end["problem"],
            details=dict(end["details"]) if "details" in end else None,
            retry_after=end.get("retry_after"),
        )
        self._message = end.get("message", "")
        self._refuse(error)

    def _refuse(self, error: ProxyError) -> None:
        self.outcome = "refused"
        self._refused = error
        self._code = error.code

    def _log_lost(self) -> None:
        """The line of an exchange of which the daemon could say nothing any more; it writes all others."""
        _LINE.info(
            "forward",
            lane="drf",
            outcome=self.outcome,
            problem=self._code,
            method=self._request.method,
            path=self._request.path,
            status=None,
            device=self.route.device_id,
            node=self.route.node_url,
            session=self.route.session,
            attempts=self._attempts,
            bytes_down=self._carriage.sent,
            ms=round((time.monotonic() - self._started) * 1000, 1),
            address=self._call["address"],
        )
