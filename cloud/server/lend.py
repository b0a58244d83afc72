"""The client's connection, lent by the gunicorn worker to a view that speaks HTTP/1.1 on it by itself.

The proxy views need it: bodies in both directions at once, the client watched while nothing is read, an answer that can
be cut by a reset. The worker class puts a `Takeover` into the environ as `visiona.connection`; `apps.proxy` types what
it uses of it as a protocol. It knows gunicorn's request, response and unreader, and nothing of the exchange.
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Any

from gunicorn.http.body import Body, LengthReader

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST


class Takeover:
    """One request's connection. Used by one thread, in the order `take`, then one of `give_back` and `cut`."""

    def __init__(self, request: Any, response: Any, sock: socket.socket) -> None:
        self._request = request
        self._response = response
        self.sock = sock
        self.open = False
        """True while the view holds the connection: code that wants to write to it must call `cut` instead."""

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

    def cut(self, sent: int = 0) -> None:
        """Reset the connection at once: the client must not take what it has for a whole answer.

        gunicorn would half-close first, which is a clean end to an HTTP/1.0 client. So the descriptor is put in the
        place of a dead one before gunicorn touches it, and the real one goes with a reset.
        """
        self.open = False
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        dead, other = socket.socketpair()
        with dead, other:
            os.dup2(dead.fileno(), self.sock.fileno())
        self.sock.setblocking(True)
        self._response.force_close()
        self._silence(sent)

    def _silence(self, sent: int) -> None:
        response = self._response
        response.headers_sent = True
        response.chunked = False
        response.response_length = 0
        response.sent = sent
