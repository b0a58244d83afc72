"""A client's connection on the fast lane: heads in, answers out, one exchange at a time, in order.

One task a connection, which reads. Answers are written by whoever has them, without a hop to this task; only where the
client is slower than the box does a second task wait for it. It does not know boxes, tunnels or who may do what.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled

from tunnel.contract import TUNNEL_PATH
from tunnel.daemon.lane.client_socket import ClientSocket
from tunnel.daemon.lane.head_cache import HeadKey
from tunnel.daemon.lane.interfaces import ClientContext, ClientExchange, InFlight
from tunnel.daemon.lane.migration import Migration, give
from tunnel.http import Buffer, FramingError, ProxyError, RequestHead, RequestParser
from tunnel.net.sockets import ByteStream

IDLE_SECONDS: Final = 75.0
"""A kept connection without a request. As browsers and proxies expect it."""
LINGER_SECONDS: Final = 2.0
"""What a client still sends after an answer that ends the connection is read away so long, so that it can read that."""
_PIECE: Final = 16 * 1024  # of a connection that rests: an ordinary request and more
_PIECES: Final = 64  # of a body, each passed on by itself
_AHEAD: Final = 64 * 1024  # bytes of pipelined requests that are held

Agents = tuple[RequestHead, bytes]
"""The head of an agent's request on a connection that was a client's, and what was read behind it."""
_SLOW_SECONDS: Final = 1.0  # a head takes a round trip
_AGENTS: Final = TUNNEL_PATH.encode()

IDLE, HEAD, RUN, LINGER = range(4)


class Client(ClientSocket):
    """One connection. `run` is the exchange that is under way."""

    __slots__ = (
        "_descriptor", "_given", "_keep", "_lane", "_parser", "_quick", "_rester", "_waiter", "address", "ended",
        "forwarded", "noted", "phase", "proved", "reading", "run", "scope", "since", "trusted", "wander",
    )  # fmt: skip

    def __init__(self, lane: ClientContext, raw: ByteStream, address: str, turns: int = 0) -> None:
        super().__init__(raw)
        self._lane = lane
        self.wander = Migration(turns)
        self.address = address
        self.trusted = lane.proxies.trusts(address)
        self.forwarded = address.encode("latin-1")
        self.run: InFlight | None = None
        self.noted: HeadKey | None = None
        self.ended = False  # it sends no more, and waits for its answer
        self.proved = False  # a request of it was allowed
        self.phase = HEAD
        self.since = trio.current_time()  # of the phase
        self.reading = True  # False: nobody reads the socket now, so its end has to be asked for
        self.scope = trio.CancelScope()
        self._parser = RequestParser()
        self._keep = False
        self._waiter: Task | None = None  # of `wait_change`
        self._rester: Task | None = None  # of `_rest`
        self._given: bytes | None = b""  # what it is woken with; None: the connection broke
        self._descriptor = self.sock.fileno()
        self._quick = lane.fast_path(self)

    def __repr__(self) -> str:
        return f"<Client {self.address} {('idle', 'head', 'run', 'linger')[self.phase]} {self.run!r}>"

    # --- reading ------------------------------------------------------------------------------------------------------
    async def serve(self, head: RequestHead | None, rest: bytes) -> Agents | None:
        """Carry the connection to its end; `head` is the first request's, `rest` what was read behind it.

        An agent's request ends it too: its head and what is behind it are returned, and the socket is left open.
        """
        agents: Agents | None = None
        try:
            with self.scope:
                while head is not None:
                    if head.target.partition(b"?")[0] == _AGENTS:
                        agents = head, rest
                        break
                    left = await self._request(head, rest)
                    if left is None:
                        await self._linger()
                        break
                    head, rest = await self._next(left)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it went away, or we reset it
        finally:
            if self.run is not None and not self.run.over:
                self.run.client_left()
            if agents is None:
                self.close()
        return agents

    async def _rest(self) -> bytes:
        """The next bytes, b"" at the end. Meanwhile ordinary requests are served as they come, without this task."""
        poller = self._lane.poller
        if poller is None:
            return await self.read()
        if self.sock.fileno() < 0:
            raise trio.ClosedResourceError("this connection was closed")
        poller.add(self._descriptor, self._readable)
        self._rester = current_task()  # not before: who is woken must be asleep

        def abort(_: object) -> Abort:
            self._stop_resting()
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        data = self._given
        if self.sock.fileno() < 0:
            raise trio.ClosedResourceError("this connection was closed")
        if data is None:
            raise trio.BrokenResourceError("the connection broke")
        self._given = b""
        return data

    def _readable(self) -> None:
        """Called by the poller."""
        try:
            data = self.sock.recv(_PIECE)
        except BlockingIOError:
            return
        except OSError:
            self._given = None
        else:
            if data and self.phase == IDLE and self._quick.begin(data):
                return
            self._given = data
        self._wake()

    def _stop_resting(self) -> Task | None:
        task, self._rester = self._rester, None
        if task is not None and self._lane.poller is not None:
            self._lane.poller.remove(self._descriptor)
        return task

    def _wake(self) -> None:
        task = self._stop_resting()
        if task is not None:
            reschedule(task)

    async def _next(self, data: bytes) -> tuple[RequestHead | None, bytes]:
        """The next head and what is behind it; None: no more requests."""
        parser = self._parser = RequestParser()
        self._enter(HEAD if data else IDLE)
        while True:
            if data:
                noted, self.noted = self.noted, None
                whole = noted is not None and noted.data is data and not parser.started
                try:
                    head = parser.feed(data)
                except ProxyError as error:
                    self.refuse(error, keep=False)
                    await self._linger()
                    return None, b""
                if head is not None:
                    if whole and noted is not None and noted.size + len(parser.rest) == len(data):
                        self.noted = noted  # it was this head's bytes
                    return head, parser.rest
            if self._lane.draining and not parser.started:
                return None, b""
            data = await self.read()
            if self.phase == IDLE:
                self._enter(HEAD)
            elif self.phase == LINGER:  # it took too long, and was told so
                await self._linger()
                data = b""
            if not data:
                return None, b""

    async def _request(self, head: RequestHead, rest: bytes) -> bytes | None:
        """One exchange; what was read behind it, None if the connection ends with it, or goes on elsewhere."""
        self._enter(RUN)
        self._keep = self.ended = False
        hands = self._lane.hands
        if hands is not None and not self._lane.draining and give(self, hands, head, rest):
            return None
        run = self._lane.cached(self, head)
        self.noted = None
        if run is None:
            run = await self._lane.begin(self, head)
        self.run = run
        if run is None:
            return rest if self._keep else None
        await run.start()
        if run.wants_body:
            left = await self._body(run, rest)
            if left is None:
                return None
            rest = left
        return await self._to_end(run, rest)

    async def _body(self, run: ClientExchange, data: bytes) -> bytes | None:
        """Read the request's body and pass it on; what was read behind it. None: there is no next request."""
        reader = run.body_reader()
        run.expect_body()
        while not run.over:
            try:
                pieces = reader.feed(data) if data else []
            except FramingError as error:
                run.end_with(ProxyError("BAD_REQUEST", str(error)))
                return None
            if len(pieces) > _PIECES:  # a client that sends chunks of a byte
                pieces = [b"".join(pieces)]
            if pieces and not await self._send_body(run, pieces):
                return None
            if reader.done:
                await run.end_body()
                return bytes(reader.rest)
            data = await self.read()
            if not data:
                run.client_left()
                return None
        return None

    async def _send_body(self, run: ClientExchange, pieces: list[Buffer]) -> bool:
        self.reading = False
        try:
            return await run.send_body(pieces)
        finally:
            self.reading = True

    async def _to_end(self, run: ClientExchange, rest: bytes) -> bytes | None:
        """Wait for the exchange to be over, watching for the client's end; None: the connection ends with it.

        What is read behind it is returned. Requests that were served while this task rested are over by then as well.
        """
        while self._busy():
            if run.upgraded:
                await self._upgraded(run, rest)
                return None
            if self.ended or len(rest) >= _AHEAD or (rest and run.request_done):
                await self.wait_change()
                continue
            data = await self._rest()
            if not data:
                self._sends_no_more()
            rest = rest + data if rest else data
        return rest if self._keep else None

    def _sends_no_more(self) -> None:
        """The client ended its side. Whoever has asked for all it wanted may still wait for the answer, unless that is
        one without an end; on an upgraded connection it is a half-close, and is read again."""
        run = self.run
        if run is None or run.over or run.upgraded:
            return
        if run.request_done and not run.endless:
            self.ended = True
        else:
            run.client_left()

    def _busy(self) -> bool:
        """Whether an exchange is under way. Asked of `run` anew each time: another may have taken its place."""
        return self.run is not None and not self.run.over

    async def _upgraded(self, run: ClientExchange, data: bytes) -> None:
        """Bytes as they come, until the client's end; then until the box's."""
        while not run.over:
            if data and not await self._send_body(run, [data]):
                return
            data = await self.read()
            if not data:
                break
        if not run.over:
            await run.half_close()
            while not run.over:
                await self.wait_change()

    async def _linger(self) -> None:
        """Read away what still comes, until the client ends too; closing at once could destroy the answer."""
        if self.raw.sock.fileno() < 0:
            return
        self._enter(LINGER)
        while await self.read():
            pass

    async def wait_change(self) -> None:
        """Return when the exchange is over, or has become a switched protocol."""
        self.reading = False

        def abort(_: object) -> Abort:
            self._waiter = None
            return Abort.SUCCEEDED

        self._waiter = current_task()
        try:
            await wait_task_rescheduled(abort)
        finally:
            self.reading = True

    def changed(self) -> None:
        """Wake the reading task if it waits for the exchange, or if there is nothing more to wait for."""
        if self.phase == LINGER or self.sock.fileno() < 0:
            self._wake()
        task = self._waiter
        if task is not None:
            self._waiter = None
            reschedule(task)

    def _enter(self, phase: int) -> None:
        self.phase = phase
        self.since = trio.current_time()

    # --- writing ------------------------------------------------------------------------------------------------------
    def refuse(self, error: ProxyError, *, keep: bool, head: RequestHead | None = None) -> None:
        """Tell an error in the envelope: the whole answer."""
        self.answer(self._lane.told(error, head, keep=keep), keep=keep)

    def answer(self, data: bytes, *, keep: bool) -> None:
        """Write a whole small answer and be done with the request."""
        try:
            self.write([data])
        except trio.BrokenResourceError:
            self.cut()
            return
        if self._unsent:
            self._lane.spawn(self._flush_and_end)
            return
        self.finished(keep=keep)

    async def _flush_and_end(self) -> None:
        try:
            await self.flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.cut()
        else:
            self.finished(keep=False)

    def served_by(self, quick: InFlight, now: float) -> None:
        """An ordinary request is under way; the reading task goes on resting."""
        self.run = quick
        self.phase = RUN
        self.since = now

    def served(self, now: float) -> None:
        """The ordinary answer is out."""
        if self._rester is None or self._lane.draining:
            self.finished(keep=True)
        else:
            self._keep = True
            self.phase = IDLE
            self.since = now

    def finished(self, *, keep: bool) -> None:
        """The answer is out. Without `keep` our side ends; the reading task waits for the client's."""
        self._keep = keep and not self._lane.draining
        if self._keep:
            if self._rester is not None:
                self._enter(IDLE)
        elif self.sock.fileno() >= 0:
            self._enter(LINGER)
            try:
                self.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()  # the client is gone already
        self.changed()

    def cut(self) -> None:
        """Reset the connection: what was written must not look complete."""
        self._keep = False
        self._wake()
        self.raw.reset()
        self.changed()

    def cut_when_flushed(self) -> None:
        """Reset the connection as the box did: what was written arrives before that."""
        try:
            kept = ByteStream(self.sock.dup())  # so that closing this one ends nothing
        except OSError:
            self.cut()  # no descriptor is left, or it was closed
            return
        self._keep = False
        self.close()
        self._lane.reset_when_flushed(kept, self.address)
        self.changed()

    def close(self) -> None:
        """Close the connection; whoever reads it is told."""
        self._wake()
        self.raw.close()

    def idle_since(self) -> float | None:
        """Since when it waits for a request, or for the rest of a slow head; None: it is at work."""
        if self.phase == IDLE:
            return self.since
        slow = self.phase == HEAD and trio.current_time() - self.since >= _SLOW_SECONDS
        return self.since if slow else None

    # --- the watchdog -------------------------------------------------------------------------------------------------
    def look(self, now: float) -> None:
        """End what takes too long. Called about twice a second."""
        waited = now - self.since
        if self.phase == RUN:
            if self.run is not None and not self.run.over:
                if not self.reading and self.gone(half=not (self.run.upgraded or self.ended)):
                    self.run.client_left()
                else:
                    self.run.look(now)
        elif self.phase == IDLE:
            if waited > IDLE_SECONDS or self._lane.draining:
                self.close()
        elif self.phase == HEAD:
            if waited > self._lane.head_seconds:
                self.refuse(ProxyError("REQUEST_TIMEOUT", "a head that does not come"), keep=False)
        elif waited > LINGER_SECONDS:
            self.close()


def push_out(clients: Iterable[Client], limit: int, now: float) -> None:
    """Let no more than `limit` connections be slow about a head; the oldest go first, as they do where all begin."""
    slow = [client for client in clients if client.phase == HEAD and now - client.since >= _SLOW_SECONDS]
    if len(slow) > limit:
        for client in sorted(slow, key=lambda one: one.since)[: len(slow) - limit]:
            client.refuse(ProxyError("REQUEST_TIMEOUT", "a head that is slow while many are"), keep=False)
