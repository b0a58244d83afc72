"""What the API and the forwarder take for the tunnel daemon."""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Callable

from tests.apps.proxy.kit import WAIT, Peer, Server, reset


class StandInDaemon(Server):
    """Speaks `POST /internal/forward/raw` and joins each stream to the box, resets and half-closes included.

    `sessions` are those it knows; `refuse` answers all calls with (status, code) instead; `features` are announced.
    """

    def __init__(self, box_port: int) -> None:
        self.box_port = box_port
        self.sessions: set[str] = set()
        self.refuse: tuple[int, str] | None = None
        self.features = "keepalive"
        self.calls: list[bytes] = []
        self.silent = threading.Event()
        self.before_answer: Callable[[], object] | None = None
        """Called once, when the first call came: what the world does meanwhile."""
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, sock: socket.socket) -> None:
        call = Peer(sock)
        if not call.read_head():
            return
        self.calls.append(call.head)
        if self.silent.is_set():
            call.wait_gone(30)
            return
        known = call.fields("x-tunnel-session")[0] in self.sessions
        then, self.before_answer = self.before_answer, None
        if then is not None:
            then()
        refuse = self.refuse or (None if known else (404, "NOT_FOUND"))
        if refuse is not None:
            body = json.dumps({"success": False, "error": {"code": refuse[1]}}).encode()
            call.answer(body, f"{refuse[0]} No", "Connection: close")
            return
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: visiona-stream\r\n"
            + f"X-VisionA-Agent-Features: {self.features}\r\n\r\n".encode()
        )
        try:
            box = socket.create_connection(("127.0.0.1", self.box_port), timeout=WAIT)
        except OSError:
            return  # the local server refused: the stream ends without one byte
        with box:
            join(sock, box, self.killed)


def join(one: socket.socket, two: socket.socket, killed: threading.Event) -> None:
    """Pump both ways until both ended, or one was reset, which resets the other; so does `killed`."""
    one.settimeout(None)
    two.settimeout(None)
    other = {one: two, two: one}
    reading = {one, two}
    while reading:
        for sock in select.select(list(reading), [], [])[0]:
            try:
                data = sock.recv(1 << 18)
                if killed.is_set():
                    raise ConnectionAbortedError
                if data:
                    other[sock].sendall(data)
                else:
                    reading.discard(sock)
                    other[sock].shutdown(socket.SHUT_WR)
            except OSError:
                reset(one)
                reset(two)
                return
