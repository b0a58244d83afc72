"""Connections to the daemons' `POST /internal/exchange`, kept for the next exchange.

It knows sockets and the call that upgrades them, and nothing of what the records on them mean.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from tunnel.contract import CONTRACT_VERSION, H_CONTRACT, UPGRADE_EXCHANGE, RecordReader

CONNECT_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 3.0
"""For the daemon's word on the upgrade, which it gives without asking anybody."""
IDLE_SECONDS: Final = 60.0
"""A connection that nobody used for so long is closed, before the daemon does so."""
KEPT: Final = 64
"""Connections to one daemon that are kept."""
BUFFER: Final = 64 * 1024
"""Asked for each direction of a socket (Linux doubles it): what waits in kernels is what a slow viewer lags behind by,
and where its frames are skipped is the daemon's to decide."""
OLDER_SECONDS: Final = 30.0
"""How long a daemon of the release before is not asked again."""
_HEAD_MAX: Final = 16 * 1024
_ADDRESS_SECONDS: Final = 10.0
_ADDRESSES: Final = 1000


class NodeAway(Exception):
    """The daemon could not be asked. Nothing was sent."""


class NodeHangs(NodeAway):
    """The daemon takes a connection, or not even that, and says nothing: whoever asks waits for it in vain."""


class NodeTooOld(NodeAway):
    """The daemon is one of the release before, which does not know this call."""


class NodeConnection:
    """One upgraded connection. Its socket does not block."""

    __slots__ = ("node_url", "reader", "since", "sock", "uses")

    def __init__(self, sock: socket.socket, node_url: str, rest: bytes) -> None:
        self.sock = sock
        self.node_url = node_url
        self.reader = RecordReader()
        if rest:  # a daemon says nothing before it is asked
            raise NodeAway("bytes behind the daemon's word on the upgrade")
        self.since = time.monotonic()
        self.uses = 0

    def __repr__(self) -> str:
        return f"<NodeConnection fd={self.sock.fileno()} {self.node_url} uses={self.uses}>"

    def close(self) -> None:
        """End it; an exchange that is under way on it ends as one whose client has left."""
        self.sock.close()


