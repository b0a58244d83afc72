"""A small HTTP/1.1 server on Trio for the demo box: keep-alive, chunked bodies, 100-continue, upgrades.

Bodies stream both ways at constant memory. It listens on loopback, for a daemon that has already checked what it
sends, so it is simple rather than hardened; heads are parsed by httptools all the same.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qs, unquote

import httptools
import trio

READ_BYTES: Final = 64 * 1024
HEAD_LIMIT: Final = 32 * 1024
IDLE_SECONDS: Final = 120.0
BODY_SECONDS: Final = 300.0  # without a byte
DRAIN_LIMIT: Final = 256 * 1024  # of a body that no handler wanted, before the connection is closed instead
BODILESS: Final = frozenset({204, 304})

Handler = Callable[["Exchange"], Awaitable[None]]


class BadRequestError(Exception):
    """The client sent what cannot be understood; it gets 400 (or `status`) and the connection ends."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True)
class Request:
    """A request's head. Header names are in lower case; `path` is decoded, `target` is as it was sent."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    version: str
    keep_alive: bool
    upgrade: bool = False
    path: str = field(init=False)
    query: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        path, _, query = self.target.partition("?")
        self.path = unquote(path)
        self.query = {name: values[-1] for name, values in parse_qs(query, keep_blank_values=True).items()}

    def header(self, name: str) -> str | None:
        """The first header of that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)


class _Parser:
    """httptools' callbacks, turned into a queue: a Request, bytes of its body, then None at its end."""

    def __init__(self) -> None:
        self.queue: deque[Request | bytes | None] = deque()
        self._parser = httptools.HttpRequestParser(self)
        self._target, self._headers, self._size = b"", list[tuple[str, str]](), 0
        self.trailing = b""

    def feed(self, data: bytes) -> None:
        """Raises BadRequestError."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.trailing = data[upgrade.args[0] :]
        except httptools.HttpParserError as error:
            cause = error.__context__
            raise cause if isinstance(cause, BadRequestError) else BadRequestError(str(error)) from error

    def on_message_begin(self) -> None:
        self._target, self._headers, self._size = b"", [], 0

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > HEAD_LIMIT:
            raise BadRequestError("the head is too long", 431)

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        parser = self._parser
        self.queue.append(
            Request(
                parser.get_method().decode("ascii"),
                self._target.decode("latin-1"),
                self._headers,
                parser.get_http_version(),
                parser.should_keep_alive(),
                parser.should_upgrade(),
            )
        )

    def on_body(self, body: bytes) -> None:
        self.queue.append(body)

    def on_message_complete(self) -> None:
        self.queue.append(None)


class Exchange:
    """One request and the answer to it, as a handler sees them."""

    def __init__(self, connection: _Connection, request: Request) -> None:
        self.request = request
        self.started = False
        self.close_after = not request.keep_alive
        self._connection = connection
        self._chunked = False
        self._mute = request.method == "HEAD"
        self._body_done = False
        self._continue = (request.header("expect") or "").lower() == "100-continue"

    async def receive(self) -> bytes:
        """The next piece of the request's body, b"" at its end. Raises BadRequestError, trio.BrokenResourceError."""
        if self._body_done:
            return b""
        if self._continue and not self.started:
            self._continue = False
            await self._connection.stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        event = await self._connection.next_event(BODY_SECONDS)
        if isinstance(event, bytes):
            return event
        self._body_done = True
        return b""

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises BadRequestError with 413 above `limit` bytes."""
        body = bytearray()
        while piece := await self.receive():
            body += piece
            if len(body) > limit:
                raise BadRequestError("the body is too large", 413)
        return bytes(body)

    async def drain(self) -> bool:
        """Drop what is left of the body; False if that is too much and the connection must end."""
        if self._continue:
            return False
        left = DRAIN_LIMIT
        while left > 0:
            piece = await self.receive()
            if not piece:
                return True
            left -= len(piece)
        return False

    async def start(self, status: int, content_type: str, length: int | None, headers: Iterable[str] = ()) -> None:
        """Send the head; `length` None means that the body ends with the last chunk (or, in HTTP/1.0, the end)."""
        self.started = True
        if self._continue:
            self.close_after = True  # the body was never asked for, so it may or may not come
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", "Server: visiona-demo-box"]
        if status not in BODILESS:
            lines.append(f"Content-Type: {content_type}")
            if length is not None:
                lines.append(f"Content-Length: {length}")
            elif self.request.version == "1.1":
                self._chunked = True
                lines.append("Transfer-Encoding: chunked")
            else:
                self.close_after = True
        self._mute = self._mute or status in BODILESS
        if self.close_after:
            lines.append("Connection: close")
        head = "\r\n".join([*lines, *headers, "", ""])
        await self._connection.stream.send_all(head.encode("latin-1"))

    async def write(self, data: bytes | memoryview) -> None:
        """Send a piece of the answer's body. Raises trio.BrokenResourceError when the client left."""
        if self._mute or not data:
            return
        if self._chunked:
            await self._connection.stream.send_all(b"".join((b"%x\r\n" % len(data), data, b"\r\n")))
        else:
            await self._connection.stream.send_all(data)

    async def finish(self) -> None:
        """The answer is complete."""
        if self._chunked and not self._mute:
            await self._connection.stream.send_all(b"0\r\n\r\n")

    async def send(self, status: int, content_type: str, body: bytes, headers: Iterable[str] = ()) -> None:
        """A whole answer at once."""
        await self.start(status, content_type, len(body), headers)
        await self.write(body)
        await self.finish()

    async def send_json(self, status: int, value: Any, headers: Iterable[str] = ()) -> None:
        await self.send(status, "application/json", json.dumps(value).encode() + b"\n", headers)

    async def send_error(self, status: int, message: str, headers: Iterable[str] = ()) -> None:
        """An error in the box's own form, `{"error": {"status", "message"}}`."""
        await self.send_json(status, {"error": {"status": status, "message": message}}, headers)

    def take_stream(self) -> tuple[trio.SocketStream, bytes]:
        """After an upgrade request: the connection, and the bytes that followed the head. The caller closes it."""
        self.started = self.close_after = self._body_done = True
        return self._connection.stream, self._connection.parser.trailing


