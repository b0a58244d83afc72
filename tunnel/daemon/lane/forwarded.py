"""Exchanges that another process of ours forwards, on a kept connection: `POST /internal/exchange`.

For the lane such a connection is one more client, whose bytes come and go as records (`tunnel.contract.exchange`), and
whose grant comes with each request instead of being asked for. It does not know who forwards, nor the route.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Protocol

import orjson
import trio

from tunnel.contract import (
    ABORT,
    ACCEPTED,
    BEGIN,
    DATA,
    END,
    EOF,
    ERROR_STATUS,
    ExchangeEnd,
    RecordError,
    RecordReader,
    record,
    record_header,
)
from tunnel.daemon.lane.authorizer import Denied, Grant
from tunnel.daemon.lane.client import IDLE, IDLE_SECONDS, RUN, Client
from tunnel.daemon.lane.forwarded_call import Forwarded, NoCall
from tunnel.daemon.lane.interfaces import ClientContext, ClientExchange, ExchangeContext, InFlight, LoggedExchange
from tunnel.daemon.upstream.directory import UpstreamDirectory
from tunnel.http import Buffer, Field, ProxyError, RequestHead
from tunnel.net.sockets import ByteStream, bound_buffers

_BUFFER: Final = 64 * 1024
"""Asked for each direction of the socket: what waits in kernels is what a slow viewer lags behind by."""
_FLUSH_SECONDS: Final = 60.0
"""Without a byte taken of what is left of an answer."""
_LATE: Final = frozenset({DATA, EOF, ABORT})
"""Of a client. They may come behind the end of their exchange, which its caller has not read yet."""


class Lane(ExchangeContext, Protocol):
    """The lane, as what stands between it and a forwarded exchange sees it."""

    def ended(self, run: LoggedExchange, **told: Any) -> None:
        """Count and log an exchange that is over; `told` are more facts for the log."""


class ForwardedRuns(Protocol):
    """Who runs forwarded exchanges."""

    def forwarded(self, client: ForwardedClient, call: Forwarded) -> ClientExchange:
        """The exchange of a call. Raises ProxyError."""

    def facts_of(self, run: InFlight) -> dict[str, Any]:
        """How far it is."""


class ForwardedClient(Client):
    """A connection that carries forwarded exchanges, one after another."""

    __slots__ = ("_accepted", "_flushing", "_last", "_reader", "_records", "_runs", "_written")

    def __init__(self, lane: ClientContext, runs: ForwardedRuns, raw: ByteStream, address: str) -> None:
        super().__init__(lane, raw, address)
        bound_buffers(raw.sock, _BUFFER)
        self._runs = runs
        self._reader = RecordReader()
        self._records: deque[tuple[int, bytes]] = deque()
        self._accepted = False
        self._flushing = False
        self._written = trio.lowlevel.ParkingLot()
        self._last: Sequence[Buffer] = ()  # of an answer, to leave with its end

    # --- reading ------------------------------------------------------------------------------------------------------
    async def serve_exchanges(self, rest: bytes) -> None:
        """Carry the connection to its end; `rest` was read behind the call that made it one of records."""
        try:
            with self.scope:
                if rest:
                    self._records.extend(self._reader.feed(rest))
                while (payload := await self._next_call()) is not None:
                    await self._exchange(payload)
                    await self.flush()
                    if self._lane.draining:
                        break
        except (trio.BrokenResourceError, trio.ClosedResourceError, RecordError):
            pass  # the other side went away, or says what is no record
        finally:
            if self.run is not None and not self.run.over:
                self.run.client_left()
            self.close()

    async def flush(self) -> None:
        """Wait until all is written; another task may be at it. Raises as the socket's."""
        while self._flushing:
            await self._written.park()
        self._flushing = True
        try:
            await super().flush()
        finally:
            self._flushing = False
            self._written.unpark_all()

    async def _flush_rest(self) -> None:
        """What the kernel did not take at the end of an exchange: this connection's own task may be reading."""
        try:
            while self._unsent:
                before = self.sent
                with trio.move_on_after(_FLUSH_SECONDS):
                    await self.flush()
                if self.sent == before:
                    self.raw.reset()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.raw.reset()

    async def _next_call(self) -> bytes | None:
        """The next call, whatever is left of the one before; None: there is none any more."""
        self._enter(IDLE)
        while True:
            while self._records:
                kind, payload = self._records.popleft()
                if kind == BEGIN:
                    return payload
                if kind not in _LATE:
                    raise RecordError(f"kind {kind} between two calls")
            if not await self._more():
                return None

    async def _more(self) -> bool:
        """Read records; False at the end of the connection."""
        data = await super().read()
        self._records.extend(self._reader.feed(data))
        return bool(data)

    async def read(self) -> bytes:
        """The client's next bytes, b"" at its end. Raises trio.BrokenResourceError once nobody waits for an answer."""
        while True:
            while self._records:
                kind, payload = self._records[0]
                if self.run is None or self.run.over:
                    return b""  # the next call may have come while this task read
                if kind not in _LATE:
                    raise RecordError(f"kind {kind} within a call")
                if kind == ABORT and not payload:
                    raise trio.BrokenResourceError("the client is gone")
                if kind == EOF:
                    return b""  # however often it is asked for
                self._records.popleft()
                if kind == DATA:
                    return payload
                if kind == ABORT and self.run is not None:
                    self.run.end_with(ProxyError(_code(payload), "ended by who forwards it"))
                    raise trio.BrokenResourceError("ended")
            if not await self._more():
                raise trio.BrokenResourceError("who forwards it is gone")

    async def _rest(self) -> bytes:
        return await self.read()

    async def _exchange(self, payload: bytes) -> None:
        """One exchange. What is wrong with it is told by its end."""
        self.run, self._last = None, ()
        self.ended = self._accepted = False
        try:
            forwarded = Forwarded(payload)
            self.address, self.trusted = forwarded.call["peer"], forwarded.call["trusted"]
            # Who was told long ago that nobody answers has closed this: a process that stood still must not begin then.
            if self.gone(half=True):
                raise trio.BrokenResourceError("nobody waits for it any more")
            run = self._runs.forwarded(self, forwarded)
        except ProxyError as error:
            self.refuse(error, keep=False)
            if isinstance(error, NoCall):
                await self.flush()
                raise RecordError(str(error)) from None
            return
        self._enter(RUN)
        self.run = run
        await run.start()
        await self._carry(run)

    async def _carry(self, run: ClientExchange) -> None:
        try:
            rest: bytes | None = b""
            if run.wants_body:
                rest = await self._body(run, b"")
            if rest is not None:
                await self._to_end(run, b"")
            while not run.over:
                await self.wait_change()
        except RecordError as error:
            run.end_with(ProxyError("BAD_REQUEST", str(error)))
            await self.flush()
            raise
        except trio.BrokenResourceError:
            if not run.over:
                run.client_left()
            if self.sock.fileno() < 0 or self.gone(half=True):
                raise

    # --- writing ------------------------------------------------------------------------------------------------------
    def write(self, pieces: Sequence[Buffer], *, last: bool = False) -> bool:
        """The next bytes for the client; the last ones leave with the end."""
        size = sum(map(len, pieces))
        if not size:
            return not self._unsent
        framed = [record_header(DATA, size), *pieces]
        if last and not self._unsent:
            self._last = framed
            return True
        return self._put(framed)

    def accepted(self) -> None:
        """A box is about to see the request."""
        if not self._accepted:
            self._accepted = True
            self._put([record(ACCEPTED)])

    def send_eof(self) -> None:
        """The box half-closed an upgraded connection."""
        self._put([record(EOF)])

    def refuse(self, error: ProxyError, *, keep: bool, head: RequestHead | None = None) -> None:  # noqa: ARG002
        """Tell the code: who forwards tells its client."""
        end = self._end("refused", error.code, keep=keep)
        if error.details is not None:
            end["details"] = dict(error.details)
        if error.retry_after is not None:
            end["retry_after"] = error.retry_after
        if isinstance(error, Denied):
            end["message"] = error.message
        end["problem"] = end["problem"] or str(error)
        self._tell(end)

    def finished(self, *, keep: bool) -> None:
        """The answer is complete."""
        self._tell(self._end("ok", "", keep=keep))

    def cut(self) -> None:
        """What was written is no whole answer. What the other side has not taken by now is not waited for."""
        if self._unsent or self.sock.fileno() < 0:
            self.raw.reset()
            self.changed()
        else:
            self.cut_when_flushed()

    def cut_when_flushed(self) -> None:
        """The same, behind all that was written."""
        run = self.run
        facts = {} if run is None else self._runs.facts_of(run)
        if facts.get("outcome") == "client_left":
            self._tell(self._end("client_left", "", keep=False))
        else:
            self._tell(self._end("cut", (facts.get("problem") or "").partition(":")[0], keep=False))

    def _end(self, outcome: Any, code: str, *, keep: bool) -> ExchangeEnd:
        run = self.run
        facts: dict[str, Any] = {} if run is None else self._runs.facts_of(run)
        return ExchangeEnd(
            outcome=outcome,
            code=code,
            problem=facts.get("problem") or "",
            sent=bool(facts.get("sent")),
            repeatable=bool(facts.get("repeatable", True)),
            keep=keep,
            status=facts.get("status"),
            session=facts.get("session", ""),
            attempts=facts.get("attempts", 0),
            reused=bool(facts.get("reused")),
            bytes_up=facts.get("bytes_up", 0),
            bytes_down=facts.get("bytes_down", 0),
            head_ms=facts.get("head_ms"),
        )

    def _tell(self, end: ExchangeEnd) -> None:
        last, self._last = self._last, ()
        try:
            self._put([*last, record(END, orjson.dumps(end))])
        except trio.BrokenResourceError:
            self.raw.reset()
        self._enter(IDLE)
        if self._unsent and self.sock.fileno() >= 0:
            self._lane.spawn(self._flush_rest)
        self.changed()

    # --- the watchdog -------------------------------------------------------------------------------------------------
    def gone(self, *, half: bool) -> bool:  # noqa: ARG002 - who forwards ends no side alone
        """Whether who forwards has left."""
        return super().gone(half=True)

    def look(self, now: float) -> None:
        if self.phase == IDLE:
            if self._unsent:
                return  # whoever writes it gives up by himself
            if now - self.since > IDLE_SECONDS or (self._lane.draining and not self._records):
                self.close()
        else:
            super().look(now)


def _code(payload: bytes) -> str:
    code = payload.decode("latin-1")
    return code if code in ERROR_STATUS else "INTERNAL_ERROR"


class ForwardedContext:
    """The lane, as one forwarded exchange sees it: the site's fields are given, and no client is asked to leave."""

    __slots__ = ("_fields", "_lane", "_told")

    draining = False
    """Its client is another process's, whose connection has nothing to do with this one's end."""

    def __init__(self, lane: Lane, fields: list[Field], told: dict[str, Any]) -> None:
        self._lane = lane
        self._fields = fields
        self._told = told

    @property
    def patience(self) -> float:
        return self._lane.patience

    @property
    def upstreams(self) -> UpstreamDirectory[Grant]:
        return self._lane.upstreams

    def cors_of(self, head: RequestHead) -> list[Field]:  # noqa: ARG002 - as who forwards says
        return self._fields

    def spawn(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._lane.spawn(work, *args)

    def ended(self, run: LoggedExchange) -> None:
        self._lane.ended(run, **self._told)

    def crashed(self, run: LoggedExchange, error: Exception) -> None:
        self._lane.crashed(run, error)