class NodeConnections:
    """The idle connections of this process. Thread-safe.

    A daemon that hangs is asked by one caller at a time, until it answers: all others are refused at once, so that it
    holds one thread and not all of them, and is found well by the first who asks once it is.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[str, deque[NodeConnection]] = {}
        self._addresses: dict[str, tuple[float, list[tuple[int, Any]]]] = {}
        self._older: dict[str, float] = {}
        self._hanging: set[str] = set()
        self._asked: set[str] = set()  # of those that hang

    def __repr__(self) -> str:
        return f"<NodeConnections idle={sum(map(len, self._idle.values()))}>"

    def take(self, node_url: str) -> NodeConnection | None:
        """The one that was used last; whether its daemon is still there shows when it is used."""
        oldest = time.monotonic() - IDLE_SECONDS
        with self._lock:
            idle = self._idle.get(node_url)
            if not idle:
                return None
            found = idle.pop()
            if found.since >= oldest:
                return found
            idle.append(found)
        self.expire()
        return None

    def give(self, connection: NodeConnection) -> None:
        """Take back one whose exchange has ended."""
        connection.since = time.monotonic()
        with self._lock:
            idle = self._idle.setdefault(connection.node_url, deque())
            if len(idle) < KEPT:
                idle.append(connection)
                return
        connection.close()

    def drop(self, node_url: str) -> None:
        """Close the idle ones to a daemon that is gone."""
        with self._lock:
            idle = self._idle.pop(node_url, None)
        for each in idle or ():
            each.close()

    def expire(self) -> int:
        """Close what idled too long. Returns how many are left."""
        oldest = time.monotonic() - IDLE_SECONDS
        over: list[NodeConnection] = []
        with self._lock:
            for node_url, idle in list(self._idle.items()):
                while idle and idle[0].since < oldest:
                    over.append(idle.popleft())
                if not idle:
                    del self._idle[node_url]
            left = sum(map(len, self._idle.values()))
        for each in over:
            each.close()
        return left

    def abandon(self) -> None:
        """Forget all, in a process that was forked: the connections are the parent's."""
        self._forget()  # the lock too: it may have been held as it forked

    def is_older(self, node_url: str) -> bool:
        """Whether the daemon was found lately to be of the release before."""
        until = self._older.get(node_url)
        return until is not None and time.monotonic() < until

    def connect(self, node_url: str, secret: str, *, request_id: str) -> NodeConnection:
        """A new connection. Raises NodeAway, NodeTooOld."""
        if self.is_older(node_url):
            raise NodeTooOld("found lately")
        netloc, addresses = self._resolve(node_url)
        head = (
            f"POST /internal/exchange HTTP/1.1\r\nHost: {netloc}\r\nConnection: Upgrade\r\n"
            f"Upgrade: {UPGRADE_EXCHANGE}\r\nAuthorization: Bearer {secret}\r\nX-Request-ID: {request_id}\r\n"
            f"{H_CONTRACT}: {CONTRACT_VERSION}\r\nContent-Length: 0\r\n\r\n"
        )
        with self._asking(node_url):
            return self._made(node_url, addresses, head)

    @contextmanager
    def _asking(self, node_url: str) -> Iterator[None]:
        """Ask a daemon for its word. Raises NodeHangs where it hangs and another asks it just now."""
        with self._lock:
            alone = node_url in self._hanging
            if alone and node_url in self._asked:
                raise NodeHangs("the daemon gives no word; another asks it just now")
            if alone:
                self._asked.add(node_url)
        hangs = False
        try:
            yield
        except NodeHangs:
            hangs = True
            raise
        finally:
            with self._lock:
                if alone:
                    self._asked.discard(node_url)
                if not hangs:
                    self._hanging.discard(node_url)
                elif len(self._hanging) < _ADDRESSES:
                    self._hanging.add(node_url)

    def _made(self, node_url: str, addresses: list[tuple[int, Any]], head: str) -> NodeConnection:
        sock = _connected(addresses)
        try:
            status, rest = _ask(sock, head.encode("latin-1"))
            if status == 404:
                self._note_older(node_url)
                raise NodeTooOld(f"the daemon answered {status}")
            if status != 101:
                raise NodeAway(f"the daemon answered {status}")
            sock.setblocking(False)
            return NodeConnection(sock, node_url, rest)
        except BaseException:
            sock.close()
            raise

    def _note_older(self, node_url: str) -> None:
        now = time.monotonic()
        with self._lock:
            self._older = {url: until for url, until in self._older.items() if until > now}
            self._older[node_url] = now + OLDER_SECONDS

    def _resolve(self, node_url: str) -> tuple[str, list[tuple[int, Any]]]:
        """Host and port as they are named, and their socket addresses, remembered for some seconds."""
        parts = urlsplit(node_url)
        known = self._addresses.get(node_url)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return parts.netloc, known[1]
        if parts.scheme != "http" or not parts.hostname:
            raise NodeAway("the node's URL is not http://host:port")
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        except OSError as error:
            raise NodeAway(f"the node's name: {error}") from error
        # 127.0.0.1 before ::1: the daemon listens on IPv4 unless told otherwise, and each miss costs a round trip.
        addresses = sorted(((int(family), address) for family, _, _, _, address in found), key=lambda one: one[0])
        if len(self._addresses) > _ADDRESSES:
            self._addresses.clear()
        self._addresses[node_url] = (now + _ADDRESS_SECONDS, addresses)
        return parts.netloc, addresses


def _connected(addresses: list[tuple[int, Any]]) -> socket.socket:
    """A connected socket; the first address that answers."""
    problem = "no address"
    deadline = time.monotonic() + CONNECT_SECONDS
    for family, address in addresses:
        try:
            sock = socket.socket(family, socket.SOCK_STREAM)
        except OSError as error:  # no descriptor is left
            raise NodeAway(f"no socket: {error}") from error
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(max(0.1, deadline - time.monotonic()))
            sock.connect(address)
        except TimeoutError:
            sock.close()
            raise NodeHangs("the daemon takes no connection") from None
        except OSError as error:
            sock.close()
            problem = str(error)
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise NodeAway(f"the daemon: {problem}")


def _ask(sock: socket.socket, head: bytes) -> tuple[int, bytes]:
    """Send the call; its status, and what is behind the answer's head."""
    sock.settimeout(ANSWER_SECONDS)
    deadline = time.monotonic() + ANSWER_SECONDS
    got = b""
    try:
        sock.sendall(head)
        while b"\r\n\r\n" not in got:
            data = sock.recv(_HEAD_MAX)
            got += data
            if time.monotonic() > deadline:
                raise TimeoutError
            if not data or len(got) > _HEAD_MAX:
                raise NodeAway("the daemon gave no proper answer")
    except TimeoutError:
        raise NodeHangs("the daemon gives no word") from None
    except OSError as error:
        raise NodeAway(f"the daemon: {error}") from error
    raw, _, rest = got.partition(b"\r\n\r\n")
    status = raw[9:12]
    if not raw.startswith(b"HTTP/1.1 ") or not status.isdigit():
        raise NodeAway("the daemon's answer is not HTTP")
    return int(status), rest


connections: Final = NodeConnections()
"""Those of this process."""
os.register_at_fork(after_in_child=connections.abandon)
