"""The ordinary exchange in few steps: a request met before, whole in one read; an answer whole in one piece.

No task wakes for it: the poller brings the request, the tunnel's reader the answer. It decides nothing that
`tunnel.http` has not decided for the same bytes before, and whatever turns out not to be ordinary is handed to
`LaneExchange`, as if it had been carried by that from the start. One a client's connection, used again and again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from hashlib import sha256
from typing import Final

import trio

from tunnel.contract import home_of
from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.counters import LaneCounters
from tunnel.daemon.lane.exchange import LaneExchange
from tunnel.daemon.lane.head_cache import HEAD_BYTES, CachedRequest, HeadCache, HeadKey
from tunnel.daemon.lane.ids import Ids, is_request_id
from tunnel.daemon.lane.interfaces import Downstream, FastPathContext
from tunnel.daemon.upstream.interfaces import BoxStream
from tunnel.daemon.upstream.local import LocalUpstream
from tunnel.daemon.upstream.pool import IdleStream
from tunnel.http import UNREAD_FROM, Exchange, OrdinaryAnswers, ProxyError, Via
from tunnel.logs import JsonLog
from tunnel.mux.errors import TunnelError

ANSWER_BYTES: Final = 32 * 1024
"""Longer answers are not ordinary: the client may not take them at once."""
_TAKEN: Final = 128 * 1024  # taken from the box at once
_OLD_SECONDS: Final = 1.0
_FEW: Final = 4  # ordinary exchanges at once: of more the tunnel's writer gathers what comes, at less cost for each
_MANY: Final = 32  # of any kind: not worth counting
_LETTERS: Final = 65
_ID_FIELD: Final = b"\r\nX-Request-ID: "  # as the shipped nginx spells it


class FastPath:
    """The ordinary exchange of one connection; `over` where there is none."""

    __slots__ = (
        "_answers", "_body", "_client", "_hear", "_idle", "_ids", "_lane", "_late", "_line", "_log", "_memo", "_ready",
        "_request_id", "_started", "_stream", "_tally", "_trace", "grant", "over", "upgraded",
    )  # fmt: skip

    request_done: Final = True
    endless: Final = False
    checked: Final = math.inf

    def __init__(
        self,
        lane: FastPathContext,
        client: Downstream,
        *,
        memo: HeadCache,
        answers: OrdinaryAnswers,
        ids: Ids,
        tally: LaneCounters,
        log: JsonLog,
    ) -> None:
        self._lane = lane
        self._tally = tally
        self._log = log
        self._client = client
        self._memo = memo
        self._answers = answers
        self._ids = ids
        self._hear: Callable[[], None] = self._heard
        self._stream: BoxStream | None = None
        self._late = False  # the client has not taken all of the answer yet
        self._started = 0.0
        self.over = True
        self.upgraded = False
        self._ready: CachedRequest
        self.grant: Grant
        self._line: LocalUpstream
        self._body = 0
        self._idle: IdleStream | None = None  # what stood for the stream's rest; None: it is a new one
        self._request_id = b""
        self._trace = b""

    def __repr__(self) -> str:
        return f"<FastPath over={self.over}>"

    # --- towards the box ----------------------------------------------------------------------------------------------
    def begin(self, data: bytes) -> bool:
        """Serve the request that `data` is, if it is an ordinary one met before and all it needs is at hand."""
        try:
            return self._begin(data)
        except Exception as error:  # noqa: BLE001 - a bug here must end this connection, not the poller of all
            self._log.error("request_crashed", error=repr(error))
            if self.over:
                return False  # nothing went out: the other way may fare better
            self.over = True
            self._lane.no_longer(self)
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.reset()
            self._client.cut()
            return True

    def _begin(self, data: bytes) -> bool:
        size = data.find(b"\r\n\r\n", 0, HEAD_BYTES) + 4
        if size < 4 or data[0] < _LETTERS:  # an empty line before the request is for the parser
            return False
        inbound = b""
        at = data.find(_ID_FIELD, 0, size)
        if at < 0:
            name = sha256(data if size == len(data) else data[:size]).digest()
        else:  # a front numbers its requests: the number is all that differs
            at += len(_ID_FIELD)
            end = data.find(b"\r", at, size)
            inbound = data[at:end]
            if not is_request_id(inbound):
                return False
            name = sha256(data[:at] + data[end:size]).digest()
        ready = self._memo.find(name)
        if ready is None:
            self._client.noted = HeadKey(name, size, data, numbered=at >= 0)
            return False
        self._body = ready.length
        if len(data) != size + self._body:
            return False
        now = trio.current_time()
        grant = self._granted(ready, now)
        if grant is None:
            return False
        line = self._lane.upstreams.here(grant)
        if line is None:
            return False
        self._request_id = inbound
        return self._send(data, size, ready, grant, line, now)

    def _granted(self, ready: CachedRequest, now: float) -> Grant | None:
        """The grant for a request that was met before, if nobody has to be asked and it is surely not to be shared."""
        lane = self._lane
        authorizer = lane.authorizer
        if lane.draining:
            return None
        grant = authorizer.find(ready.key)
        if grant is None or now >= grant.refresh_at:
            return None
        if ready.grant is not grant:
            ready.met(grant)
        if ready.length > grant.limits.request_body:
            return None
        if ready.sharable and now >= ready.plain_until:
            ready.plain_until = lane.plain(grant, ready.prepared.line)
            if now >= ready.plain_until:
                return None
        return grant

    def _send(
        self, data: bytes, size: int, ready: CachedRequest, grant: Grant, line: LocalUpstream, now: float
    ) -> bool:
        idle = self._idle = line.lines.take_idle(now, repeatable=ready.repeatable)
        stream: BoxStream
        if idle is not None:
            stream = idle.stream
        else:
            try:
                stream = line.open_nowait()
            except ProxyError:
                return False  # the other way knows what to do about it, and what to say
        client = self._client
        made, self._trace = self._ids.pair()
        self._request_id = self._request_id or made
        head = ready.prepared.head(client.forwarded, self._request_id, self._trace)
        if self._body:
            head += data[size:]
        self._ready, self.grant, self._line, self._stream, self._started = ready, grant, line, stream, now
        self.over = self._late = False
        client.served_by(self, now)
        self._lane.running.add(self)
        poller = self._lane.poller
        hurried = idle is not None and poller is not None and poller.alone and self._few()
        if hurried:
            line.tunnel.connection.hurry()
        try:
            try:
                sent = stream.send_nowait(head)
            finally:
                if hurried:
                    line.tunnel.connection.calm()
        except (TunnelError, trio.ClosedResourceError) as error:
            self._carry().broken(error)
        else:
            if sent < len(head):
                self._carry().end_with(ProxyError("OVERLOADED", "a stream that takes no head"))
            else:
                stream.listener = self._hear
        return True

    def _few(self) -> bool:
        """Whether few others ask as this one does; what takes long, bulk and events, does not count."""
        running = self._lane.running
        return len(running) <= _MANY and sum(isinstance(each, FastPath) for each in running) <= _FEW

    # --- from the box -------------------------------------------------------------------------------------------------
    def _heard(self) -> None:
        """Something came, or the stream ended or broke: called by the tunnel's reader, so nothing may leave here."""
        stream = self._stream
        if stream is None or self._late:
            return
        try:
            data = stream.receive_nowait(_TAKEN)
            if data is None:
                return
            if not self._answered(data):
                self._carry().take_over(data)
        except (TunnelError, trio.ClosedResourceError) as error:
            self._carry().broken(error)
        except Exception as error:  # noqa: BLE001 - a bug here must end this exchange, not the tunnel
            self._lane.crashed(self._carry(), error)

    def _answered(self, data: bytes) -> bool:
        """Pass `data` on if it is a whole ordinary answer."""
        if len(data) > ANSWER_BYTES or self._lane.draining:
            return False
        ready = self._ready
        answer = self._answers.read(
            data, request_id=self._request_id, fields=ready.cors, head_only=ready.head_only, cors=ready.readable
        )
        if answer is None:
            return False
        try:
            whole = self._client.write((answer.out,))
        except trio.BrokenResourceError:
            self.client_left()
            return True
        now = trio.current_time()
        self._tell(answer.status, answer.body, now)
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.listener = None
            reusable = answer.keep_alive and not (self._body and answer.status >= UNREAD_FROM)
            self._line.keep(stream, self._idle, now, reusable=reusable)
        if whole:
            self._finished(now)
        else:
            self._late = True
            self._lane.spawn(self._flushed)
        return True

    def _tell(self, status: int, down: int, now: float) -> None:
        """Count and log it, with the facts that `Progress.facts` tells."""
        ready = self._ready
        tally = self._tally
        tally.ordinary += 1
        tally.bytes_up += self._body
        tally.bytes_down += down
        took = (now - self._started) * 1000
        self._log.info_json(
            b'"forward","lane":"fast","request_id":"%b","outcome":"ok","problem":null,%b,"status":%d,%b,"session":"%b",'
            b'"attempts":1,"reused":%b,"bytes_up":%d,"bytes_down":%d,"head_ms":%.3f,"ms":%.3f}'
            % (
                self._request_id, ready.facts, status, self.grant.who, self._line.tag,
                b"false" if self._idle is None else b"true", self._body, down, took, took,
            )
        )  # fmt: skip

    def _finished(self, now: float) -> None:
        self.over = True
        self._lane.no_longer(self)
        self._client.served(now)

    async def _flushed(self) -> None:
        try:
            await self._client.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.client_left()
        else:
            if not self.over:
                self._finished(trio.current_time())

    # --- what is not ordinary -----------------------------------------------------------------------------------------
    def _carry(self) -> LaneExchange:
        """Hand the exchange over, as it is: sent whole, nothing answered."""
        ready, client, lane = self._ready, self._client, self._lane
        request_id, trace = self._request_id, self._trace
        via = Via(
            scheme="http",
            address=client.address,
            request_id=request_id.decode(),
            traceparent=trace.decode(),
            trusted=client.trusted,
            mount=ready.mount,
            home=home_of(self.grant.device_id, ready.mount),
        )
        head = ready.prepared.head(client.forwarded, request_id, trace)
        exchange = Exchange(ready.prepared.request._replace(head=head), via, self.grant.limits)
        exchange.sent_whole(self._body)
        run = LaneExchange(lane, client, ready.head, exchange, self.grant, via.request_id)
        stream, self._stream = self._stream, None
        self.over = True
        lane.no_longer(self)
        lane.running.add(run)
        client.run = run
        if stream is not None:
            run.going_on(stream, self._line, reused=self._idle is not None, started=self._started, body=self._body)
        return run

    def allowed(self, at: float) -> None:
        """As of `Served`; of no use here."""

    def client_left(self) -> None:
        """The client is gone. Idempotent."""
        if self.over:
            return
        if self._stream is not None:
            self._carry().client_left()
            return
        self.over = True  # told already: it is the last of the answer that was not taken
        self._lane.no_longer(self)
        self._client.cut()

    def end_with(self, error: ProxyError) -> None:
        """End it from outside. Idempotent."""
        if self._late:
            self.client_left()
        elif not self.over:
            self._carry().end_with(error)

    def look(self, now: float) -> None:
        """The watchdog: what takes its time is no ordinary exchange."""
        waited = now - self._started
        if self._late:
            if waited >= self.grant.limits.idle_seconds:
                self.client_left()
        elif waited >= _OLD_SECONDS:
            self._carry().look(now)
