"""A viewer's exchange on the fast lane: as any other, but that its stream may be one of many on the same answer."""

from __future__ import annotations

import trio

from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.lane.exchange import LaneExchange
from tunnel.daemon.lane.interfaces import Downstream, ExchangeContext
from tunnel.daemon.share.key import Key, share_of
from tunnel.daemon.share.pull import Sources
from tunnel.daemon.share.view import SHOW_SECONDS, WAIT_SECONDS, NotShareable, Subscription
from tunnel.daemon.upstream.interfaces import BoxStream, Upstream
from tunnel.daemon.upstream.remote import PeerUpstream
from tunnel.http import Exchange, ExchangeError, RequestHead


class SharedExchange(LaneExchange):
    """A GET that may be a viewer's."""

    __slots__ = ("_alone", "_key", "_shares", "_view")

    def __init__(
        self,
        shares: Sources,
        lane: ExchangeContext,
        key: Key,
        client: Downstream,
        head: RequestHead,
        exchange: Exchange,
        grant: Grant,
        request_id: str,
    ) -> None:
        super().__init__(lane, client, head, exchange, grant, request_id)
        self._shares = shares
        self._key = key
        self._view: Subscription | None = None
        self._alone = False

    async def start(self) -> None:
        """Join the others, or be the first."""
        if self._alone:
            await super().start()
            return
        pull = self._shares.find(self._key)
        if pull is not None:
            self._view = pull.join()
            self._begin(self._view)
            self._spoke()
            return
        pull = self._shares.begin(self._key)
        try:
            stream = self._idle_stream()
            if stream is None:
                stream = await self._new_stream()
        except ExchangeError as error:
            pull.give_up()
            self._fail(error)
            return
        except BaseException:
            pull.give_up()
            raise
        if self.over:
            stream.reset()
            pull.give_up()
            return
        self._view = pull.carry(stream)
        self._begin(self._view)

    def _idle_stream(self) -> BoxStream | None:
        if self._line is None:
            self._line = self._lane.upstreams.reach(self.grant)
        if isinstance(self._line, PeerUpstream) and self._may_join():
            return None  # who holds the box is told on a stream of its own that others may watch the same
        return super()._idle_stream()

    async def _open(self, line: Upstream) -> BoxStream:
        if isinstance(line, PeerUpstream) and self._may_join():
            return await line.open(self.request_id, share_of(self._key))
        return await super()._open(line)

    def _may_join(self) -> bool:
        return not self._alone and self._shares.may_be_endless(self._key)

    def look(self, now: float) -> None:
        view = self._view
        if view is not None and view is self._stream and view.waiting:
            waited = now - self.started
            if view.undecided and waited >= SHOW_SECONDS:
                view.believe()
                return
            if not view.leads and waited >= WAIT_SECONDS and not self._shares.known(self._key):
                self._go_alone()
                return
        super().look(now)

    def _interim(self) -> int:
        view = self._view
        return super()._interim() + (view.interim if view is not None else 0)

    def _spoke(self) -> None:
        view = self._view
        if view is None or view is not self._stream or view.alone is None:
            super()._spoke()
            return
        try:
            self._told(view.alone)
        except trio.BrokenResourceError:
            self.client_left()
        except Exception as error:  # noqa: BLE001 - as in the other `_spoke`: it must not end the tunnel
            self._lane.crashed(self, error)

    def _told(self, alone: NotShareable) -> None:
        """The answer is not shared."""
        if alone.stream is None:
            self._go_alone()
            return
        self._alone = True
        self._view = None
        self._stream = stream = alone.stream
        if not stream.notifies:
            if alone.data:
                self._take(alone.data)
            if not self.over and stream is self._stream:
                self._pump()
            return
        stream.listener = self._spoke
        if alone.data:
            self._take(alone.data)
        self._spoke()

    def _go_alone(self) -> None:
        self._alone = True
        self._drop()
        self._view = None
        self.exchange.restart()
        self._lane.spawn(self._again)
