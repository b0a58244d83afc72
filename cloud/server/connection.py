"""A client's connection as the API's worker keeps it, and the parser that reads its requests."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from gunicorn.http.parser import RequestParser
from gunicorn.workers.gthread import TConn

from cloud.server.head import HeadGate
from cloud.server.messages import ApiRequest, BodyUnreader
from cloud.server.waiting import Waiting


class ApiParser(RequestParser):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's parser with our request class and reader."""

    mesg_class = ApiRequest

    def __init__(self, cfg: Any, source: socket.socket, source_addr: Any) -> None:
        super().__init__(cfg, source, source_addr)
        self.unreader = BodyUnreader(source)

    def finish_body(self, deadline: float | None = None, max_bytes: int | None = None) -> bool:
        """As gunicorn's, but touches the socket's timeout only if the request has a body."""
        if self.mesg is not None and not self.mesg.body_to_come:
            return True
        return bool(super().finish_body(deadline, max_bytes))


class Connection(TConn):  # type: ignore[misc]  # gunicorn has no types
    """A client's connection, owned by the main thread or, from `enqueue_req` until it waits again, by a worker's."""

    def __init__(self, cfg: Any, sock: socket.socket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.gate = HeadGate()
        self.initialized = True
        self.parser = ApiParser(cfg, sock, client)
        self.waits: Waiting | None = None
        """The main thread's list in which the connection waits for the poller; None while a thread serves it."""
        self.goes_on: Callable[[], None] | None = None
        """What is called when the thread that served the request is done: its exchange goes on without a thread."""
        self.reset = False
        """True: close it by a reset, because an answer was cut."""
