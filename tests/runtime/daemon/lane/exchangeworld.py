"""A caller of `POST /internal/exchange`, as the API is one."""

from __future__ import annotations

import socket
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import orjson
import trio

from tests.runtime.daemon.daemonworld import SECRET, World, dial
from tests.runtime.daemon.lane.laneworld import DEVICE
from tunnel.contract.exchange import (
    ABORT,
    ACCEPTED,
    DATA,
    END,
    EOF,
    ExchangeCall,
    ExchangeEnd,
    RecordReader,
    begin_record,
    record,
)
from tunnel.net.sockets import ByteStream

MOUNT = f"/api/devices/{DEVICE}/proxy"


@dataclass
class Told:
    """What came of a call so far."""

    data: bytes = b""
    kinds: list[int] = field(default_factory=list)
    end: ExchangeEnd | None = None

    @property
    def accepted(self) -> bool:
        return ACCEPTED in self.kinds

    @property
    def outcome(self) -> tuple[str, str]:
        assert self.end is not None
        return self.end["outcome"], self.end["code"]

    @property
    def head(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[0]

    @property
    def body(self) -> bytes:
        return self.data.partition(b"\r\n\r\n")[2]


def call_of(w: World, **over: Any) -> ExchangeCall:
    """The grant of a call for `DEVICE`, which the daemon of `w` holds."""
    session = w.daemon.parts.sessions.of_device(DEVICE)
    call = ExchangeCall(
        device_id=DEVICE,
        epoch=session.epoch if session else 1,
        session=session.id if session else "",
        node_url=w.daemon.node_url,
        moving=False,
        user_id="user",
        login="login-1",
        body_max=1 << 20,
        peer="192.0.2.1",
        address="192.0.2.7",
        scheme="https",
        trusted=False,
        mount=MOUNT,
        home="",
        upgrade=False,
        request_id="req_of-the-api",
        traceparent="",
        fields=[("X-Site", "yes")],
        names_device=False,
    )
    call.update(over)  # type: ignore[typeddict-item]
    return call


def head_of(line: str, *fields: str) -> bytes:
    """A client's raw head; the target is below the mount unless it is a path of its own."""
    method, _, path = line.partition(" ")
    target = path if path.startswith("/ws/") else MOUNT + path
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: site.example", *fields, "", ""]).encode()


class Caller:
    """One kept connection."""

    def __init__(self, w: World) -> None:
        self.world = w
        self.stream: ByteStream
        self.reader = RecordReader()
        self.records: deque[tuple[int, bytes]] = deque()

    async def __aenter__(self) -> Self:
        self.stream = await dial(self.world.internal)
        lines = ["POST /internal/exchange HTTP/1.1", "Host: d", f"Authorization: Bearer {SECRET}"]
        lines += ["Connection: Upgrade", "Upgrade: visiona-exchange", "", ""]
        await self.stream.send_all("\r\n".join(lines).encode())
        data = b""
        while b"\r\n\r\n" not in data:
            more = await self.stream.receive_some()
            assert more, data
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"Upgrade: visiona-exchange" in head
        self.records.extend(self.reader.feed(rest))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stream.close()

    async def begin(self, head: bytes, **over: Any) -> None:
        await self.stream.send_all(self.first(head, **over))

    def first(self, head: bytes, **over: Any) -> bytes:
        return begin_record(orjson.dumps(call_of(self.world, **over)), head)

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(record(DATA, data))

    async def eof(self) -> None:
        await self.stream.send_all(record(EOF))

    async def abort(self, code: str = "") -> None:
        await self.stream.send_all(record(ABORT, code.encode()))

    async def next(self, told: Told) -> None:
        """One more record."""
        while not self.records:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError
            self.records.extend(self.reader.feed(data))
        kind, payload = self.records.popleft()
        told.kinds.append(kind)
        if kind == DATA:
            told.data += payload
        elif kind == END:
            told.end = orjson.loads(payload)

    async def told(self, told: Told | None = None) -> Told:
        """All up to the end."""
        told = told or Told()
        while told.end is None:
            await self.next(told)
        return told

    async def until(self, text: bytes) -> Told:
        told = Told()
        while text not in told.data:
            await self.next(told)
        return told

    async def ask(self, head: bytes, body: bytes = b"", **over: Any) -> Told:
        await self.begin(head, **over)
        if body:
            await self.say(body)
        return await self.told()

    async def closed(self) -> bool:
        """Wait for the daemon to close the connection."""
        try:
            while data := await self.stream.receive_some():
                self.records.extend(self.reader.feed(data))
        except trio.BrokenResourceError:
            pass
        return True


def small_buffers(caller: Caller) -> None:
    """So that a caller that reads nothing is soon felt."""
    caller.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
