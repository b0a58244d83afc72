"""What a viewer of a shared answer reads from instead of a stream to the box.

Driven by the tunnel's reader, as the answer itself is (`share.pull`). It does not know clients.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio

from tunnel.daemon.upstream.interfaces import BoxStream
from tunnel.http.fanout import Viewer
from tunnel.mux.errors import StreamReset, TunnelError
from tunnel.protocol.inbound import Bytes

SHOW_SECONDS: Final = 0.5
"""How long the head of an endless answer waits for its first bytes, which show whether it can be shared."""
WAIT_SECONDS: Final = 5.0
"""How long one waits for the answer to another of which nobody knows yet whether it is endless, or plain and slow."""


class NotShareable(Exception):
    """The answer is not shared. `stream` is the one it comes on, for the one viewer who gets it, with the `data` that
    came already; the others, without one, ask for themselves."""

    def __init__(self, stream: BoxStream | None, data: bytes) -> None:
        super().__init__("not shared")
        self.stream = stream
        self.data = data


class SourceFeed(Protocol):
    """What a viewer reads from: one answer of a box for many."""

    @property
    def head(self) -> bytes | None:
        """The box's raw head, once the answer is known to be endless."""

    @property
    def broken(self) -> TunnelError | None:
        """How it broke off."""

    @property
    def undecided(self) -> bool:
        """A head has come, and not enough of the body to see whether it can be shared."""

    @property
    def interim(self) -> int:
        """Interim answers that came."""

    @property
    def leader(self) -> Subscription | None:
        """Whose request went to the box."""

    def believe(self) -> None:
        """Take it for endless: its body lets one wait."""

    def taken(self) -> None:
        """A viewer has taken what was kept for it."""

    def leave(self, view: Subscription) -> None:
        """That one is gone."""

    def send_nowait(self, data: Bytes) -> int:
        """The leader's request for the box."""


class Subscription:
    """A viewer's side, as a stream to the box: the head, then the bytes as they come, of whole units."""

    notifies: Final = True
    __slots__ = ("_changed", "_headed", "_left", "_pull", "alone", "listener", "viewer")

    def __init__(self, pull: SourceFeed) -> None:
        self._pull = pull
        self._changed = trio.lowlevel.ParkingLot()
        self._headed = False
        self._left = False
        self.alone: NotShareable | None = None
        self.viewer: Viewer | None = None
        self.listener: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"<Subscription {self.viewer!r} of {self._pull!r}>"

    @property
    def waiting(self) -> bool:
        """No head has come yet."""
        return self.viewer is None

    @property
    def undecided(self) -> bool:
        """The head has come, and says what the body has yet to show."""
        return self._pull.undecided

    @property
    def interim(self) -> int:
        """How many interim answers came, which nobody but the pull itself has seen."""
        return self._pull.interim

    def believe(self) -> None:
        """Take the head at its word."""
        self._pull.believe()

    @property
    def leads(self) -> bool:
        """The answer is this viewer's if it is not shared."""
        return self._pull.leader is self

    def send_nowait(self, data: Bytes) -> int:
        """The request's head: the leader's goes out, the others' are the same."""
        return self._pull.send_nowait(data) if self.leads else len(data)

    async def send_all(self, data: Bytes) -> None:
        """As `send_nowait`: a request without a body has one piece."""
        await trio.lowlevel.checkpoint()
        self.send_nowait(data)

    async def send_eof(self) -> None:
        """Nothing: the box's end of the request is not the viewers'."""
        await trio.lowlevel.checkpoint()

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | None:  # noqa: ARG002 - as they came, uncut
        """What this viewer gets next. Raises Alone, and TunnelError when the answer broke off."""
        if self.alone is not None:
            raise self.alone
        if self._left:
            raise trio.ClosedResourceError("this viewer has left")
        pull = self._pull
        if pull.broken is not None:
            raise pull.broken.with_traceback(None)
        if self.viewer is None or pull.head is None:
            return None
        if not self._headed:
            self._headed = True
            return pull.head
        data = self.viewer.take()
        if data is not None and self.viewer.lost:
            raise StreamReset("too far behind an answer of which nothing can be left out")
        if data:
            pull.taken()
        return data

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The same, waiting for it."""
        while True:
            data = self.receive_nowait(max_bytes)
            if data is not None:
                await trio.lowlevel.checkpoint()
                return data
            await self._changed.park()

    def wake(self) -> None:
        """There may be something to receive."""
        if self.listener is not None:
            self.listener()
        self._changed.unpark_all()

    def reset(self) -> None:
        """Leave; the others go on."""
        if not self._left:
            self._left = True
            self._pull.leave(self)
            self._changed.unpark_all()

    def close_nowait(self) -> None:
        """Leave."""
        self.reset()
