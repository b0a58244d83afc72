"""Streams to a box whose tunnel ends at another daemon: its internal forward API, seen as a stream of our own.

Used by the fast lane, once: what comes in over the internal API is only ever given to a session held there, so a
request can't go round in circles. It does not know what a stream carries, nor who may open one.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

import orjson
import trio

from tunnel.contract import (
    CONTRACT_VERSION,
    H_AGENT_FEATURES,
    H_CONTRACT,
    H_REQUEST_ID,
    H_SHARE,
    H_TUNNEL_SESSION,
    UPGRADE_STREAM,
)
from tunnel.daemon.http.messages import Refusal
from tunnel.mux.errors import StreamReset
from tunnel.net.sockets import ByteStream, descriptor, tune
from tunnel.protocol.inbound import Bytes

CONNECT_SECONDS: Final = 3.0
ANSWER_GRACE: Final = 1.0
"""The other daemon keeps the open timeout itself and answers 504; silent beyond it, it counts as dead."""
_HEAD_MAX: Final = 16 * 1024
_RECEIVE: Final = 128 * 1024
_ADDRESS_SECONDS: Final = 10.0
_ADDRESSES_KNOWN: Final = 1000
_PASSED_ON: Final = frozenset({"OVERLOADED", "TUNNEL_UNAVAILABLE", "TUNNEL_DISCONNECTED", "TUNNEL_TIMEOUT"})
_Address = tuple[int, tuple[object, ...]]


class PeerRefused(Refusal):
    """No stream. `elsewhere`: nothing was sent, and a newer session of the device may still take it."""

    def __init__(self, code: str, message: str, *, elsewhere: bool, retry_after: int | None = None) -> None:
        super().__init__(code, message, retry_after=retry_after)
        self.elsewhere = elsewhere


class PeerStream(trio.abc.HalfCloseableStream):
    """A stream that another daemon opened for us; one task sends, one receives, as on a `Stream`.

    What broke it is raised as StreamReset: a reset or a daemon that died is never an end of stream.
    """

    notifies: Final = False
    __slots__ = (
        "_broken",
        "_closed",
        "_early",
        "_ended",
        "_raw",
        "_reset",
        "features",
        "last_progress",
        "listener",
        "opened",
        "session",
    )

    def __init__(self, raw: ByteStream, session: str, features: frozenset[str], early: bytes) -> None:
        self._raw = raw
        self._early = early  # of the box, read behind the daemon's answer
        self._ended = False  # half-closed here
        self._closed = False
        self._broken: OSError | trio.BrokenResourceError | None = None
        self._reset: OSError | None = None  # what a write met: the end of what is read is not a clean one
        self.session = session
        self.features = features
        self.listener: Callable[[], None] | None = None
        """Never called: nobody watches the socket for it, so a task has to wait for this stream."""
        self.opened = self.last_progress = trio.current_time()

    def __repr__(self) -> str:
        state = "closed" if self._closed else "half-closed" if self._ended else "open"
        return f"<PeerStream of {self.session} {state}>"

    @property
    def acknowledged(self) -> bool:
        """True: the other daemon answers only when the agent has accepted."""
        return True

    def quiet(self) -> bool:
        """Whether it is open and nothing came: bytes that nobody asked for, an end or a fault make it useless."""
        try:
            return self.receive_nowait(1) is None
        except (StreamReset, trio.ClosedResourceError):
            return False

    async def wait_acknowledged(self) -> None:
        """Return: see `acknowledged`."""
        await trio.lowlevel.checkpoint()

    # Sending

    async def send_all(self, data: Bytes) -> None:
        """Hand over `data`. Raises StreamReset, trio.ClosedResourceError after `aclose`, `reset` or `send_eof`."""
        self._check_sendable()
        await trio.lowlevel.checkpoint()
        with memoryview(data) as view:
            sent = self._send(view)
            while sent < len(view):
                await trio.lowlevel.wait_writable(descriptor(self._raw.sock))
                sent += self._send(view[sent:])

    def send_nowait(self, data: Bytes) -> int:
        """Hand over what the kernel takes, without a checkpoint: how many bytes that was. Raises as `send_all`."""
        self._check_sendable()
        return self._send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return when there is room to send, or the stream broke."""
        self._check_sendable()
        await trio.lowlevel.wait_writable(descriptor(self._raw.sock))

    async def send_eof(self) -> None:
        """Half-close: the box sees the end after all that was sent. Idempotent. Raises as `send_all` does."""
        self._check_open()
        await trio.lowlevel.checkpoint()
        if not self._ended:
            self._ended = True
            try:
                self._raw.send_eof()
            except trio.BrokenResourceError as error:
                raise self._break(error) from error

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" after the box's end. Raises StreamReset."""
        await trio.lowlevel.checkpoint()
        while (data := self.receive_nowait(max_bytes)) is None:
            await trio.lowlevel.wait_readable(descriptor(self._raw.sock))
        return data

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | None:
        """What is here, without a checkpoint; None if nothing is, b"" at the end. Raises as `receive_some`."""
        self._check_open()
        size = _RECEIVE if max_bytes is None else max_bytes
        if self._early:
            data, self._early = self._early[:size], self._early[size:]
            return data
        try:
            data = self._raw.sock.recv(size)
        except BlockingIOError:
            return None
        except OSError as error:
            raise self._break(error) from error
        if not data and self._reset is not None:
            raise self._break(self._reset)
        self.last_progress = trio.current_time()
        return data

    # Ending

    async def aclose(self) -> None:
        """Be done with it, both ways: clean if nothing is unread. Idempotent; done even if cancelled."""
        self.close_nowait()
        await trio.lowlevel.checkpoint()

    def close_nowait(self) -> None:
        """As `aclose`, without a checkpoint."""
        if not self._closed:
            self._closed = True
            self._raw.close()  # the kernel delivers what was sent; bytes that still come are answered with a reset

    def reset(self) -> None:
        """Break it off at once: the box sees a reset, never an end. Idempotent, does not wait."""
        self._closed = True
        self._raw.reset()

    # Inside

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")
        if self._broken is not None:
            raise StreamReset(str(self._broken))

    def _break(self, error: OSError | trio.BrokenResourceError) -> StreamReset:
        """The kernel's word that the connection broke: its descriptor is given back, as nobody else would."""
        self._broken = error
        self._raw.close()
        return StreamReset(str(error))

    def _check_sendable(self) -> None:
        self._check_open()
        if self._ended:
            raise trio.ClosedResourceError("this stream was half-closed here")

    def _send(self, data: Bytes) -> int:
        self._check_open()
        try:
            sent = self._raw.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            # What the box said before is still to be read. The kernel tells a reset once, so it is kept.
            self._reset = self._reset or error
            raise StreamReset(str(error)) from error
        self.last_progress = trio.current_time()
        return sent


