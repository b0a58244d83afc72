"""The public lane: `/d/{device_id}/{path}` and `/ws/*` on the daemon's public port. Contract: docs/fast-lane.md.

Puts together who may (`authorizer`), the client's connection (`client`), the exchange (`exchange`) and the ways to the
box (`upstream`), and watches over all of them. What a proxied exchange is lives in `tunnel.http`, for both lanes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Final

import trio
from prometheus_client.core import Metric

from tunnel.contract import Origins, home_of, language_of
from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.http.capacity import ConnectionLimit
from tunnel.daemon.http.forwarded import TrustedProxies
from tunnel.daemon.http.messages import HSTS
from tunnel.daemon.lane.access import Access
from tunnel.daemon.lane.authorizer import Grant, concerns
from tunnel.daemon.lane.client import Agents, Client, push_out
from tunnel.daemon.lane.cors import Cors
from tunnel.daemon.lane.counters import LaneCounters
from tunnel.daemon.lane.exchange import LaneExchange
from tunnel.daemon.lane.fast_path import FastPath
from tunnel.daemon.lane.fd_passing import FdPassing
from tunnel.daemon.lane.forwarded import ForwardedClient, ForwardedContext
from tunnel.daemon.lane.forwarded_call import Forwarded
from tunnel.daemon.lane.head_cache import HeadCache
from tunnel.daemon.lane.ids import Ids
from tunnel.daemon.lane.interfaces import (
    ClientExchange,
    Downstream,
    ExchangeContext,
    FastPathServer,
    InFlight,
    LoggedExchange,
    Plain,
)
from tunnel.daemon.lane.reauthorize import Reauthorizer
from tunnel.daemon.lane.refusals import no_upgrade, told
from tunnel.daemon.lane.route import HeadFields, LaneRequest, field_of, is_bodyless, read
from tunnel.daemon.upstream.directory import UpstreamDirectory
from tunnel.http import (
    Exchange,
    Field,
    OrdinaryAnswers,
    ProxyError,
    RequestHead,
    Via,
    field_lines,
)
from tunnel.logs import JsonLog
from tunnel.net.background import Background
from tunnel.net.poller import AVAILABLE, Poller
from tunnel.net.sockets import ByteStream

_LOOK_SECONDS: Final = 0.5

Share = Callable[[ExchangeContext, Downstream, LaneRequest, Exchange, Grant, str], ClientExchange | None]
"""(lane, client, what was asked, exchange, grant, request id): may take over a GET of the whole, or not (None)."""


class PublicLane:
    """All client connections of this daemon's fast lane. `run` it; `serve` each connection."""

    def __init__(
        self,
        config: TunnelConfig,
        *,
        access: Access,
        upstreams: UpstreamDirectory[Grant],
        proxies: TrustedProxies,
        log: JsonLog,
        room: ConnectionLimit,
        background: Background,
        share: Share,
        plain: Plain,
        hands: FdPassing | None,
    ) -> None:
        self.head_seconds = config.head_seconds
        self._node = config.node
        self.draining = False
        self.plain = plain
        self.hands = hands
        self.proxies = proxies
        self.upstreams = upstreams
        self.authorizer = access.authorizer
        self.poller: Poller | None = None
        self.running: set[InFlight] = set()
        self._access = access
        self._share = share
        self._background = background
        self._tally = LaneCounters()
        self._log = log
        self._room = room
        self._language = config.language
        self._slow_heads = config.max_handshakes
        origins = Origins(config.cors_origins, development=config.development)
        self._cors = Cors(origins, [(name.encode(), value.encode()) for name, value in HSTS if config.hsts])
        self._ids = Ids()
        self._clients: set[Client] = set()
        self._memos = HeadCache(), HeadCache()  # of clients, and of clients that are trusted proxies
        self._answers = OrdinaryAnswers()
        self._watch = Reauthorizer(self.authorizer.refusal, self.authorizer.forget, background.spawn)
        self._empty = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        return f"<PublicLane clients={len(self._clients)} running={len(self.running)}>"

    def __len__(self) -> int:
        return len(self.running)

    # --- life ---------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Look at those who wait, and at what runs, until cancelled."""
        async with trio.open_nursery() as nursery:
            if AVAILABLE:
                self.poller = Poller()
                nursery.start_soon(self.poller.run)
            while True:
                await trio.sleep(_LOOK_SECONDS)
                self._look()

    async def serve(
        self, head: RequestHead, rest: bytes, raw: ByteStream, address: str, turns: int = 0
    ) -> Agents | None:
        """One client connection, from its first head (read already) to its end, or to a request of an agent's."""
        client = Client(self, raw, address, turns)
        self._room.heard(raw, client)
        self._clients.add(client)
        try:
            return await client.serve(head, rest)
        finally:
            self._clients.discard(client)

    async def serve_exchanges(self, raw: ByteStream, rest: bytes, address: str) -> None:
        """One connection on which another process of ours, at `address`, forwards exchanges, to its end."""
        client = ForwardedClient(self, self, raw, address)
        self._clients.add(client)
        try:
            await client.serve_exchanges(rest)
        finally:
            self._clients.discard(client)

    def drain(self) -> None:
        """Take no new requests, let the running ones finish, close idle connections and streams."""
        self.draining = True
        self._access.drain()
        self.upstreams.close_idle()

    async def wait_empty(self) -> None:
        """Return when nothing runs."""
        while self.running:
            await self._empty.park()

    def spawn(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Work that a step left over, bounded by the exchange that it belongs to."""
        self._background.spawn(work, *args)

    def reset_when_flushed(self, kept: ByteStream, address: str) -> None:
        """Reset a client's connection once what was written has arrived. Until then it has a place as others have, and
        gives way: a client may be as long at reading it as it likes."""
        if not self._room.take(kept, address, kept.reset):
            kept.reset()
        else:
            self.spawn(self._flush, kept)

    async def _flush(self, kept: ByteStream) -> None:
        try:
            await kept.reset_when_flushed()
        finally:
            self._room.leave(kept)

    # --- who may ------------------------------------------------------------------------------------------------------
    def cached(self, client: Downstream, head: RequestHead) -> ClientExchange | None:
        """The exchange, if all that it needs is at hand; else None, and `begin` finds out why not."""
        if self.draining or head.method == b"OPTIONS":
            return None
        try:
            asked = read(head)
            grant = self._access.kept(asked)
            if grant is None:
                return None
            request_id = self._ids.request_id(asked.said.values[3])
            run = self._started(client, asked, grant, request_id)
        except ProxyError:
            return None
        if client.noted is not None:
            cors = field_lines(self.cors_of(head))
            self._memos[client.trusted].note(client.noted, asked, grant, cors, trusted=client.trusted)
        return run

    def fast_path(self, client: Downstream) -> FastPathServer:
        """What serves the ordinary requests of a connection."""
        memo = self._memos[client.trusted]
        return FastPath(self, client, memo=memo, answers=self._answers, ids=self._ids, tally=self._tally, log=self._log)

    async def begin(self, client: Downstream, head: RequestHead) -> ClientExchange | None:
        """The exchange, or None once the client was told why there is none."""
        request_id = self._ids.request_id(field_of(head, b"x-request-id"))
        try:
            asked = read(head)
            if self._preflight(client, asked, request_id):
                return None
            address = self.proxies.client_of(client.address, head)
            grant = await self._access.grant(asked, address=address, request_id=request_id)
            return self._started(client, asked, grant, request_id)
        except ProxyError as error:
            self._tally.count(error.code.lower())
            self._log.info(
                "forward_refused",
                lane="fast",
                request_id=request_id,
                method=head.method.decode("latin-1"),
                path=head.target.partition(b"?")[0].decode("latin-1"),
                code=error.code,
                problem=str(error),
                address=self.proxies.client_of(client.address, head),
            )
            client.answer(self.told(error, head, keep=is_bodyless(head), request_id=request_id), keep=is_bodyless(head))
            return None

    def _preflight(self, client: Downstream, asked: LaneRequest, request_id: str) -> bool:
        if asked.head.method != b"OPTIONS" or not asked.said.values[9]:
            return False
        keep = is_bodyless(asked.head)
        names = field_of(asked.head, b"access-control-request-headers")
        said = asked.said
        client.answer(self._cors.preflight(said.origin, said.values[9], names, request_id, keep_alive=keep), keep=keep)
        return True

    def _started(self, client: Downstream, asked: LaneRequest, grant: Grant, request_id: str) -> ClientExchange:
        """The exchange of an allowed caller. Raises ProxyError."""
        if asked.lacks_upgrade:
            raise no_upgrade(asked.head.method)
        via = Via(
            scheme="http",
            address=client.address,
            request_id=request_id,
            traceparent=self._ids.traceparent(asked.said.values[4]),
            trusted=client.trusted,
            mount=asked.mount,
            home=home_of(grant.device_id, asked.mount),
            upgrade=asked.upgrade,
        )
        if not client.proved:
            client.proved = True
            self._room.prove(client.address)
        exchange = Exchange(asked.head, via, grant.limits)
        run: ClientExchange | None = None
        request = exchange.request
        if asked.sharable and not (request.body_length or request.private):
            run = self._share(self, client, asked, exchange, grant, request_id)
        if run is None:
            run = LaneExchange(self, client, asked.head, exchange, grant, request_id)
        self.running.add(run)
        return run

    def forwarded(self, client: ForwardedClient, call: Forwarded) -> ClientExchange:
        """The exchange of a call that Django has allowed. Raises ProxyError."""
        said = call.call
        limits = self.authorizer.limits_of(said["body_max"])
        grant = call.grant(limits, self._node, trio.current_time())
        exchange = Exchange(call.head, call.via(), limits)
        lane = ForwardedContext(self, call.fields, {"lane": "drf", "address": said["address"]})
        asked = LaneRequest(call.head, HeadFields(call.head), said["device_id"], said["mount"].encode("latin-1"), None)
        run: ClientExchange | None = None
        if asked.sharable and not (exchange.request.body_length or exchange.request.private):
            run = self._share(lane, client, asked, exchange, grant, said["request_id"])
        if run is None:
            run = LaneExchange(lane, client, call.head, exchange, grant, said["request_id"])
        if not said["user_id"]:
            run.allowed(math.inf)  # the cloud's own: there is nobody to ask about
        self.running.add(run)
        return run

    def facts_of(self, run: InFlight) -> dict[str, Any]:
        """How far an exchange is, for who forwards it."""
        if isinstance(run, LaneExchange):
            return {**run.facts(), "sent": run.sent, "repeatable": run.repeatable}
        return {}

    def invalidate(self, *, users: Iterable[str], logins: Iterable[str], devices: Iterable[str]) -> tuple[int, int]:
        """Drop what is known of them and end what they run: how many of each."""
        gone = set(users), set(logins) - {""}, set(devices)
        dropped = self.authorizer.invalidate(users=gone[0], logins=gone[1], devices=gone[2])
        ended = [run for run in self.running if concerns(run.grant, *gone)]
        for run in ended:
            code = "NOT_FOUND" if run.grant.device_id in gone[2] else "UNAUTHENTICATED"
            run.end_with(ProxyError(code, "no longer allowed"))
        return dropped, len(ended)

    def shed(self, session: TunnelSession) -> None:
        """Break off what runs to a device: all buffers together are over their budget, and its tunnel holds most."""
        for run in [each for each in self.running if each.grant.device_id == session.device_id]:
            run.end_with(ProxyError("OVERLOADED", "the daemon's buffers are full"))

    @property
    def patience(self) -> float:
        """Seconds for which a device that moves is waited for."""
        return self._access.patience

    # --- what is told -------------------------------------------------------------------------------------------------
    def cors_of(self, head: RequestHead) -> list[Field]:
        """The CORS fields for the answer to a request."""
        return self._cors.fields(field_of(head, b"origin"))

    def told(self, error: ProxyError, head: RequestHead | None, *, keep: bool, request_id: str = "") -> bytes:
        """The envelope of an error as a whole answer."""
        said = HeadFields(head).values if head is not None else [b""] * 10
        return told(
            error,
            request_id or self._ids.request_id(said[3]),
            language=language_of(said[8].decode("latin-1"), self._language),
            keep_alive=keep and not self.draining,
            head_only=head is not None and head.method == b"HEAD",
            extra=self._cors.lines(said[1]),
        )

    def ended(self, run: LoggedExchange, **told: Any) -> None:
        """Count and log an exchange that is over; `told` are more facts for the log."""
        facts = run.facts()
        self._tally.count(run.outcome)
        self._tally.bytes_up += facts["bytes_up"]
        self._tally.bytes_down += facts["bytes_down"]
        self._log.info("forward", **facts | told)
        self.no_longer(run)

    def no_longer(self, run: InFlight) -> None:
        """It does not run any more, here or in this guise."""
        self.running.discard(run)
        if self._empty and not self.running:
            self._empty.unpark_all()

    def crashed(self, run: LoggedExchange, error: Exception) -> None:
        """A bug of ours in one exchange."""
        self._log.error("exchange_crashed", request_id=run.request_id, error=repr(error))
        run.end_with(ProxyError("INTERNAL_ERROR", "crashed"))

    def live(self) -> Iterator[Metric]:
        """What Prometheus is told."""
        return self._tally.live(self._clients, self.running, self.hands)

    # --- the watchdog -------------------------------------------------------------------------------------------------
    def _look(self) -> None:
        now = trio.current_time()
        for client in list(self._clients):
            client.look(now)
        push_out(self._clients, self._slow_heads, now)
        self._watch.look(self.running, now)
        self.upstreams.expire()
