"""The one stream behind all viewers of an endless answer. What each of them reads from is in `share.view`.

Driven by the tunnel's reader, as all of the fast lane: no task wakes for a frame. It does not know clients.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from enum import Enum
from typing import Any, Final, Protocol

import trio

from tunnel.daemon.share.key import Key
from tunnel.daemon.share.view import NotShareable, Subscription
from tunnel.daemon.upstream.interfaces import BoxStream
from tunnel.http import LIMITS, NO_LENGTH, AnswerHead, ExchangeError, ResponseReader
from tunnel.http.fanout import Fanout
from tunnel.http.parts import Cutter, EventCutter, PartCutter, PartError, boundary_of, is_event_stream
from tunnel.http.response import final_head, head_end
from tunnel.mux.errors import StreamReset, TunnelError
from tunnel.protocol.inbound import Bytes

_DOWN: Final = 128 * 1024
_EVENTS: Final = 256
_EVENT_BYTES: Final = 1 << 20
_AHEAD: Final = 2 * _DOWN  # bytes that wait for the quickest viewer of what is not shared any more
_CODING: Final = re.compile(rb"\r?\ntransfer-encoding[ \t]*:[^\r\n]*", re.IGNORECASE)


class ShareVerdict(Enum):
    """What the head of an answer says of it."""

    ENDLESS = 1
    PLAIN = 2
    TROUBLE = 3
    """An error, or no head at all: it says nothing about the path."""


class SourceOwner(Protocol):
    """All shared streams, as one of them sees them."""

    views_total: int

    def spawn(self, work: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run in the background what has to wait for a source."""

    @property
    def events(self) -> bool:
        """Whether event streams are shared."""

    def settled(self, pull: Source, verdict: ShareVerdict) -> None:
        """The head of its answer is known."""

    def over(self, pull: Source) -> None:
        """It takes no viewers any more."""

    def unshare(self, pull: Source, why: str) -> None:
        """Nobody can step in any more."""

    def hold(self, pull: Source, size: int) -> None:
        """So many bytes of it are kept for slow viewers."""

    def release(self, pull: Source) -> None:
        """No bytes of it are kept any more."""

    def crashed(self, error: Exception) -> None:
        """A bug of ours."""


