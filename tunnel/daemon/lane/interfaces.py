"""What the parts of the fast lane know of each other: interfaces only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tunnel.daemon.lane.authorizer import Grant
from tunnel.daemon.upstream.interfaces import Line
from tunnel.http import BodyReader, Buffer, ProxyError


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


Plain = Callable[[Grant, bytes], float]
"""(grant, request line for the box): until when it is known that the answer is not one to share, else 0.0."""
Remote = Callable[[Grant], Line]
"""The way to a session that another daemon holds."""
