"""`/ws/inference` on the demo box, through trio-websocket."""

from __future__ import annotations

import json
from typing import Any

import trio
import trio_websocket

from tunnel.agent.demo.http import BadRequestError, Exchange, Request
from tunnel.agent.demo.inference import Inference

MAX_MESSAGE = 16 * 1024 * 1024


class _Replay(trio.abc.Stream):
    """A stream that first gives back what the HTTP parser has taken from it."""

    def __init__(self, stream: trio.SocketStream, before: bytes) -> None:
        self._stream, self._before = stream, before

    async def receive_some(self, max_bytes: int | None = None) -> bytes:  # noqa: ARG002 - larger reads cost less
        if self._before:
            data, self._before = self._before, b""
            return data
        return bytes(await self._stream.receive_some(64 * 1024))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _head(request: Request) -> bytes:
    lines = [f"{request.method} {request.target} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def serve(exchange: Exchange, inference: Inference) -> None:
    """Upgrade and talk until the client leaves; the first subprotocol that it offers is taken."""
    request = exchange.request
    if not request.upgrade or (request.header("upgrade") or "").lower() != "websocket":
        await exchange.send_error(426, "a WebSocket is needed here", ["Upgrade: websocket"])
        return
    stream, trailing = exchange.take_stream()
    replay: Any = _Replay(stream, _head(request) + trailing)  # trio-websocket declares sockets, and takes any stream
    async with trio.open_nursery() as nursery:
        try:
            asked = await trio_websocket.wrap_server_stream(nursery, replay, max_message_size=MAX_MESSAGE)
            connection = await asked.accept(subprotocol=next(iter(asked.proposed_subprotocols), None))
            try:
                await _talk(connection, inference, echo=request.query.get("mode") == "echo")
            finally:
                with trio.move_on_after(1, shield=True):
                    await connection.aclose()
        except (trio_websocket.ConnectionClosed, trio_websocket.HandshakeError):
            pass  # the client left
        nursery.cancel_scope.cancel()


async def _talk(connection: trio_websocket.WebSocketConnection, inference: Inference, *, echo: bool) -> None:
    while True:
        message = await connection.get_message()
        await connection.send_message(message if echo else json.dumps(_answer(message, inference)))


def _answer(message: str | bytes, inference: Inference) -> dict[str, Any]:
    """A binary message is a picture; a text one is JSON, `{"model"?, "camera"?}`."""
    try:
        if isinstance(message, bytes):
            return inference.answer({}, len(message))
        return inference.answer(json.loads(message), 0)
    except BadRequestError as error:
        return {"error": {"status": error.status, "message": str(error)}}
    except ValueError:
        return {"error": {"status": 400, "message": "the message is not JSON"}}
