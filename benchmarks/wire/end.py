"""One end of a tunnel by itself, without proxy or registry: the runtime's connection over a WebSocket.

``python -m benchmarks.wire.end listen`` is the daemon's end. It takes tunnels one after another, tells what became of
each, and does what a line of JSON on standard input asks for; each is answered by a line on standard output.
``python -m benchmarks.wire.end dial --port PORT`` is the agent's end. The first line on each of its streams says what
is wanted: ``down N`` so many bytes, ``up`` the number of bytes that came until the end.
"""

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import trio

from benchmarks.processes import memory, reset_peak
from benchmarks.wire.sockets import bound_buffers
from tunnel.mux.connection import Connection
from tunnel.mux.errors import TunnelError
from tunnel.mux.stream import Stream
from tunnel.net.memory import calm_collector, keep_memory
from tunnel.net.sockets import ByteStream, accept, listen
from tunnel.protocol.core import Role
from tunnel.protocol.limits import SessionConfig
from tunnel.websocket.handshake import HandshakeError, client_transport, server_transport

BLOCK: Final = bytes(128 * 1024)
_LONGEST_LINE: Final = 64 * 1024
_BROKEN: Final = (trio.BrokenResourceError, trio.ClosedResourceError)  # TunnelError is one of the first
_PING_EVERY: Final = 0.25  # four a second at most, of the ten that a session allows
_SHOWN: Final = 64  # bytes of the last that came: a count of bytes fits


def say(**what: Any) -> None:
    """A line for who started this."""
    print(json.dumps(what), flush=True)


def unsmoothed(before: float | None, after: float) -> float:
    """The sample that moved a session's round-trip time from `before` to `after` (a quarter counts). Pure."""
    return after if before is None else before + (after - before) * 4


class Listening:
    """The daemon's end."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._config = replace(SessionConfig(), **json.loads(arguments.config))
        self._listener = listen("127.0.0.1", 0)
        bound_buffers(self._listener, arguments.buffer)  # what is accepted has them from its first packet on
        self._connection: Connection | None = None
        self._came = trio.Event()
        self._ended, self._ends = trio.open_memory_channel[dict[str, Any]](64)

    async def run(self) -> None:
        """Until standard input ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take, nursery)
            say(port=self._listener.getsockname()[1])
            async for line in _lines(trio.lowlevel.FdStream(os.dup(0))):
                asked = json.loads(line)
                if asked["do"] == "carry":
                    say(**await self._carry(asked["streams"], ping=asked.get("ping", False)))
                else:
                    say(**await self._ended_next())
            nursery.cancel_scope.cancel()

    async def _take(self, nursery: trio.Nursery) -> None:
        while True:
            sock, _ = await accept(self._listener)
            nursery.start_soon(self._serve, sock)

    async def _serve(self, sock: socket.socket) -> None:
        stream = ByteStream(sock)
        try:
            data = b""
            while (end := data.find(b"\r\n\r\n") + 4) < 4:
                if not (more := await stream.receive_some()) or len(data) > _LONGEST_LINE:
                    raise HandshakeError("no head")
                data += more
            transport = await server_transport(sock, data[:end], data[end:], [], stream.send_all)
        except (trio.BrokenResourceError, HandshakeError):
            stream.close()
            return
        connection = Connection(
            transport, role=Role.CLIENT, config=self._config, accept_streams=self._arguments.accept, name="bench"
        )
        await self._hold(connection)

    async def _hold(self, connection: Connection) -> None:
        """Carry one tunnel from its first byte to its end, and note what it cost in between."""
        reset_peak(os.getpid())
        size, cpu = memory(os.getpid()), time.process_time()
        self._connection = connection
        self._came.set()
        async with trio.open_nursery() as nursery:
            if self._arguments.accept:
                nursery.start_soon(_accept_each, connection, _swallow if self._arguments.read else _keep)
            await connection.run()
            nursery.cancel_scope.cancel()
        cpu = time.process_time() - cpu
        if self._connection is connection:
            self._connection, self._came = None, trio.Event()
        counted, end = connection.statistics(), connection.end_reason
        self._ended.send_nowait(
            {
                "text": end.text if end else "", "kind": end.kind.name if end else "",
                "cpu": cpu, "grown": memory(os.getpid(), "VmHWM") - size, "buffered": counted.buffered,
                "frames_in": counted.frames_in, "bytes_in": counted.bytes_in,
                "opened": counted.streams_accepted, "refused": counted.streams_refused,
            }
        )  # fmt: skip

    async def _ended_next(self) -> dict[str, Any]:
        """What became of the next tunnel that ended."""
        return await self._ends.receive()

    async def _carry(self, streams: list[dict[str, Any]], *, ping: bool = False) -> dict[str, Any]:
        """All `streams` at once over the tunnel that came last: seconds, CPU time and, of each, what came of it."""
        await self._came.wait()
        connection = self._connection
        if connection is None:
            return {"fault": "the tunnel has ended"}
        samples: list[float] = []
        results: list[dict[str, Any]] = [{} for _ in streams]
        cpu, frames, begun = time.process_time(), connection.statistics().frames_in, trio.current_time()
        async with trio.open_nursery() as nursery:
            if ping:
                nursery.start_soon(_ping, connection, samples)
            async with trio.open_nursery() as pourers:
                for wanted, into in zip(streams, results, strict=True):
                    pourers.start_soon(_exchange, connection, wanted, into)
            nursery.cancel_scope.cancel()
        seconds, cpu = trio.current_time() - begun, time.process_time() - cpu
        end = connection.end_reason
        answer: dict[str, Any] = {"seconds": seconds, "cpu": cpu, "streams": results, "pings": samples}
        answer |= {"frames": connection.statistics().frames_in - frames, "end": end.text if end else ""}
        return answer