class _Connection:
    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.parser = _Parser()

    async def next_event(self, seconds: float) -> Request | bytes | None:
        """The next part of the conversation. Raises trio.BrokenResourceError at its end, trio.TooSlowError."""
        while not self.parser.queue:
            with trio.fail_after(seconds):
                data = await self.stream.receive_some(READ_BYTES)
            if not data:
                raise trio.BrokenResourceError("the client ended the connection")
            self.parser.feed(bytes(data))
        return self.parser.queue.popleft()

    async def serve(self, handler: Handler) -> None:
        while True:
            request = await self.next_event(IDLE_SECONDS)
            if not isinstance(request, Request):
                continue  # the end of a request whose body was not wanted
            exchange = Exchange(self, request)
            try:
                await handler(exchange)
            except BadRequestError as error:
                if exchange.started:
                    return
                exchange.close_after = True
                await exchange.send_error(error.status, str(error))
            if exchange.close_after or not await exchange.drain():
                return


async def serve_connection(stream: trio.SocketStream, handler: Handler) -> None:
    """Serve one connection to its end; raises nothing but Cancelled and a handler's own faults."""
    connection = _Connection(stream)
    try:
        await connection.serve(handler)
        with trio.move_on_after(1):  # so that a client that is still sending reads the answer before the reset
            await stream.send_eof()
            while await stream.receive_some(READ_BYTES):
                pass
    except BadRequestError as error:
        with trio.move_on_after(1):
            await _last_words(stream, error)
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
        pass  # the client left, or said nothing for minutes
    finally:
        await trio.aclose_forcefully(stream)


async def _last_words(stream: trio.SocketStream, error: BadRequestError) -> None:
    body = json.dumps({"error": {"status": error.status, "message": str(error)}}).encode()
    head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    try:
        await stream.send_all(head.encode() + body)
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
