"""What an exchange needs of the way to a box: interfaces only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tunnel.http import ProxyError
from tunnel.protocol.inbound import Bytes


class Route(Protocol):
    """Where a box is: the session, and the daemon that holds it."""

    @property
    def node_url(self) -> str:
        """The internal URL of that daemon."""

    @property
    def session(self) -> str:
        """The id of the tunnel session."""


class BoxStream(Protocol):
    """A stream to a box, as a tunnel's `Stream` is one. One task sends, one receives."""

    listener: Callable[[], None] | None
    """Called when there may be something to receive, an end or a fault. Must neither wait nor raise."""

    @property
    def notifies(self) -> bool:
        """Whether `listener` is called; False: a task has to wait in `receive_some`."""

    def send_nowait(self, data: Bytes) -> int:
        """Queue what fits; how much that was. Raises TunnelError, trio.ClosedResourceError."""

    async def send_all(self, data: Bytes) -> None:
        """Queue all. Raises as `send_nowait`."""

    async def send_eof(self) -> None:
        """Half-close."""

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | None:
        """What is here; None: nothing, b"": the end. Raises as `send_nowait`."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, b"" at the end. Raises as `send_nowait`."""

    def reset(self) -> None:
        """Break it off."""

    def close_nowait(self) -> None:
        """Be done with it; clean if nothing is unread."""


class Upstream(Protocol):
    """A way to one tunnel session, here or at another daemon: where streams to the box come from."""

    session: str

    @property
    def local_address(self) -> str:
        """The address at the box that its streams lead to; "" if nobody here knows."""

    def take(self, *, repeatable: bool) -> BoxStream | None:
        """An idle stream for the next request, if there is one that may carry it."""

    async def open(self, request_id: str) -> BoxStream:
        """A new stream. Raises ProxyError with the code for the client, `NotOpened` if another session may do."""

    def give(self, stream: BoxStream, *, reusable: bool) -> None:
        """The exchange on it is over, completely: keep it or close it."""

    def unanswered(self) -> None:
        """A reused stream of it ended without one byte."""


class NotOpened(ProxyError):
    """No stream, and nothing was sent: a newer session of the device may still take the request."""
