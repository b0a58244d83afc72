"""The plain path: a tunnel over trio-websocket's own messages, against which the hot path is checked."""

from __future__ import annotations

import trio
import trio_websocket

from tunnel.mux.transport import Payload, TransportProtocolError
from tunnel.websocket import handshake
from tunnel.websocket.codec import MAX_FRAME
from tunnel.websocket.transports import CLOSE_SECONDS


class PlainTransport:
    """The plain path, kept as the check of the others: trio-websocket's own messages.

    The connection's reader runs in the nursery that made it; that nursery's owner ends it.
    """

    def __init__(self, connection: trio_websocket.WebSocketConnection) -> None:
        self._connection = connection
        self.close_code: int | None = None
        self.close_reason = ""
        self.bytes_in = 0  # in messages only: their beginnings are not seen

    def _note(self, closed: trio_websocket.ConnectionClosed) -> None:
        self.close_code = closed.reason.code if closed.reason else 1006
        self.close_reason = (closed.reason.reason if closed.reason else "") or ""

    async def receive_some(self) -> Payload:
        """As of `_WireTransport`, message by message."""
        while True:
            try:
                message = await self._connection.get_message()
            except trio_websocket.ConnectionClosed as closed:
                self._note(closed)
                return b""
            if isinstance(message, str):
                await self.aclose(1003, "binary messages only")
                raise TransportProtocolError(1003, "text message")
            if message:
                return message

    def try_send(self, data: Payload) -> bool:
        """As of `_WireTransport`."""
        return False

    def unsent(self) -> int | None:
        """As of `_WireTransport`."""
        return None

    def kernel_socket(self) -> None:
        """As of `_WireTransport`."""
        return

    async def send_all(self, data: Payload) -> None:
        """Write one binary message."""
        try:
            await self._connection.send_message(bytes(data))
        except trio_websocket.ConnectionClosed as closed:
            self._note(closed)
            raise trio.BrokenResourceError("the connection is closed") from closed

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """As of `_WireTransport`."""
        with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
            await self._connection.aclose(code, reason[:120])
        if self.close_code is None:
            closed = self._connection.closed
            self.close_code = closed.code if closed is not None else 1006


async def plain_server(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    head: bytes,
    headers: handshake.Headers,
    *,
    max_message: int = MAX_FRAME,
) -> PlainTransport:
    """The plain path's counterpart of `server_transport`; trio-websocket's reader runs in `nursery`."""
    first = handshake._head_reader(head)
    begun = False

    async def read() -> bytes:
        nonlocal begun
        if begun:
            return bytes(await stream.receive_some(64 * 1024))
        begun = True
        return await first()

    request = await trio_websocket.wrap_server_stream(
        nursery, handshake._as_stream(handshake._Wires(read, stream.send_all)), max_message_size=max_message
    )
    return PlainTransport(await request.accept(extra_headers=handshake._encoded(headers)))
