"""What the parts of the fast lane know of each other: interfaces only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tunnel.http import BodyReader, Buffer, ProxyError
from tunnel.protocol.inbound import Bytes
from tunnel.runtime.fast_auth import Grant


class BoxStream(Protocol):
    """A stream to a box, as a tunnel's `Stream` is one. One task sends, one receives."""

    listener: Callable[[], None] | None
    """Called when there may be something to receive, an end or a fault. Must neither wait nor raise."""

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


class Line(Protocol):
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


class Served(Protocol):
    """What who watches over an exchange knows of it."""

    grant: Grant
    over: bool
    upgraded: bool

    @property
    def request_done(self) -> bool:
        """The whole request was read."""

    def client_left(self) -> None:
        """The client is gone. Idempotent."""

    def end_with(self, error: ProxyError) -> None:
        """End it from outside: told if nothing was, else the client's connection is reset. Idempotent."""

    def look(self, now: float) -> None:
        """The watchdog: end it if nothing moved for too long."""


class Run(Served, Protocol):
    """What a client's connection knows of the exchange that it carries; who shares streams writes another one."""

    checked: float
    """When the caller was last found allowed."""

    @property
    def wants_body(self) -> bool:
        """The client sends a body."""

    async def start(self) -> None:
        """Begin; in the client's task. A fault is told to the client, not raised."""

    def body_reader(self) -> BodyReader:
        """For the raw bytes behind the head."""

    def expect_body(self) -> None:
        """The body is wanted now (100 Continue)."""

    async def send_body(self, pieces: list[Buffer]) -> bool:
        """Pass body bytes on; False: the exchange is over."""

    async def end_body(self) -> None:
        """The body was read to its end."""

    async def half_close(self) -> None:
        """The client's side of an upgraded connection ended."""


class NotOpened(ProxyError):
    """No stream, and nothing was sent: a newer session of the device may still take the request."""


Plain = Callable[[Grant, bytes], float]
"""(grant, request line for the box): until when it is known that the answer is not one to share, else 0.0."""
Remote = Callable[[Grant], Line]
"""The way to a session that another daemon holds."""