async def _exchange(connection: Connection, wanted: dict[str, Any], into: dict[str, Any]) -> None:
    """One stream: say `ask`, send `send` bytes, end it if `eof`, and read until the peer's end."""
    into |= {"bytes": 0, "said": "", "fault": "", "seconds": 0.0}
    begun = trio.current_time()
    try:
        stream = await connection.open_stream(wait_ack=False)
        await stream.send_all(wanted["ask"].encode())
        left = int(wanted.get("send", 0))
        while left:
            block = BLOCK[: min(left, len(BLOCK))]
            await stream.send_all(block)
            left -= len(block)
        if wanted.get("eof", True):
            await stream.send_eof()
        while data := await stream.receive_some():
            into["bytes"] += len(data)
            into["said"] = data[-_SHOWN:].decode("latin-1")
        await stream.aclose()
    except TunnelError as error:
        into["fault"] = f"{type(error).__name__}: {error}"
    into["seconds"] = trio.current_time() - begun


async def _ping(connection: Connection, samples: list[float]) -> None:
    """Ask for the round-trip time again and again, as a keepalive does, and note each answer.

    The session times the pong itself, so it does not matter how late it is looked at; while one is awaited, `ping` does
    nothing.
    """
    session = connection.session
    while True:
        before = session.rtt
        session.ping(trio.current_time())
        connection.kick()
        await trio.sleep(_PING_EVERY)
        if session.rtt is not None and session.rtt != before:
            samples.append(unsmoothed(before, session.rtt))


async def _accept_each(connection: Connection, serve: Callable[[Stream], Any]) -> None:
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await connection.accept_stream()
            except trio.EndOfChannel:
                return
            nursery.start_soon(serve, stream)


async def _swallow(stream: Stream) -> None:
    """Read a stream to its end."""
    try:
        while await stream.receive_some():
            pass
        await stream.aclose()
    except _BROKEN:
        return


async def _keep(_stream: Stream) -> None:
    """Read nothing."""
    await trio.sleep_forever()


async def _lines(stream: trio.abc.ReceiveStream) -> Any:
    data = b""
    async for more in stream:
        data += more
        *lines, data = data.split(b"\n")
        for line in lines:
            yield line


async def _serve_order(stream: Stream) -> None:
    try:
        order = b""
        while b"\n" not in order:
            if not (more := await stream.receive_some()) or len(order) > _LONGEST_LINE:
                stream.reset()
                return
            order += more
        line, _, rest = order.partition(b"\n")
        word, _, number = line.decode().partition(" ")
        if word == "down":
            left = int(number)
            while left:
                block = BLOCK[: min(left, len(BLOCK))]
                await stream.send_all(block)
                left -= len(block)
        else:
            came = len(rest)
            while data := await stream.receive_some():
                came += len(data)
            await stream.send_all(str(came).encode())
        await stream.aclose()
    except _BROKEN:
        return


async def _dial(arguments: argparse.Namespace) -> None:
    sock = trio.socket.socket()
    bound_buffers(sock, arguments.buffer)
    await sock.connect(("127.0.0.1", arguments.port))
    transport, _ = await client_transport(trio.SocketStream(sock), "127.0.0.1", "/tunnel/connect", [])
    config = replace(SessionConfig.for_agent(), **json.loads(arguments.config))
    connection = Connection(transport, role=Role.SERVER, config=config, accept_streams=True, name="bench")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_accept_each, connection, _serve_order)
        say(online=1)
        await connection.run()
        nursery.cancel_scope.cancel()
    say(text=connection.end_reason.text if connection.end_reason else "")


def main() -> None:
    """Be one end until the other is gone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("side", choices=("listen", "dial"))
    parser.add_argument("--port", type=int, default=0, help="dial: where the daemon's end listens")
    parser.add_argument("--config", default="{}", help="fields of SessionConfig as JSON, beside the side's defaults")
    parser.add_argument("--buffer", type=int, default=0, help="bytes of each socket buffer; 0: the system's")
    parser.add_argument("--accept", action="store_true", help="listen: take the streams that the peer opens")
    parser.add_argument("--no-read", dest="read", action="store_false", help="listen: and read nothing from them")
    arguments = parser.parse_args()
    calm_collector()
    if arguments.side == "dial":
        trio.run(_dial, arguments)
    else:
        keep_memory()
        trio.run(_listening, arguments)


async def _listening(arguments: argparse.Namespace) -> None:
    await Listening(arguments).run()


if __name__ == "__main__":
    main()
