"""One answer of a box for the viewers at other daemons too: to who holds the box, another daemon is one more viewer.

The other daemon pulls from here as it would from the box and fans out to its own viewers, so that between two daemons
an endless answer goes once. Both ends of that: what the asking daemon says of its stream, and the place that it gets.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.http.messages import Refusal
from tunnel.daemon.relay.relay import Relay, RelayedStream
from tunnel.daemon.share.key import Key
from tunnel.daemon.share.pull import Source, Sources
from tunnel.daemon.share.view import SHOW_SECONDS, WAIT_SECONDS, NotShareable, Subscription
from tunnel.http import LIMITS
from tunnel.mux.errors import StreamReset
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream

_HEAD_SECONDS: Final = 10.0
_HEAD_BYTES: Final = 2 * LIMITS.head_bytes  # as it was written for the box
_LOOK_SECONDS: Final = 0.25
_OPEN_SECONDS: Final = 10.0
_AT_WORK: Final = b"HTTP/1.1 102 Processing\r\n\r\n"


class RemoteSubscription:
    """A place among the viewers of an answer, or at the head of those to come. `carry` it, or `reset` it."""

    def __init__(self, shares: Sources, switch: Relay, session: TunnelSession, pull: Source) -> None:
        self.shares = shares
        self.switch = switch
        self.session = session
        self.pull = pull
        self.stream: Stream | Subscription
        """The box's for who is the first and begins the pull, else the viewer's."""

    @classmethod
    async def at(
        cls, shares: Sources, switch: Relay, session: TunnelSession, key: Key, deadline: float
    ) -> RemoteSubscription:
        """Join those who watch, or open a stream for those to come. Raises Refusal as `Relay.open` does."""
        pull = shares.find(key)
        if pull is not None:
            lent = cls(shares, switch, session, pull)
            lent.stream = pull.join()
            return lent
        lent = cls(shares, switch, session, shares.begin(key))
        try:
            lent.stream = await switch.open(session, deadline)
        except BaseException:
            lent.pull.give_up()
            raise
        return lent

    def reset(self) -> None:
        """Leave; who waited for us to begin asks for himself."""
        self.stream.reset()
        if isinstance(self.stream, Stream):
            self.pull.give_up()

    async def carry(self, raw: ByteStream, first: bytes, request_id: str) -> None:
        """Answer the other daemon's request to the end. `first` was read behind its call's head."""
        await self.switch.run(RemoteSubscriber(self, raw, request_id), first)


class RemoteSubscriber(RelayedStream):
    """Another daemon that watches; a forward as any other if there is nothing to watch."""

    __slots__ = ("_alone", "_head", "_lent")

    def __init__(self, lent: RemoteSubscription, raw: ByteStream, request_id: str) -> None:
        super().__init__(lent.session, lent.stream, raw, request_id, lent.switch.tell)
        self._lent = lent
        self._head = b""
        self._alone: NotShareable | None = None

    def _spoke(self) -> None:
        """The pull has news: a stream that is ours from now on must be so at once, whatever ends us meanwhile."""
        alone = self.stream.alone if isinstance(self.stream, Subscription) else None
        if alone is not None:
            self._alone = alone
            if alone.stream is not None:
                self.stream = alone.stream

    async def _both(self, first: bytes) -> None:
        await self._guard(self._take_place, first)
        if isinstance(self.stream, Subscription) and not self.outcome:
            await self._watch(self.stream)
        if self._alone is not None and not self.outcome:
            await self._guard(self._go_alone)
            if not self.outcome:
                await super()._both(b"")

    async def _take_place(self, first: bytes) -> None:
        """Read the request; the first viewer's goes to the box. Raises TunnelError, trio.BrokenResourceError."""
        lent, stream = self._lent, self.stream
        try:
            with trio.move_on_after(_HEAD_SECONDS):
                self._head = await self._read_head(first)
            if not self._head.startswith(lent.pull.key[3] + b"\r\n"):
                raise trio.BrokenResourceError("another request than was said, or none")
            self._looked_at(self._head)
            self.up += len(self._head)
            if isinstance(stream, Stream):
                self.stream = view = lent.pull.carry(stream)
                view.listener = self._spoke
                if view.send_nowait(self._head) < len(self._head):
                    raise StreamReset("a new stream that takes no head")
        finally:
            if self.stream is stream and isinstance(stream, Stream):
                lent.pull.give_up()

    async def _read_head(self, got: bytes) -> bytes:
        while b"\r\n\r\n" not in got:
            data = await self.raw.receive_some()
            got += data
            if not data or len(got) > _HEAD_BYTES:
                raise trio.BrokenResourceError("no head")
        return got

    async def _watch(self, view: Subscription) -> None:
        """Pass on what a viewer gets, until it ends, the other daemon leaves, or there is nothing to share."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, self._notice_leaving)
            nursery.start_soon(self._guard, partial(self._be_patient, view, nursery.cancel_scope))
            await self._guard(self._show)
            nursery.cancel_scope.cancel()

    async def _show(self) -> None:
        try:
            await self._carry_down()
        except NotShareable as alone:
            self._alone = alone

    async def _notice_leaving(self) -> None:
        await self.raw.receive_some(1)  # it has no more to say, so it left
        self.end("client_reset")

    async def _be_patient(self, view: Subscription, scope: trio.CancelScope) -> None:
        """How long a viewer waits for the head, as at the daemon that he came to (`SharedExchange.look`)."""
        pull, began = self._lent.pull, trio.current_time()
        told = 0
        while True:
            await trio.sleep(_LOOK_SECONDS)
            if not view.waiting:
                return
            if view.interim > told:  # the other daemon waits for a head too: the box is at work
                told = view.interim
                if self.raw.send_nowait(_AT_WORK) < len(_AT_WORK):
                    raise trio.BrokenResourceError("it takes nothing")
            waited = trio.current_time() - began
            if view.undecided and waited >= SHOW_SECONDS:
                view.believe()
            elif waited >= WAIT_SECONDS and not view.leads and not self._lent.shares.known(pull.key):
                self._alone = self._alone or NotShareable(None, b"")
                scope.cancel()

    async def _go_alone(self) -> None:
        """The answer is nobody's to share: go on with the stream that it comes on, or with one of our own."""
        alone = self._alone
        if alone is not None and alone.stream is not None:
            if alone.data:
                self.ledger.turned()
                self.ledger.answered_at = trio.current_time()
                self.down += len(alone.data)
                await self.raw.send_all(alone.data)
            return
        self.stream.reset()
        try:
            self.stream = await self._lent.switch.open(self.session, trio.current_time() + _OPEN_SECONDS)
        except Refusal:
            self.end("agent_reset")
            return
        await self.stream.send_all(self._head)