class Peers:
    """Opens streams at other daemons; remembers their addresses for some seconds. `secret` is the one that is sent."""

    def __init__(self, secret: str) -> None:
        self._secret = secret
        self._known: dict[str, tuple[float, list[_Address]]] = {}

    async def open(
        self, node_url: str, session: str, *, request_id: str, deadline: float, share: str = ""
    ) -> PeerStream:
        """A stream of `session` at the node, accepted by its agent before `deadline` (Trio's clock).

        `share` is the header that lets the node answer with what it pulls for others already; "": it may not.
        Raises RemoteRefused with the code for the client.
        """
        netloc, addresses = await self._addresses(node_url)
        raw = await _connect(addresses, min(deadline, trio.current_time() + CONNECT_SECONDS))
        shares = f"{H_SHARE}: {share}\r\n" if share else ""
        try:
            call = (
                f"POST /internal/forward/raw HTTP/1.1\r\nHost: {netloc}\r\nConnection: Upgrade\r\n"
                f"Upgrade: {UPGRADE_STREAM}\r\nAuthorization: Bearer {self._secret}\r\n"
                f"{H_TUNNEL_SESSION}: {session}\r\n{H_REQUEST_ID}: {request_id}\r\n"
                f"{H_CONTRACT}: {CONTRACT_VERSION}\r\n{shares}Content-Length: 0\r\n\r\n"
            )
            with trio.move_on_at(deadline + ANSWER_GRACE):
                status, fields, rest = await _ask(raw, call.encode("latin-1"))
                if status != 101:
                    raise _refused(status, fields, rest)
                listed = fields.get(H_AGENT_FEATURES.lower(), "").split(",")
                features = frozenset(name.strip() for name in listed) - {""}
                return PeerStream(raw, session, features, rest)
            raise _dead("the daemon does not answer")
        except BaseException:
            raw.close()
            raise

    async def _addresses(self, node_url: str) -> tuple[str, list[_Address]]:
        parts = urlsplit(node_url)
        now = trio.current_time()
        known = self._known.get(node_url)
        if known is not None and known[0] > now:
            return parts.netloc, known[1]
        if parts.scheme != "http" or not parts.hostname:
            raise _dead("the node's URL is not http://host:port")
        try:
            with trio.fail_after(CONNECT_SECONDS):
                found = await trio.socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        except (OSError, trio.TooSlowError) as error:
            raise _dead("the node's name is not known") from error
        # 127.0.0.1 before ::1: a daemon listens on IPv4 unless told otherwise, and each miss costs a round trip.
        addresses: list[_Address] = sorted(
            ((int(family), address) for family, _, _, _, address in found), key=lambda each: each[0]
        )
        if len(self._known) >= _ADDRESSES_KNOWN:
            self._known.clear()
        self._known[node_url] = (now + _ADDRESS_SECONDS, addresses)
        return parts.netloc, addresses


