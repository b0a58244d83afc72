"""Streams to a box whose tunnel ends in this process. It does not know requests nor clients."""

from __future__ import annotations

from collections.abc import Callable

import trio

from tunnel.daemon.agents.session import TunnelSession
from tunnel.daemon.upstream.interfaces import BoxStream, NotOpened
from tunnel.daemon.upstream.pool import IdlePool, IdleStream
from tunnel.http import ProxyError
from tunnel.mux.errors import GoingAway, SessionEnded, TooManyStreams, TunnelError
from tunnel.mux.stream import Stream


class LocalUpstream:
    """One tunnel session held here, with its idle streams."""

    __slots__ = ("_full", "lines", "session", "tag", "tunnel")

    def __init__(self, tunnel: TunnelSession, full: Callable[[], bool]) -> None:
        self.tunnel = tunnel
        self.session = tunnel.id
        self.tag = self.session.encode()  # of hex digits and dashes, ours
        self.lines = IdlePool(announced="keepalive" in tunnel.identity.features)
        self._full = full
        tunnel.connection.spare = self.lines.give_up

    def __repr__(self) -> str:
        return f"<LocalUpstream {self.tunnel!r} {self.lines!r}>"

    @property
    def local_address(self) -> str:
        """The address at the box that the agent says it makes reachable, "" if it says none."""
        return self.tunnel.identity.local

    def take(self, *, repeatable: bool) -> BoxStream | None:
        """An idle stream that may carry the request."""
        return self.lines.take(repeatable=repeatable) if self.lines.idle else None

    async def open(self, request_id: str) -> Stream:  # noqa: ARG002 - what a line to another daemon passes on
        """As `open_nowait`."""
        return self.open_nowait()

    def open_nowait(self) -> Stream:
        """A new stream, at once: what is sent goes out right behind the SYN. Raises ProxyError, NotOpened."""
        if self._full():
            raise ProxyError("OVERLOADED", "the daemon's buffers are full")
        try:
            if self.tunnel.closing or self.tunnel.leaving:
                raise NotOpened("TUNNEL_DISCONNECTED", "the tunnel is closing", retry_after=1)
            return self.tunnel.connection.open_nowait()
        except TooManyStreams as error:
            raise ProxyError("OVERLOADED", str(error)) from None
        except (GoingAway, SessionEnded, TunnelError) as error:
            raise NotOpened("TUNNEL_DISCONNECTED", str(error), retry_after=1) from None

    def give(self, stream: BoxStream, *, reusable: bool) -> None:
        """Keep or close the stream of an exchange that is over."""
        self.keep(stream, None, trio.current_time(), reusable=reusable)

    def keep(self, stream: BoxStream, before: IdleStream | None, now: float, *, reusable: bool) -> None:
        """The same; `before` is what stood for the stream's rest, if it had one before."""
        tunnel = self.tunnel
        if tunnel.closing or tunnel.parting or tunnel.connection.peer_going_away:
            stream.close_nowait()
        else:
            self.lines.keep(stream, before, now, reusable=reusable)

    def unanswered(self) -> None:
        """A reused stream ended without one byte."""
        self.lines.unanswered()

    @property
    def over(self) -> bool:
        """The tunnel has ended."""
        return self.tunnel.connection.end_reason is not None

    def expire(self) -> None:
        """Close what idled too long."""
        self.lines.expire(trio.current_time())

    def close(self) -> None:
        """Close all idle streams."""
        self.lines.close()
