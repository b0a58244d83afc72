"""One exchange on the fast lane: a client's request on a stream to its box, and the answer on its way back.

What it is (heads, framing, codes, what may be tried again) is `tunnel.http.Exchange`'s; here is when. What the box
says is passed on by whoever brings it, the tunnel's own reader: no task wakes for a message. Only where the client
takes less than comes does a task of its own (`_pump`) carry the rest.
"""

from __future__ import annotations

from typing import Final

import trio

from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.interfaces import Downstream, ExchangeContext
from tunnel.daemon.lane.progress import Progress, not_taken
from tunnel.daemon.upstream.interfaces import BoxStream, Upstream
from tunnel.daemon.upstream.interfaces import NotOpened as NotOpened
from tunnel.http import (
    CONTINUE,
    BodyReader,
    Buffer,
    Exchange,
    ExchangeError,
    ProxyError,
    RequestHead,
)
from tunnel.mux.errors import GoingAway, TunnelError

_DOWN: Final = 128 * 1024  # taken from the box at once
CUT: Final = "cut"


class LaneExchange(Progress):
    """A request that is carried to its box."""

    __slots__ = ("_down_done", "_fresh_only", "_lane", "_moved_on", "_pumping", "_stream", "_until", "_up_done")

    def __init__(
        self,
        lane: ExchangeContext,
        client: Downstream,
        head: RequestHead,
        exchange: Exchange,
        grant: Grant,
        request_id: str,
    ) -> None:
        super().__init__(client, head, exchange, grant, request_id)
        self._lane = lane
        self._stream: BoxStream | None = None
        self._fresh_only = False
        self._moved_on = False
        self._until = 0.0  # when nobody looks for a newer session any more; 0.0: nobody has yet
        self._pumping = False
        self._up_done = False
        self._down_done = False

    # --- towards the box ----------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Find a stream and send the head on it."""
        try:
            stream = self._idle_stream()
            if stream is None:
                stream = await self._new_stream()
            if self.over:  # the client left, or was told, while the stream was opened
                stream.reset()
                return
            self._begin(stream)
        except ExchangeError as error:
            self._fail(error)

    def _idle_stream(self) -> BoxStream | None:
        if self._line is None:
            self._line = self._lane.upstreams.reach(self.grant)
        if self._line is None or self._fresh_only:
            return None
        request = self.exchange.request
        stream = self._line.take(repeatable=request.idempotent and not request.body_length)
        self._reused = stream is not None
        return stream

    async def _new_stream(self) -> BoxStream:
        """A stream of the session that is known, else of a newer one, within the time that an open may take.

        Raises ProxyError.
        """
        self._until = self._until or trio.current_time() + self._lane.patience
        line = self._line or await self._lane.upstreams.wait_reach(self.grant, self._until)
        while True:
            self._line = line
            try:
                return await self._open(line)
            except NotOpened as error:
                newer = await self._lane.upstreams.newer(self.grant, line, self._until)
                if newer is None:
                    raise ProxyError(error.code, str(error), retry_after=error.retry_after) from error
                line = newer

    async def _open(self, line: Upstream) -> BoxStream:
        """A new stream of that session. Raises ProxyError, `NotOpened` if another session may do."""
        return await line.open(self.request_id)

    def _begin(self, stream: BoxStream) -> None:
        """Send the request's head; from here on the box's words come by `_spoke`."""
        self._stream = stream
        self.attempts += 1
        self.sent = True
        request = self.exchange.request
        if request.body_length or not request.idempotent:
            self.client.accepted()
        head = self.exchange.start()
        try:
            if stream.send_nowait(head) < len(head):
                raise ProxyError("OVERLOADED", "a new stream that takes no head")
        except (TunnelError, trio.ClosedResourceError) as error:
            self.broken(error)
            return
        if not stream.notifies:
            self.client.wander.went(self._head.target, self.grant.node_url)
            self._pump()
        else:
            stream.listener = self._spoke

    def going_on(self, stream: BoxStream, line: Upstream, *, reused: bool, started: float, body: int) -> None:
        """Carry on what went out whole at `started`, `body` bytes behind the head."""
        self._stream = stream
        self._line = line
        self._reused = reused
        self._up = body
        self.attempts = 1
        self.started = self._marked_at = started
        stream.listener = self._spoke

    def body_reader(self) -> BodyReader:
        return self.exchange.request.body_reader()

    def expect_body(self) -> None:
        if self.exchange.request.expects_continue and not self._head_sent and not self.over:
            try:
                self.client.write([CONTINUE])
            except trio.BrokenResourceError:
                self.client_left()

    async def send_body(self, pieces: list[Buffer]) -> bool:
        stream = self._stream
        if stream is None:
            return not self.over
        try:
            for piece in pieces:
                framed = [piece] if self.upgraded else self.exchange.send_body(piece)
                self._up += len(piece)
                for part in framed:
                    sent = stream.send_nowait(part)
                    if sent < len(part):
                        await stream.send_all(memoryview(part)[sent:])
        except ProxyError as error:
            self.end_with(error)
        except (TunnelError, trio.ClosedResourceError) as error:
            self._sending_failed(stream, error)
        return not self.over

    def _sending_failed(self, stream: BoxStream, error: Exception) -> None:
        """The box takes no more; what it said before that still counts."""
        if not self.over and stream is self._stream:
            self._spoke()
        # Who pumps comes to the fault himself, behind what he has still to pass on.
        if not (self.over or self._pumping) and stream is self._stream:
            self.broken(error)

    async def end_body(self) -> None:
        stream = self._stream
        if self.over or stream is None:
            return
        last = self.exchange.end_body()
        self._marked_at = trio.current_time()
        if last:
            try:
                await stream.send_all(last)
            except (TunnelError, trio.ClosedResourceError) as error:
                self._sending_failed(stream, error)

    async def half_close(self) -> None:
        self._up_done = True
        stream = self._stream
        if stream is None or self.over:
            return
        try:
            await stream.send_eof()
        except (TunnelError, trio.ClosedResourceError) as error:
            self._sending_failed(stream, error)
        self._both_ended()

    # --- from the box -------------------------------------------------------------------------------------------------
    def _spoke(self) -> None:
        """Something came, or the stream ended or broke: called by the tunnel's reader, so nothing may leave here."""
        self.take_over(None)

    def take_over(self, data: bytes | None) -> None:
        """Pass on what is there; `data` was read before it."""
        stream = self._stream
        if stream is None:
            return
        try:
            while not (self.over or self._pumping or self._down_done) and stream is self._stream:
                if data is None:
                    data = stream.receive_nowait(_DOWN)
                if data is None:
                    return
                self._take(data)
                data = None
        except (TunnelError, trio.ClosedResourceError) as error:
            if stream is self._stream:
                self.broken(error)
        except trio.BrokenResourceError:
            self.client_left()
        except Exception as error:  # noqa: BLE001 - a bug here must end this exchange, not the tunnel
            self._lane.crashed(self, error)

    def _take(self, data: bytes) -> None:
        """Pass on what the box said. Raises trio.BrokenResourceError when the client is gone."""
        exchange = self.exchange
        try:
            if data:
                pieces = exchange.receive(data)
            else:
                exchange.receive_end()
                pieces = []
        except ExchangeError as error:
            self._fail(error)
            return
        out: list[Buffer] = []
        if not self._head_sent:
            if exchange.answer is None:
                return
            out.append(self._answered())
            if self.over:
                return
        if pieces:
            out += exchange.client_body(pieces)
            self._down += sum(map(len, pieces))
        complete = exchange.complete
        if complete and (last := exchange.client_end()):
            out.append(last)
        if out and len(out) > 1 and len(data) < 4096:
            out = [b"".join(out)]
        whole = self.client.write(out, last=complete) if out else True
        if not whole:
            self._pump()
        elif complete:
            self._done()
        elif not data and self.upgraded:
            self._box_ended()

    def _answered(self) -> bytes:
        """The head of the answer is whole: as the client gets it."""
        exchange = self.exchange
        self._head_sent = True
        self._head_at = trio.current_time()
        if self._lane.draining:  # the client is to ask elsewhere from now on
            exchange.request = exchange.request._replace(client_keep_alive=False)
        head = exchange.client_head(self._lane.cors_of(self._head))
        if exchange.upgraded:
            self.upgraded = True
            self.client.changed()
        elif self.client.ended and self.endless:
            self.client_left()
        return head

    def _box_ended(self) -> None:
        """The box half-closed an upgraded connection."""
        self._down_done = True
        self.client.send_eof()
        self._both_ended()

    def _both_ended(self) -> None:
        if self._up_done and self._down_done and not self.over:
            self._end("ok")
            self._drop(clean=True)
            self.client.finished(keep=False)

    def _pump(self) -> None:
        """Go on in a task that can wait for the client."""
        if not self._pumping:
            self._pumping = True
            if self._stream is not None:
                self._stream.listener = None
            self._lane.spawn(self._pumped)

    async def _pumped(self) -> None:
        stream = self._stream
        try:
            await self.client.flush()
            while not self.over and stream is not None and not self._down_done:
                if self.exchange.complete:
                    self._done()
                    return
                self._take(await stream.receive_some(_DOWN))
                await self.client.flush()
            if self.exchange.complete and not self.over:
                self._done()
        except (TunnelError, trio.ClosedResourceError) as error:
            if not self.over and stream is self._stream:
                self.broken(error)
        except trio.BrokenResourceError:
            self.client_left()

    def _done(self) -> None:
        """The answer is out, whole."""
        exchange = self.exchange
        keep = exchange.client_keep_alive
        self._end("ok")
        stream, self._stream = self._stream, None
        if stream is not None and self._line is not None:
            stream.listener = None
            if not exchange.request_done:
                stream.reset()  # the box must not take a part of the request for the whole
            else:
                self._line.give(stream, reusable=exchange.reusable)
        self.client.finished(keep=keep)

    # --- what goes wrong ----------------------------------------------------------------------------------------------
    def broken(self, error: Exception) -> None:
        """The stream was refused, reset or lost."""
        code = not_taken(error)
        if code is not None and not self.exchange.answered:
            self.sent = False
            if isinstance(error, GoingAway) and not self._up and self._move_on():  # it was never sent
                self._restart()
            else:
                self._fail(ProxyError(code, str(error)))
            return
        self._fail(self.exchange.reset_by_box())

    def _fail(self, error: ExchangeError) -> None:
        if self.over:
            return
        if error.code == "AGENT_UNREACHABLE" and not self._head_sent and self._may_try_again():
            self._restart()
            return
        if isinstance(error, ProxyError):
            self.end_with(error)
        elif not self._head_sent:  # the fault came with the head, of which the client has seen nothing
            self.end_with(ProxyError(error.code, str(error)))
        else:
            self.problem = f"{error.code}: {error}"
            self._end(CUT)
            self._drop()
            self.client.cut_when_flushed()

    def _may_try_again(self) -> bool:
        """A reused stream that ended unanswered: on a new one. A new one: if the device has a newer session by now."""
        if self.exchange.answered or self._line is None:
            return False
        if self._reused:
            self._line.unanswered()
            return self.exchange.may_retry(reused=True)
        return self.exchange.may_retry(reused=True) and self._move_on()

    def _move_on(self) -> bool:
        """Turn to a newer session of the device, once."""
        if self._moved_on or self._line is None:
            return False
        newer = self._lane.upstreams.reach(self.grant)
        if newer is None or newer.session == self._line.session:
            return False
        self._moved_on = True
        self._line = newer
        return True

    def _restart(self) -> None:
        """Make the exchange again, on a new stream."""
        self._drop()
        self.exchange.restart()
        self._fresh_only = True
        self._reused = False  # of the next stream: one that ends unanswered too is the last
        self._lane.spawn(self._again)

    async def _again(self) -> None:
        self._pumping = False
        await self.start()

    def end_with(self, error: ProxyError) -> None:
        if self.over:
            return
        self.problem = f"{error.code}: {error}"
        self._drop()
        if self._head_sent:
            self._end(CUT)
            self.client.cut()
            return
        self._end("refused")
        if error.code == "AGENT_UNREACHABLE" and self._line is not None and self._line.local_address:
            # Whoever is at the box knows then where to look
            error = ProxyError(error.code, str(error), details={"local_address": [self._line.local_address]})
        keep = self.exchange.request.client_keep_alive and self._request_read()
        self.client.refuse(error, keep=keep, head=self._head)

    def _request_read(self) -> bool:
        return not self.wants_body or self.exchange.request_done

    def client_left(self) -> None:
        if not self.over:
            self._end("client_left")
            self._drop()
            self.client.cut()

    def _drop(self, *, clean: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.listener = None
            if clean:
                stream.close_nowait()
            else:
                stream.reset()

    def _end(self, outcome: str) -> None:
        self.over = True
        self.outcome = outcome
        self._lane.ended(self)
