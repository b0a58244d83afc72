"""A small HTTP/1.1 client on Trio: whole answers, one call at a time on a connection, bounded in bytes.

It knows no queues, no deadlines and nothing of what is asked: whoever calls cancels, and a connection whose call was
cancelled is closed, never used again. Redirects, proxies and content codings are not spoken: our peers need none.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Final, Self
from urllib.parse import urlsplit

import httptools
import trio

MAX_HEAD: Final = 64 * 1024
MAX_BODY: Final = 4 * 1024 * 1024
_READ: Final = 64 * 1024
_PORTS: Final = {"http": 80, "https": 443}


class Unanswered(Exception):
    """No whole answer. `broken`: a connection was made and ended before it; what was sent may have been done or not."""

    def __init__(self, text: str, *, broken: bool = False) -> None:
        super().__init__(text)
        self.broken = broken


@dataclass(frozen=True, slots=True)
class Origin:
    """A server: where to connect, and how it is named in `Host`. `base` is the path before all others, or empty."""

    secure: bool
    host: str
    port: int
    authority: str
    base: str

    @classmethod
    def of(cls, url: str) -> Self:
        """Raises ValueError for what is no http(s) URL. An IPv6 address keeps its brackets in `authority` alone."""
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname:
            raise ValueError(f"no http or https URL: {url!r}")
        default = _PORTS[parts.scheme]
        port = default if parts.port is None else parts.port
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        authority = host if port == default else f"{host}:{port}"
        return cls(parts.scheme == "https", parts.hostname, port, authority, parts.path.rstrip("/"))


@dataclass(slots=True)
class Answer:
    """A whole answer; names of headers are lower case, of several of a name the first counts."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


def request(origin: Origin, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a request. The caller's headers and path are our own: they are checked for line breaks only."""
    lines = [f"{method} {origin.base}{path} HTTP/1.1", f"Host: {origin.authority}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines.append(f"Content-Length: {len(body)}")
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a request with a line break in its head")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class ApiConnection:
    """A connection to an origin. `exchange` calls on it; `reusable` tells whether another call may follow."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream], sock: trio.SocketStream) -> None:
        self._stream = stream
        self._sock = sock.socket
        self.reusable = False
        self.used = False
        """Whether a call was made on it before."""

    @classmethod
    async def open(cls, origin: Origin) -> Self:
        """Raises Unanswered."""
        try:
            sock = await trio.open_tcp_stream(origin.host, origin.port)
        except OSError as error:
            raise Unanswered(f"cannot connect to {origin.authority}: {_text(error)}") from error
        if not origin.secure:
            return cls(sock, sock)
        secure = trio.SSLStream(sock, _context(), server_hostname=origin.host, https_compatible=True)
        made = cls(secure, sock)
        try:
            await secure.do_handshake()
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            await made.close()
            raise Unanswered(f"no TLS with {origin.authority}: {_text(error.__cause__ or error)}") from error
        except BaseException:
            await made.close()
            raise
        return made

    async def exchange(self, data: bytes) -> Answer:
        """Send a request and read its whole answer. Raises Unanswered; then, and when cancelled, it is closed."""
        self.reusable = False
        reader = _Reader()
        try:
            await self._stream.send_all(data)
            while not reader.done:
                reader.feed(bytes(await self._stream.receive_some(_READ)))
        except (trio.BrokenResourceError, ssl.SSLError) as error:
            await self.close()
            raise Unanswered(f"the connection broke: {_text(error.__cause__ or error)}", broken=True) from error
        except BaseException:
            await self.close()
            raise
        self.used = True
        self.reusable = reader.keep_alive
        if not self.reusable:
            await self.close()
        return reader.answer

    @property
    def stale(self) -> bool:
        """Whether an idle connection has ended, or tells what nobody asked for: it cannot be used again."""
        return self._sock.fileno() < 0 or self._sock.is_readable()

    async def close(self) -> None:
        """Close at once, also when cancelled."""
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(self._stream)


class _Reader:
    """One answer, as it comes in. Raises Unanswered for what is none."""

    def __init__(self) -> None:
        self.answer = Answer()
        self.done = False
        self.keep_alive = False
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._head = 0  # bytes read until the end of the head
        self._in_body = False

    def feed(self, data: bytes) -> None:
        """The next bytes, b"" for the end of the connection."""
        if not data:
            self._ended()
            return
        if not self._in_body:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            raise Unanswered("it switched protocols") from None
        except httptools.HttpParserError as error:
            if self.done:  # what nobody asked for follows the answer
                self.keep_alive = False
                return
            if isinstance(error.__context__, Unanswered):
                raise error.__context__ from None
            raise Unanswered(f"no HTTP answer: {error}") from None
        if not self._in_body and self._head > MAX_HEAD:
            raise Unanswered("the head of the answer is too long")

    def _ended(self) -> None:
        framed = {"content-length", "transfer-encoding"} & self.answer.headers.keys()
        if not self._in_body or framed:
            raise Unanswered("the connection ended before the answer", broken=True)
        self.on_message_complete()

    # What httptools calls:
    def on_message_begin(self) -> None:
        if self.done:
            raise Unanswered("a second answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.answer.headers.setdefault(name.decode("latin-1").lower(), value.decode("latin-1"))

    def on_headers_complete(self) -> None:
        self.answer.status = self._parser.get_status_code()
        self._in_body = self.answer.status >= 200

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > MAX_BODY:
            raise Unanswered("the answer is too long")

    def on_message_complete(self) -> None:
        if self.answer.status < 200:  # an interim answer: the real one follows
            self.answer = Answer()
            return
        self.answer.body = bytes(self._body)
        self.keep_alive = self._parser.should_keep_alive()
        self.done = True


@cache
def _context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _text(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) or type(error).__name__