class Source:
    """One answer of a box for many. Made before its stream is open, so that who comes meanwhile waits for it."""

    __slots__ = (
        "_boundary", "_cutter", "_fanout", "_first", "_paused", "_raw", "_reader", "_shares", "_stream", "_taking",
        "broken", "head", "key", "leader", "over", "views",
    )  # fmt: skip

    def __init__(self, shares: SourceOwner, key: Key) -> None:
        self._shares = shares
        self.key = key
        self.views: dict[Subscription, None] = {}  # in the order of coming
        self.leader: Subscription | None = None
        self.head: bytes | None = None
        """The box's raw head for each viewer, once the answer is known to be endless."""
        self.over = False
        self.broken: TunnelError | None = None
        self._stream: BoxStream | None = None
        self._reader = ResponseReader(b"GET")
        self._raw = bytearray()
        self._cutter: Cutter | None = None
        self._fanout: Fanout | None = None
        self._taking = False
        self._paused: trio.Event | None = None  # set when bytes are wanted again
        self._boundary = b""
        self._first = b""  # of the body, until it has shown its boundary

    def __repr__(self) -> str:
        state = "over" if self.over else "waiting" if self.head is None else "running"
        return f"<Source {state} views={len(self.views)} {self._fanout!r}>"

    @property
    def skipped(self) -> int:
        """Units that viewers missed."""
        return 0 if self._fanout is None else self._fanout.skipped

    @property
    def interim(self) -> int:
        """How many interim answers of the box came; none of them is passed on."""
        return self._reader.interim

    def join(self) -> Subscription:
        """One more viewer."""
        view = Subscription(self)
        self.views[view] = None
        if self._fanout is not None:
            self._shares.views_total += 1
            view.viewer = self._fanout.add()
        return view

    def carry(self, stream: BoxStream) -> Subscription:
        """The stream is open: its request is sent by the viewer who gets the answer if it is not shared."""
        self._stream = stream
        self.leader = self.join()
        if not stream.notifies:
            self._shares.spawn(self._pump)
        else:
            stream.listener = self.spoke
        return self.leader

    def give_up(self) -> None:
        """There is no stream: everybody asks for himself."""
        self._settle(ShareVerdict.TROUBLE)

    def leave(self, view: Subscription) -> None:
        """A viewer is gone; with the last one the pull ends."""
        if view not in self.views:
            return
        del self.views[view]
        if self._fanout is not None and view.viewer is not None:
            self._fanout.remove(view.viewer)
            self.taken()
        if view is self.leader:
            self.leader = None
        if not self.views:
            self._shares.release(self)
        # Without a stream yet its leader is still coming, and waits for nobody.
        if not self.views and not self.over and self._stream is not None:
            self._end()
            self._drop()

    # --- from the box -------------------------------------------------------------------------------------------------
    def spoke(self) -> None:
        """Something came: called by the tunnel's reader. Neither waits nor raises."""
        if self._taking:
            return
        stream = self._stream
        self._taking = True
        try:
            while stream is not None and stream is self._stream and not self._enough():
                data = stream.receive_nowait(_DOWN)
                if data is None:
                    return
                self._take(data)
        except (TunnelError, trio.ClosedResourceError) as error:
            self._broke(error)
        except Exception as error:  # noqa: BLE001 - a bug here must end this answer, not the tunnel
            self._shares.crashed(error)
            self._broke(error)
        finally:
            self._taking = False

    async def _pump(self) -> None:
        stream = self._stream
        try:
            while stream is not None and stream is self._stream:
                if self._enough() and self._paused is not None:
                    await self._paused.wait()
                    continue
                self._take(await stream.receive_some(_DOWN))
        except (TunnelError, trio.ClosedResourceError) as error:
            self._broke(error)

    def _enough(self) -> bool:
        """Whether no more is to be asked of the box for now: each viewer has to take all that comes, and none does."""
        fanout = self._fanout
        if fanout is None or fanout.shared or fanout.behind < _AHEAD:
            return False
        if self._paused is None:
            self._paused = trio.Event()
        return True

    def taken(self) -> None:
        """A viewer took something, or left: go on if that was waited for."""
        if self._paused is not None and not self._enough():
            paused, self._paused = self._paused, None
            paused.set()
            if self._stream is not None and self._stream.notifies:
                # Not from in here: who takes is about to pass on what it took.
                self._shares.spawn(self._go_on)

    async def _go_on(self) -> None:
        await trio.lowlevel.checkpoint()
        self.spoke()

    def _take(self, data: bytes) -> None:
        if self.head is None:
            self._raw += data
        if not data and self.head is None:
            self._settle(ShareVerdict.TROUBLE)  # who gets the stream meets its end
            return
        interim = self._reader.interim
        try:
            pieces = self._reader.receive(data) if data else []
            if not data:
                self._reader.receive_end()
        except ExchangeError as error:
            self._broke(StreamReset(str(error)))
            return
        if self.head is None and self._reader.interim > interim:
            del self._raw[: final_head(self._raw)]
        head = self._reader.head
        if head is None:
            return
        body = b"".join(pieces)
        if self.head is None:
            verdict = ShareVerdict.ENDLESS if self.undecided else self._judge(head)
            self._first += body
            body = self._first
            shown = verdict is ShareVerdict.ENDLESS and _begins(body, self._boundary)
            if shown is None and not self._reader.complete:
                return  # a few more bytes tell
            if not shown or self._doubts(body):
                self._settle(ShareVerdict.PLAIN if verdict is ShareVerdict.ENDLESS else verdict)
                return
            self._first = b""
            self._start()
        self._share(body)

    @property
    def undecided(self) -> bool:
        """The answer says that it is an endless one, and has yet to show it."""
        return self.head is None and self._cutter is not None and not self.over

    def believe(self) -> None:
        """Wait no longer for the boundary: a camera that is slow to show its first frame is one all the same."""
        if self.undecided:
            body, self._first = self._first, b""
            self._start()
            self._share(body)

    def _judge(self, head: AnswerHead) -> ShareVerdict:
        if head.status != 200:
            return ShareVerdict.TROUBLE if head.status >= 300 else ShareVerdict.PLAIN
        said = {name.lower(): value for name, value in head.fields}
        kind = said.get(b"content-type", b"")
        if head.length != NO_LENGTH or said.get(b"content-encoding", b"identity").strip() != b"identity":
            return ShareVerdict.PLAIN
        boundary = boundary_of(kind)
        if boundary is not None:
            self._boundary = boundary
            self._cutter = PartCutter(boundary)
            self._fanout = Fanout()
            return ShareVerdict.ENDLESS
        if self._shares.events and is_event_stream(kind):
            self._cutter = EventCutter()
            self._fanout = Fanout(units=_EVENTS, size=_EVENT_BYTES, replay=False)
            return ShareVerdict.ENDLESS
        return ShareVerdict.PLAIN

    def _doubts(self, body: bytes) -> bool:
        """Whether its first bytes show already that nobody could step in."""
        cutter = PartCutter(self._boundary) if self._boundary else EventCutter()
        cutter.feed(body)
        return bool(cutter.doubt)

    def _start(self) -> None:
        """The answer is an endless one: everybody gets its head."""
        self.head = _head_of(bytes(self._raw))
        self._raw.clear()
        self.leader = None
        self._shares.settled(self, ShareVerdict.ENDLESS)
        self._shares.views_total += len(self.views)
        for view in self.views:
            if self._fanout is not None:
                view.viewer = self._fanout.add()

    def _share(self, body: bytes) -> None:
        fanout, cutter = self._fanout, self._cutter
        if fanout is None or cutter is None:
            return
        if fanout.shared:
            seams = cutter.feed(body)
            fanout.feed(body, seams, cutter.whole)
            if cutter.doubt:
                fanout.share_no_more()
                self._shares.unshare(self, cutter.doubt)
        else:
            fanout.feed(body)
        self._shares.hold(self, fanout.held)
        if self.broken is not None:
            return
        if self._reader.complete:
            try:
                cutter.end()
            except PartError as error:
                self._broke(StreamReset(str(error)))
                return
            fanout.end()
            self._end()
            self._drop(clean=True)
        self._wake()

    def _settle(self, verdict: ShareVerdict) -> None:
        """It is not shared: the leader gets the stream as it is, the others ask for themselves."""
        self._shares.settled(self, verdict)
        self._end()
        stream, self._stream = self._stream, None
        leader = self.leader
        if stream is not None:
            if stream.notifies:
                stream.listener = None
            if leader is None:
                stream.reset()
        views, self.views = list(self.views), {}
        for view in views:
            view.alone = NotShareable(stream if view is leader else None, bytes(self._raw) if view is leader else b"")
        self._raw.clear()
        for view in views:
            view.wake()

    def _broke(self, error: Exception) -> None:
        if self.over:
            return
        if self.head is None:
            self._settle(ShareVerdict.TROUBLE)
            return
        self.broken = error if isinstance(error, TunnelError) else StreamReset(str(error))
        self._shares.release(self)
        self._end()
        self._drop()
        self._wake()

    def _wake(self) -> None:
        for view in list(self.views):
            view.wake()

    def break_off(self, why: str) -> None:
        """Cut it for all."""
        self._broke(StreamReset(why))

    def _end(self) -> None:
        self.over = True
        self._shares.over(self)

    def _drop(self, *, clean: bool = False) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            if stream.notifies:
                stream.listener = None
            if clean:
                stream.close_nowait()
            else:
                stream.reset()

    def send_nowait(self, data: Bytes) -> int:
        """The leader's request."""
        if self._stream is None:
            raise StreamReset("the stream is gone")
        try:
            return self._stream.send_nowait(data)
        except (TunnelError, trio.ClosedResourceError):
            self._drop()
            self.leader = None
            self.give_up()
            raise


class Sources(Protocol):
    """All shared streams, as a viewer's exchange sees them."""

    def find(self, key: Key) -> Source | None:
        """The pull that a new viewer can join."""

    def begin(self, key: Key) -> Source:
        """A pull that has no stream yet: from now on others wait for it."""

    def known(self, key: Key) -> bool:
        """Whether it was an endless stream before."""

    def may_be_endless(self, key: Key) -> bool:
        """Whether another daemon is to be asked for it as for what may be shared."""


def _begins(body: bytes, boundary: bytes) -> bool | None:
    """Whether a body begins with its boundary, as every camera's does that means it; None: too short to tell.

    Events have none (an empty one).
    """
    if not boundary:
        return True
    if b"\r\n".startswith(body):
        return None
    delimiter = b"--" + boundary
    rest = body.removeprefix(b"\r\n")
    if rest.startswith(delimiter):
        return True
    return None if delimiter.startswith(rest) else False


def _head_of(raw: bytes) -> bytes:
    """The head at the beginning of an answer, without its coding: a viewer's body ends with its stream."""
    return _CODING.sub(b"", raw[: head_end(raw, 0, LIMITS.answer_head_bytes)])
