"""Lines of the fast lane to boxes whose tunnel ends at another daemon: `remote` streams, kept for the next request.

A stream that idles here can't call when it ends; it is looked at when it is taken. It knows neither requests nor
clients.
"""

from __future__ import annotations

from typing import Final

import trio

from tunnel.daemon.upstream.interfaces import BoxStream, NotOpened, Route
from tunnel.daemon.upstream.pool import IDLE_SECONDS, IdlePool
from tunnel.daemon.upstream.remote_stream import PeerRefused, Peers, PeerStream
from tunnel.http import ProxyError

_LOOK_SECONDS: Final = 1.0
_REUSE_SECONDS: Final = 2.0
"""How long after it was opened a stream takes new requests: the other daemon can't tell an idle one from one in
flight, so one that was used without end would hold up its drain to the last second of the grace."""
_PER_SESSION: Final = 32
"""As the API's workers keep: who holds the tunnel cannot take these back where it has no room for new ones."""
_FORGET_SECONDS: Final = 30.0
"""A way that nobody went for so long is forgotten: the session may be gone."""


class PeerUpstream:
    """One tunnel session at another daemon, with the idle streams to it."""

    def __init__(self, nodes: Peers, node_url: str, session: str, *, open_seconds: float) -> None:
        self.node_url = node_url
        self.session = session
        self.used = trio.current_time()
        self._nodes = nodes
        self._open_seconds = open_seconds
        self._lines: IdlePool | None = None  # the first answer tells whether the agent keeps streams

    def __repr__(self) -> str:
        return f"<PeerUpstream {self.session} at {self.node_url} {self._lines!r}>"

    @property
    def local_address(self) -> str:
        """Only the daemon that holds the session knows it."""
        return ""

    def take(self, *, repeatable: bool) -> BoxStream | None:
        """An idle stream that may carry the request."""
        self.used = trio.current_time()
        while self._lines is not None and (stream := self._lines.take(repeatable=repeatable)) is not None:
            if isinstance(stream, PeerStream) and self.used - stream.opened < _REUSE_SECONDS and stream.quiet():
                return stream
            stream.close_nowait()
        return None

    async def open(self, request_id: str, share: str = "") -> PeerStream:
        """A new stream, accepted by the agent; with `share` one that the other daemon may have for others already.

        Raises ProxyError, NotOpened.
        """
        deadline = trio.current_time() + self._open_seconds
        try:
            stream = await self._nodes.open(
                self.node_url, self.session, request_id=request_id, deadline=deadline, share=share
            )
        except PeerRefused as error:
            if error.code == "TUNNEL_DISCONNECTED":
                self.close()  # its daemon waits for the idle ones, which it can't tell, before the box may go on
            kind = NotOpened if error.elsewhere else ProxyError
            raise kind(error.code, error.message, retry_after=error.retry_after) from None
        if self._lines is None:
            self._lines = IdlePool(announced="keepalive" in stream.features, most=_PER_SESSION)
        return stream

    def give(self, stream: BoxStream, *, reusable: bool) -> None:
        """Keep or close the stream of an exchange that is over."""
        old = isinstance(stream, PeerStream) and trio.current_time() - stream.opened >= _REUSE_SECONDS
        if self._lines is None or old:
            stream.close_nowait()
        else:
            self._lines.give(stream, reusable=reusable)

    def unanswered(self) -> None:
        """A reused stream ended without one byte."""
        if self._lines is not None:
            self._lines.unanswered()

    def expire(self) -> None:
        """Close what idled too long."""
        if self._lines is not None:
            self._lines.expire(trio.current_time() + IDLE_SECONDS - _REUSE_SECONDS)  # they are of no use any more

    def close(self) -> None:
        """Close all idle streams."""
        if self._lines is not None:
            self._lines.close()


class PeerUpstreams:
    """All ways to other daemons. `run` it; call it with a route for the way to its session."""

    def __init__(self, secret: str, *, open_seconds: float) -> None:
        self._nodes = Peers(secret)
        self._open_seconds = open_seconds
        self._lines: dict[tuple[str, str], PeerUpstream] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def __call__(self, route: Route) -> PeerUpstream:
        """The way to the session that the route names."""
        key = (route.node_url, route.session)
        line = self._lines.get(key)
        if line is None:
            line = PeerUpstream(self._nodes, *key, open_seconds=self._open_seconds)
            self._lines[key] = line
        return line

    async def run(self) -> None:
        """Close idle streams in time, until cancelled; then all of them."""
        try:
            while True:
                await trio.sleep(_LOOK_SECONDS)
                self.look()
        finally:
            for line in self._lines.values():
                line.close()

    def look(self) -> None:
        """One turn of `run`."""
        long_ago = trio.current_time() - _FORGET_SECONDS
        for key, line in list(self._lines.items()):
            line.expire()
            if line.used < long_ago:
                line.close()
                del self._lines[key]
