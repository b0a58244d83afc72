"""One stream to a box: a TCP connection to the daemon that holds the tunnel, upgraded by `POST /internal/forward/raw`.

It knows sockets and the internal call's few answers, and nothing of what the stream carries. Every wait goes through a
`Watch`, which also looks at the client and at whoever may end the exchange.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from tunnel.contract import (
    CONTRACT_VERSION,
    H_AGENT_FEATURES,
    H_CONTRACT,
    H_REQUEST_ID,
    H_TUNNEL_SESSION,
    UPGRADE_STREAM,
)

TICK: Final = 0.25
"""Seconds after which a wait looks whether the exchange was ended from outside (the watchdog's word)."""
CONNECT_SECONDS: Final = 3.0
ANSWER_GRACE: Final = 1.0
"""The daemon keeps the open timeout itself and answers 504; only if it stays silent beyond it is it called dead."""
_HEAD_MAX: Final = 16 * 1024
_RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s: close() sends RST
_ADDRESS_SECONDS: Final = 10.0
LEFT: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


@dataclass(frozen=True, slots=True)
class Route:
    """Where a device's tunnel ends, as the registry says."""

    device_id: str
    node_url: str
    session: str
    epoch: int
    moving: bool = False
    """Its daemon drains, or did (then there is no session): there will soon be another."""


class Control(Protocol):
    """Whoever may end an exchange from another thread."""

    @property
    def ended(self) -> str:
        """The error code for which the exchange must end now; empty: go on."""


class ClientLeft(Exception):
    """The client closed its connection. A half-close counts: before an answer is written nothing tells them apart."""


class Ended(Exception):
    """The exchange was ended from outside; `code` is the error code."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class OpenFailed(Exception):
    """No stream. `code` is the client's error code; `elsewhere`: a newer session of the device may still have one."""

    def __init__(self, code: str, detail: str, *, elsewhere: bool, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.code = code
        self.elsewhere = elsewhere
        self.retry_after = retry_after


class Watch:
    """Waits on a stream's socket and the client's at once. `client` may be None (no client to lose)."""

    __slots__ = ("_box", "_box_events", "_client", "_client_events", "_control", "_poll")

    def __init__(self, client: socket.socket | None, control: Control) -> None:
        self._control = control
        self._poll = select.poll()
        self._box = -1
        self._box_events = 0
        self._client = -1
        self._client_events = 0
        if client is not None:
            self._client = client.fileno()
            self._poll.register(self._client, select.POLLRDHUP)

    def set_box(self, sock: socket.socket | None) -> None:
        """Watch this stream instead of the one before. Call it with None before a stream is closed."""
        if self._box >= 0:
            self._poll.unregister(self._box)
        self._box = -1 if sock is None else sock.fileno()
        self._box_events = 0
        if sock is not None:
            self._poll.register(self._box, 0)

    def wait(self, box_events: int, client_events: int, deadline: float) -> tuple[int, int]:
        """What happened on (stream, client); (0, 0) at the deadline (monotonic seconds).

        Raises ClientLeft and Ended.
        """
        if box_events != self._box_events:
            self._poll.modify(self._box, box_events)
            self._box_events = box_events
        if client_events != self._client_events:
            self._poll.modify(self._client, client_events | select.POLLRDHUP)
            self._client_events = client_events
        while True:
            if self._control.ended:
                raise Ended(self._control.ended)
            left = deadline - time.monotonic()
            box = client = 0
            for fd, event in self._poll.poll(max(0.0, min(left, TICK)) * 1000):
                if fd == self._box:
                    box = event
                else:
                    client = event
            if client & LEFT:
                raise ClientLeft
            if box or client or left <= 0:
                return box, client


class BoxStream:
    """An open stream. Its socket does not block."""

    __slots__ = ("announced", "early", "node_url", "session", "sock", "uses")

    def __init__(self, sock: socket.socket, route: Route, *, announced: bool, early: bytes) -> None:
        self.sock = sock
        self.session = route.session
        self.node_url = route.node_url
        self.announced = announced
        """The agent named the feature `keepalive`."""
        self.early = early
        """Bytes of the box that came with the daemon's answer."""
        self.uses = 0

    def __repr__(self) -> str:
        return f"<BoxStream fd={self.sock.fileno()} session={self.session} uses={self.uses} announced={self.announced}>"

    @property
    def alive(self) -> bool:
        """Whether an idle stream is still good: anything readable on it is either its end or a box out of step."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN | select.POLLRDHUP)
        return not poll.poll(0)

    def close(self) -> None:
        """End it cleanly."""
        self.sock.close()

    def reset(self) -> None:
        """End it so that the daemon resets the stream to the agent."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.sock.close()


_Address = tuple[int, Any]


class _Addresses:
    """Node URL → socket addresses, remembered for some seconds. Thread-safe (whole-entry replacement)."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, list[_Address]]] = {}
        self._lock = threading.Lock()

    def of(self, node_url: str) -> tuple[str, list[_Address]]:
        parts = urlsplit(node_url)
        known = self._known.get(node_url)
        now = time.monotonic()
        if known is not None and known[0] > now:
            return parts.netloc, known[1]
        if parts.scheme != "http" or not parts.hostname:
            raise OpenFailed("TUNNEL_UNAVAILABLE", "the node's URL is not http://host:port", elsewhere=True)
        try:
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        except OSError as error:
            raise OpenFailed("TUNNEL_UNAVAILABLE", f"the node's name: {error}", elsewhere=True) from error
        # 127.0.0.1 before ::1: the daemon listens on IPv4 unless told otherwise, and each miss costs a round trip.
        addresses: list[_Address] = sorted(
            ((int(family), address) for family, _, _, _, address in found), key=lambda a: a[0]
        )
        with self._lock:
            if len(self._known) > 1000:
                self._known.clear()
            self._known[node_url] = (now + _ADDRESS_SECONDS, addresses)
        return parts.netloc, addresses


_addresses = _Addresses()


def open_stream(route: Route, watch: Watch, *, secret: str, request_id: str, open_seconds: float) -> BoxStream:
    """Open a stream in `route`'s session. Raises OpenFailed, ClientLeft or Ended."""
    if not route.session:
        raise OpenFailed("TUNNEL_DISCONNECTED", "the device is between two daemons", elsewhere=True)
    netloc, addresses = _addresses.of(route.node_url)
    sock = _connect(addresses, watch)
    try:
        head = (
            f"POST /internal/forward/raw HTTP/1.1\r\nHost: {netloc}\r\nConnection: Upgrade\r\n"
            f"Upgrade: {UPGRADE_STREAM}\r\nAuthorization: Bearer {secret}\r\n{H_TUNNEL_SESSION}: {route.session}\r\n"
            f"{H_REQUEST_ID}: {request_id}\r\n{H_CONTRACT}: {CONTRACT_VERSION}\r\nContent-Length: 0\r\n\r\n"
        )
        status, fields, rest = _ask(sock, head.encode("latin-1"), watch, open_seconds)
        if status != 101:
            raise _refused(status, fields, rest)
    except BaseException:
        watch.set_box(None)
        sock.close()
        raise
    features = fields.get(H_AGENT_FEATURES.lower(), "")
    announced = "keepalive" in {name.strip() for name in features.split(",")}
    return BoxStream(sock, route, announced=announced, early=rest)


def _connect(addresses: list[_Address], watch: Watch) -> socket.socket:
    """A connected socket that does not block, watched; the first address that answers."""
    deadline = time.monotonic() + CONNECT_SECONDS
    problem = "no address"
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex(address)
            watch.set_box(sock)
            if code == errno.EINPROGRESS:
                happened, _ = watch.wait(select.POLLOUT, 0, deadline)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if happened else errno.ETIMEDOUT
        except BaseException:
            watch.set_box(None)
            sock.close()
            raise
        if code == 0:
            return sock
        watch.set_box(None)
        sock.close()
        problem = os.strerror(code)
    raise OpenFailed("TUNNEL_UNAVAILABLE", f"the daemon: {problem}", elsewhere=True)


def _ask(sock: socket.socket, head: bytes, watch: Watch, open_seconds: float) -> tuple[int, dict[str, str], bytes]:
    """Send the call; its status, fields and whatever follows the head."""
    deadline = time.monotonic() + open_seconds + ANSWER_GRACE
    got = b""
    try:
        if sock.send(head) != len(head):  # a fresh socket's buffer holds far more
            raise OpenFailed("TUNNEL_UNAVAILABLE", "the daemon takes no bytes", elsewhere=True)
        while b"\r\n\r\n" not in got:
            happened, _ = watch.wait(select.POLLIN, 0, deadline)
            if not happened:
                raise OpenFailed("TUNNEL_UNAVAILABLE", "the daemon does not answer", elsewhere=True)
            data = sock.recv(_HEAD_MAX)
            got += data
            if not data or len(got) > _HEAD_MAX:
                raise OpenFailed("TUNNEL_UNAVAILABLE", "the daemon ended the call", elsewhere=True)
    except OSError as error:
        raise OpenFailed("TUNNEL_UNAVAILABLE", f"the daemon: {error}", elsewhere=True) from error
    raw, _, rest = got.partition(b"\r\n\r\n")
    line, *lines = raw.decode("latin-1").split("\r\n")
    status = line[9:12]
    if not line.startswith("HTTP/1.1 ") or not status.isdigit():
        raise OpenFailed("TUNNEL_UNAVAILABLE", "the daemon's answer is not HTTP", elsewhere=True)
    fields = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
    return int(status), fields, rest


_PASSED_ON: Final = frozenset({"OVERLOADED", "TUNNEL_UNAVAILABLE", "TUNNEL_DISCONNECTED", "TUNNEL_TIMEOUT"})


def _refused(status: int, fields: dict[str, str], body: bytes) -> OpenFailed:
    """The refusal for the daemon's answer (tunnel.md, "Internal API"). Its own code is kept where it is one of ours."""
    code = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        code = str(json.loads(body)["error"]["code"])
    wait = fields.get("retry-after", "")
    retry_after = int(wait) if wait.isdigit() else None
    detail = f"the daemon answered {status} {code}"
    if status == 404:
        return OpenFailed("TUNNEL_DISCONNECTED", detail, elsewhere=True, retry_after=retry_after)
    if status == 503:
        return OpenFailed(code if code in _PASSED_ON else "OVERLOADED", detail, elsewhere=True, retry_after=retry_after)
    if status == 502:
        return OpenFailed("AGENT_UNREACHABLE", detail, elsewhere=False)
    if status == 504:
        return OpenFailed("TUNNEL_TIMEOUT", detail, elsewhere=False)
    return OpenFailed("TUNNEL_UNAVAILABLE", detail, elsewhere=False)
