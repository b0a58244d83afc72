"""The two handshakes that end in a WebSocket transport.

trio-websocket does the handshake (RFC 6455 §4) on bytes that we read and write ourselves, so that it never reads
beyond the head; then the connection goes to a transport of `tunnel.websocket.transports`.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any, Final

import h11
import trio
import trio_websocket
import wsproto.utilities

from tunnel.mux.transport import Transport
from tunnel.net.sockets import tune
from tunnel.websocket.codec import MAX_FRAME, WebSocketCodec
from tunnel.websocket.transports import SocketTransport, StreamTransport

Headers = Sequence[tuple[str, str]]
MAX_ANSWER_HEAD: Final = 64 * 1024
MAX_REFUSAL_BODY: Final = 64 * 1024
REFUSAL_BODY_SECONDS: Final = 3.0
_TLS_ALERT: Final = b"\x15\x03"
"""How a TLS server answers a request that is none of TLS: a record of type 21 (RFC 8446 §5.1)."""
# wsproto tries to answer a bad 101 as a server would, and h11 then refuses: hence the two protocol errors.
_BAD_HANDSHAKE: Final = (
    trio_websocket.HandshakeError,
    trio_websocket.ConnectionClosed,
    wsproto.utilities.ProtocolError,
    h11.ProtocolError,
)


class HandshakeError(Exception):
    """The peer is no WebSocket server, or went away before it had answered."""


class HandshakeRefused(HandshakeError):
    """The server answered with another status than 101; `body` is mostly our JSON error envelope."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.headers = headers
        self.body = body

    def header(self, name: str) -> str | None:
        """The first header of that name, case-insensitively."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


class _Wires(trio.abc.Stream):
    """What trio-websocket takes for the connection during a handshake: a head to read, somewhere to write."""

    def __init__(self, read: Callable[[], Awaitable[bytes]], write: Callable[[bytes], Awaitable[None]]) -> None:
        self._read = read
        self._write = write

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - the head comes in one piece
        return await self._read()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def _encoded(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]


def _head_reader(head: bytes) -> Callable[[], Awaitable[bytes]]:
    """Gives `head` once, then nothing for ever: the reader is cancelled when the handshake is over."""
    left = [head]

    async def read() -> bytes:
        if not left:
            await trio.sleep_forever()
        return left.pop()

    return read


async def server_transport(
    sock: socket.socket,
    head: bytes,
    rest: bytes,
    headers: Headers,
    write: Callable[[bytes], Awaitable[None]],
    *,
    subprotocol: str | None = None,
    max_frame: int = MAX_FRAME,
) -> SocketTransport:
    """Answer the upgrade request `head` (checked by the caller) with 101 and `headers`; hot path from then on.

    `rest` are bytes that were read behind the head. The socket belongs to the transport that is returned.
    Raises HandshakeError, trio.BrokenResourceError.
    """
    async with _cancelled_at_exit() as nursery:
        request = await trio_websocket.wrap_server_stream(nursery, _as_stream(_Wires(_head_reader(head), write)))
        try:
            await request.accept(subprotocol=subprotocol, extra_headers=_encoded(headers))
        except trio_websocket.ConnectionClosed as error:
            raise HandshakeError("the connection ended in the handshake") from error
    return SocketTransport(sock, WebSocketCodec(client=False, max_frame=max_frame), rest)


async def client_transport(
    stream: trio.abc.Stream,
    host: str,
    path: str,
    headers: Headers,
    subprotocol: str | None = None,
    *,
    max_frame: int = MAX_FRAME,
) -> tuple[Transport, list[tuple[str, str]]]:
    """Upgrade a connected stream (TCP or TLS) to a WebSocket: the transport, and the headers of the 101.

    `host` is the `Host` header, `path` the request target. The stream belongs to the transport then; if this raises,
    it is still the caller's to close. There is no deadline inside.
    Raises HandshakeRefused with status, headers and body; HandshakeError; trio.BrokenResourceError.
    """
    answer = _Answer(stream)
    try:
        async with _cancelled_at_exit() as nursery:
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                _as_stream(_Wires(answer.head, stream.send_all)),
                host,
                path,
                subprotocols=[subprotocol] if subprotocol else None,
                extra_headers=_encoded(headers),
            )
            if connection.closed is not None or not answer.upgraded:
                raise HandshakeError("no WebSocket handshake")
            received = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in connection.handshake_headers]
    except _BAD_HANDSHAKE as error:
        raise HandshakeError(f"no WebSocket handshake: {type(error).__name__}") from error
    wire = WebSocketCodec(client=True, max_frame=max_frame)
    if isinstance(stream, trio.SocketStream):
        sock = socket.socket(fileno=stream.socket.detach())
        tune(sock)
        return SocketTransport(sock, wire, answer.rest), received
    return StreamTransport(stream, wire, answer.rest), received


class _Answer:
    """The server's answer: a 101 is for trio-websocket to judge, any other is read whole and raised."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.rest = b""
        self.upgraded = False

    async def head(self) -> bytes:
        if self.upgraded:
            await trio.sleep_forever()
        data, seen, scanned = bytearray(), 0, 0
        while True:
            while (end := data.find(b"\r\n\r\n", scanned)) < 0:
                if len(data) + seen > MAX_ANSWER_HEAD:
                    raise HandshakeError("the answer's head is too long")
                scanned = max(0, len(data) - 3)
                more = await self._stream.receive_some(16 * 1024)
                if not more:
                    raise HandshakeError("the server ended the connection without an answer")
                data += more
                if data.startswith(_TLS_ALERT):
                    raise HandshakeError("this port speaks TLS; use wss://")
            head = bytes(data[: end + 4])
            del data[: end + 4]
            seen, scanned = seen + len(head), 0
            status, headers = _parse_answer(head)
            if status < 100 or status >= 200 or status == 101:
                break  # an interim head says nothing: the answer comes behind it (RFC 9110 §15.2)
        self.rest = bytes(data)
        if status == 101:
            self.upgraded = True
            return head
        raise HandshakeRefused(status, headers, await self._body(headers))

    async def _body(self, headers: list[tuple[str, str]]) -> bytes:
        length = next((value for name, value in headers if name.lower() == "content-length"), "")
        # int() refuses thousands of digits
        wanted = min(int(length[:9]), MAX_REFUSAL_BODY) if length.isdecimal() else MAX_REFUSAL_BODY
        body = bytearray(self.rest)
        with trio.move_on_after(REFUSAL_BODY_SECONDS):  # the status is what matters, whether its body ends or not
            while len(body) < wanted:
                try:
                    more = await self._stream.receive_some(16 * 1024)
                except trio.BrokenResourceError:
                    break
                if not more:
                    break
                body += more
        return bytes(body[:wanted])


def _parse_answer(head: bytes) -> tuple[int, list[tuple[str, str]]]:
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/1.") or not (words[1].isdecimal() and len(words[1]) == 3):
        raise HandshakeError("the server does not speak HTTP/1.1")
    headers = [(name.strip(), value.strip()) for name, found, value in (x.partition(":") for x in lines) if found]
    return int(words[1]), headers


def _as_stream(wires: _Wires) -> Any:
    # trio-websocket declares SocketStream | SSLStream, and uses what any trio.abc.Stream offers.
    return wires


@contextlib.asynccontextmanager
async def _cancelled_at_exit() -> AsyncIterator[trio.Nursery]:
    """A nursery for trio-websocket's reader, which ends with the block; a lone error comes out unwrapped."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = next((e for e in error.exceptions if not isinstance(e, trio.Cancelled)), error.exceptions[0])
        raise error from None
