"""What an exchange needs of its client's connection, of the other devices of a cluster, and who reads a copy of it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Protocol

from apps.tunnels.registry import Entry


class Client(Protocol):
    """The client's connection as the worker lends it (`cloud.server.lend.Takeover`)."""

    sock: socket.socket

    def take(self) -> bytes:
        """Raw bytes read behind the request's head; from here on the socket is ours."""

    def give_back(self, rest: bytes, *, answered: bool, keep_alive: bool, sent: int = 0) -> None:
        """Over, within the view."""

    def cut(self, sent: int = 0) -> None:
        """Reset it, within the view."""

    def hand_over(self, go_on: Callable[[], None]) -> None:
        """It goes on after the view; `go_on` is called once the view's thread is done."""

    def resume(self, rest: bytes, *, keep_alive: bool) -> None:
        """Over, after the view."""

    def reset(self) -> None:
        """Reset it, after the view."""

    def unsent(self) -> int:
        """Bytes that the client has not acknowledged."""

    def threads_free(self) -> float:
        """The share of the worker's threads that have nothing to do."""


class Others(Protocol):
    """The other devices that may take a request whose device failed (`apps.clusters.dispatcher`)."""

    def next(self, code: str) -> Entry | None:
        """The next device after a failure with `code`; None: no device is left. Raises the errors of Redis."""

    def answered(self) -> None:
        """Report that the device began to answer."""

    def over(self, code: str = "") -> None:
        """Report that the request is over; `code` is that of the last failure, empty if there was none. Idempotent."""


class Tap(Protocol):
    """Reads a copy of an answer, before the client has the last of it."""

    def read(self, answer: bytes) -> None:
        """The whole answer as the client gets it. Called in a thread that may use the database."""
