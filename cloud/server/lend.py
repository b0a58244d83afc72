"""The client's connection, lent by the gunicorn worker to a view that speaks HTTP/1.1 on it by itself.

The proxy views need it: bodies in both directions at once, the client watched while nothing is read, an answer that can
be cut by a reset, an exchange that goes on after the view. The worker class puts a `Takeover` into the environ as
`visiona.connection`; `apps.proxy` types what it uses of it as a protocol. It knows gunicorn's request, response and
unreader, and nothing of the exchange.
"""

from __future__ import annotations

import fcntl
import socket
import sys
import termios
from collections.abc import Callable
from typing import Any, Protocol

from gunicorn.http.body import Body, LengthReader


class Owner(Protocol):
    """Who has lent the connection: the worker."""

    def threads_free(self) -> float:
        """The share of the worker's threads that have nothing to do."""

    def take_back(self, conn: Any, early: bytes | None) -> None:
        """From any thread: the connection of a request that went on after its view; None: it ends."""


class Takeover:
    """One request's connection. Used by one thread at a time, in the order `take`, then one of `give_back` and `cut`;
    or `hand_over`, and then one of `resume` and `reset`, from whichever thread."""

    def __init__(self, request: Any, response: Any, conn: Any, owner: Owner) -> None:
        self._request = request
        self._response = response
        self._conn = conn
        self._owner = owner
        self.sock: socket.socket = conn.sock
        self.open = False
        """True while the view holds the connection: code that wants to write to it must call `cut` instead."""
        self.handed_over: Callable[[], None] | None = None
        """What the worker's thread calls when it has done with the request, and then leaves the connection alone."""

    def threads_free(self) -> float:
        """The share of the worker's threads that have nothing to do."""
        return self._owner.threads_free()

    def unsent(self) -> int:
        """Bytes written that the client's kernel has not acknowledged; 0 where the system does not tell."""
        try:
            return int.from_bytes(fcntl.ioctl(self.sock, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
        except (OSError, ValueError):
            return 0

    def take(self) -> bytes:
        """Take the connection over. Returns the raw bytes that were read behind the request's head.

        From here on `wsgi.input` is empty, and the worker sends no `100 Continue` and drains nothing of the request
        after the view.
        """
        self.open = True
        self._request.body = Body(LengthReader(self._request.unreader, 0))
        return bytes(self._request.unreader.take_buffered())

    def give_back(self, rest: bytes, *, answered: bool, keep_alive: bool, sent: int = 0) -> None:
        """The exchange is over. `rest` are raw bytes that came behind the request (the next one's beginning).

        `answered`: the whole answer was written, `sent` bytes of it; gunicorn writes nothing. Otherwise it writes what
        the view returns. Without `keep_alive` the connection is closed after that.
        """
        self.open = False
        self.sock.setblocking(True)
        if rest:
            self._request.unreader.unread(rest)
        if not keep_alive:
            self._response.force_close()
        if answered:
            self._silence(sent)

    def hand_over(self, go_on: Callable[[], None]) -> None:
        """The exchange goes on after the view: gunicorn writes nothing, and `go_on` is called once its thread is done
        with the request."""
        self.open = False
        self.handed_over = go_on
        self._silence(0)

    def resume(self, rest: bytes, *, keep_alive: bool) -> None:
        """What was handed over is answered; `rest` as of `give_back`."""
        self._owner.take_back(self._conn, rest if keep_alive else None)

    def reset(self) -> None:
        """What was handed over cannot be answered whole: as `cut`."""
        self._conn.reset = True
        self._owner.take_back(self._conn, None)

    def cut(self, sent: int = 0) -> None:
        """Reset the connection: the client must not take what it has for a whole answer."""
        self.open = False
        self._conn.reset = True
        self._response.force_close()
        self._silence(sent)

    def _silence(self, sent: int) -> None:
        response = self._response
        response.headers_sent = True
        response.chunked = False
        response.response_length = 0
        response.sent = sent
