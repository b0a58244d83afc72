"""A client and a daemon with a carriage between them, over real sockets; the daemon's side is written by hand."""

from __future__ import annotations

import select
import socket

import orjson

from apps.tunnels.carriage import NOTHING, Carriage, Copy
from apps.tunnels.node_connections import NodeConnection
from tunnel.contract import DATA, END, RecordReader, record
from tunnel.http import BodyReader

HEAD = b"GET / HTTP/1.1\r\nHost: box\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def connected() -> tuple[socket.socket, socket.socket]:
    """Two ends of a TCP connection: a pair of the system's own ends otherwise, and knows no keepalive."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        two, _ = listener.accept()
    for each in (one, two):
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
    return one, two


class World:
    """A client, a daemon, and what lies between them."""

    def __init__(self) -> None:
        self.client, self.lent = connected()
        self.daemon, mine = connected()
        for each in (self.lent, mine):
            each.setblocking(False)
        for each in (self.client, self.daemon):
            each.settimeout(5)
        self.node = NodeConnection(mine, "http://daemon:3801", b"")
        self._reader = RecordReader()
        self._told: list[tuple[int, bytes]] = []

    def carriage_of(self, body: BodyReader | None, *, early: bytes = b"", copy: Copy | None = None) -> Carriage:
        """One that has not begun."""
        return Carriage(self.lent, early, body, copy=copy)

    def carriage(self, body: BodyReader | None, *, early: bytes = b"", copy: Copy | None = None) -> Carriage:
        made = self.carriage_of(body, early=early, copy=copy)
        made.begin(self.node, b"{}", HEAD)
        return made

    def told(self) -> tuple[int, bytes]:
        """The next record at the daemon."""
        while not self._told:
            self._told += self._reader.feed(self.daemon.recv(1 << 20))
        return self._told.pop(0)

    def data(self, size: int) -> bytes:
        """So many bytes of the client's, as the daemon gets them."""
        got = b""
        while len(got) < size:
            kind, payload = self.told()
            assert kind == DATA
            got += payload
        return got

    def end(self, **facts: object) -> None:
        said = {
            "outcome": "ok",
            "code": "",
            "status": 200,
            "keep": True,
            "repeatable": False,
            "problem": "",
            "head_ms": 1.0,
            **facts,
        }
        self.daemon.sendall(record(END, orjson.dumps(said)))

    def close(self) -> None:
        for each in (self.client, self.lent, self.daemon, self.node.sock):
            each.close()


def drive(carriage: Carriage, *, turns: int = 200) -> None:
    """Move until nothing happens any more, or all is over."""
    for _ in range(turns):
        if carriage.over or carriage.waits_for_release or carriage.node is None:
            return
        poll = select.poll()
        wanted = carriage.interests()
        if wanted[0] != NOTHING:
            poll.register(carriage.client, wanted[0])
        if wanted[1] != NOTHING:
            poll.register(carriage.node.sock, wanted[1])
        happened = dict(poll.poll(50))
        if not happened:
            return
        carriage.turn(happened.get(carriage.client.fileno(), 0), happened.get(carriage.node.sock.fileno(), 0))
    raise AssertionError("it turns without end")