def _dead(message: str) -> PeerRefused:
    return PeerRefused("TUNNEL_UNAVAILABLE", message, elsewhere=True, retry_after=1)


async def _connect(addresses: list[_Address], deadline: float) -> ByteStream:
    """The first address that answers. Raises RemoteRefused."""
    with trio.move_on_at(deadline):
        for family, address in addresses:
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                tune(sock)
                if await _connected(sock, address):
                    return ByteStream(sock)
            except BaseException:
                sock.close()
                raise
            sock.close()
    raise _dead("the daemon that holds this tunnel cannot be reached")


async def _connected(sock: socket.socket, address: tuple[object, ...]) -> bool:
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return code == 0


async def _ask(raw: ByteStream, call: bytes) -> tuple[int, dict[str, str], bytes]:
    """Make the call: the answer's status, its fields (lower case), and what followed the head."""
    got = b""
    try:
        await raw.send_all(call)
        while b"\r\n\r\n" not in got:
            data = await raw.receive_some(_HEAD_MAX)
            got += data
            if not data or len(got) > _HEAD_MAX:
                raise _dead("the daemon ended the call")
    except trio.BrokenResourceError as error:
        raise _dead("the daemon broke the call off") from error
    head, _, rest = got.partition(b"\r\n\r\n")
    line, *lines = head.decode("latin-1").split("\r\n")
    status = line[9:12]
    if not line.startswith("HTTP/1.1 ") or not (status.isascii() and status.isdecimal()):
        raise _dead("the daemon's answer is not HTTP")
    fields = {name.strip().lower(): value.strip() for name, _, value in (item.partition(":") for item in lines)}
    if int(status) != 101:  # a refusal ends the connection: its body is all that still comes
        rest = await _rest_of(raw, rest)
    return int(status), fields, rest


async def _rest_of(raw: ByteStream, got: bytes) -> bytes:
    try:
        while len(got) <= _HEAD_MAX and (data := await raw.receive_some(_HEAD_MAX)):
            got += data
    except trio.BrokenResourceError:
        pass  # the status has come; without a whole body there is no code in it
    return got


def _refused(status: int, fields: dict[str, str], body: bytes) -> PeerRefused:
    """What the client is told for the other daemon's refusal (docs/internal-api.md); its code is kept if it is ours."""
    code, message = _told(body)
    wait = fields.get("retry-after", "")
    retry_after = int(wait) if wait.isascii() and wait.isdecimal() else None
    if status == 404:
        return PeerRefused("TUNNEL_DISCONNECTED", "the tunnel is gone", elsewhere=True, retry_after=1)
    if status == 503:
        return PeerRefused(
            code if code in _PASSED_ON else "OVERLOADED", message, elsewhere=True, retry_after=retry_after or 1
        )
    if status == 502:
        return PeerRefused("AGENT_UNREACHABLE", message, elsewhere=False)
    if status == 504:
        return PeerRefused("TUNNEL_TIMEOUT", message, elsewhere=False)
    return PeerRefused("TUNNEL_UNAVAILABLE", f"the daemon answered {status}", elsewhere=False, retry_after=1)


def _told(body: bytes) -> tuple[str, str]:
    try:
        error = orjson.loads(body)["error"]
        return str(error["code"]), str(error["message"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "", "the daemon refused the stream"
