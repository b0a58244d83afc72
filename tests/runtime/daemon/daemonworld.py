"""A daemon on free ports, a stand-in for Django that can be told how to answer, and agents: all in one Trio run."""

from __future__ import annotations

import io
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import orjson
import trio

from tunnel.daemon.config import TunnelConfig
from tunnel.daemon.node import Daemon
from tunnel.daemon.ports import bind
from tunnel.logs import JsonLog
from tunnel.mux.connection import Connection
from tunnel.mux.stream import Stream
from tunnel.net.sockets import ByteStream, accept, listen
from tunnel.protocol.core import Role
from tunnel.websocket.handshake import HandshakeError, client_transport

SECRET = "a-secret-of-the-tests"
TOKEN = "vAs_" + "0" * 32
OTHER = "vAs_" + "1" * 32


class Control:
    """Django's `/internal/*`, as far as the daemon sees it. Every attribute may be changed while it runs."""

    def __init__(self) -> None:
        self.listener: socket.socket | None = None
        self.port = 0
        self.calls: list[tuple[str, Any]] = []
        self.epoch = 0
        self.refuse: dict[str, dict[str, Any]] = {}  # token -> Refused
        self.extra: dict[str, dict[str, Any]] = {}  # token -> keys laid over Admitted
        self.heartbeat_answers: list[dict[str, Any]] = []  # used up one by one, then the quiet answer
        self.status = 200  # anything else: every call is answered with it
        self.code = "INTERNAL_ERROR"
        self.frozen = False
        self.stuck: Callable[[str, Any], bool] = lambda path, body: False  # (path, body): calls that are never answered
        self.hold: trio.Event | None = None  # authenticate waits for it
        self.forbid: dict[str, Any] | None = None  # Forbidden: every caller of the fast lane is refused with it
        self.forbid_tokens: dict[str, dict[str, Any]] = {}  # the same, of callers with such a token or login
        self.ttl = 5.0  # seconds that an authorisation is good for
        self.grant: dict[str, Any] = {}  # keys laid over Authorized
        self.changed = trio.lowlevel.ParkingLot()
        self.headers: list[bytes] = []

    def open(self) -> None:
        self.listener = listen("127.0.0.1", self.port)
        self.port = self.listener.getsockname()[1]

    def close(self) -> None:
        if self.listener is not None:
            trio.lowlevel.notify_closing(self.listener)
            self.listener.close()

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for path, body in self.calls if path.endswith("/events") for event in body["events"]]

    @property
    def heartbeats(self) -> list[dict[str, Any]]:
        return [body for path, body in self.calls if path.endswith("/heartbeat")]

    @property
    def authorizations(self) -> list[dict[str, Any]]:
        return [body for path, body in self.calls if path.endswith("/authorize")]

    @property
    def authentications(self) -> list[dict[str, Any]]:
        return [body for path, body in self.calls if path.endswith("/authenticate")]

    async def wait(self, condition: Callable[[], Any]) -> Any:
        while not (result := condition()):
            await self.changed.park()
        return result

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                assert self.listener is not None
                try:
                    if self.listener.fileno() < 0:
                        raise trio.ClosedResourceError
                    sock, _ = await accept(self.listener)
                except (trio.ClosedResourceError, OSError):
                    await trio.sleep(0.01)
                    continue
                nursery.start_soon(self._serve, ByteStream(sock))

    async def _serve(self, stream: ByteStream) -> None:
        try:
            data = b""
            while b"\r\n\r\n" not in data:
                more = await stream.receive_some()
                if not more:
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            while len(body) < int(fields.get(b"content-length", b"0")):
                body += await stream.receive_some()
            if self.frozen:
                await trio.sleep_forever()
            self.headers.append(head)
            path, told = head.split(b" ")[1].decode(), orjson.loads(body or b"null")
            if self.stuck(path, told):
                self.calls.append((path + "!stuck", told))
                self.changed.unpark_all()
                await trio.sleep_forever()
            answer = await self._answer(path, told)
            await stream.send_all(answer)
        except trio.BrokenResourceError:
            pass
        finally:
            stream.close()

    async def _answer(self, path: str, body: Any) -> bytes:
        if self.status != 200:
            self.calls.append((path + "!refused", body))
            self.changed.unpark_all()
            return reply(self.status, {"success": False, "error": {"code": self.code, "message": "no"}})
        self.calls.append((path, body))
        self.changed.unpark_all()
        if path.endswith("/authenticate"):
            if self.hold is not None:
                await self.hold.wait()
            return reply(200, {"success": True, "data": {"results": [self._admit(c) for c in body["credentials"]]}})
        if path.endswith("/authorize"):
            return reply(200, {"success": True, "data": self._authorize(body)})
        if path.endswith("/heartbeat"):
            quiet = {"close": [], "send_sessions": False}
            answer = self.heartbeat_answers.pop(0) if self.heartbeat_answers else quiet
            return reply(200, {"success": True, "data": answer})
        return reply(200, {"success": True, "data": None})

    def _authorize(self, asked: dict[str, Any]) -> dict[str, Any]:
        forbid = self.forbid_tokens.get(asked["token"], self.forbid)
        if forbid is not None:
            return {"allowed": False, **forbid}
        admitted = {
            "allowed": True,
            "device_id": asked["device"],
            "epoch": self.epoch,
            "session": "",
            "node_url": "",
            "user_id": "user",
            "login": "login-of-" + asked["token"],
            "ttl": self.ttl,
            "body_max": 1 << 30,
        }
        return admitted | self.grant

    def _admit(self, credential: dict[str, Any]) -> dict[str, Any]:
        token = credential["token"]
        if token in self.refuse:
            return {"ok": False, **self.refuse[token]}
        self.epoch += 1
        admitted = {
            "ok": True,
            "device_id": "device-" + token[-1],
            "user_id": "user",
            "epoch": self.epoch,
            "session_token": None,
            "replaced": None,
        }
        return admitted | self.extra.get(token, {})


def reply(status: int, body: Any) -> bytes:
    raw = orjson.dumps(body)
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(raw)) + raw


class World:
    """One daemon with its Django; `agent` and `http` are the two sides that tests play."""

    def __init__(self, daemon: Daemon, control: Control, log: io.BytesIO, nursery: trio.Nursery) -> None:
        self.daemon = daemon
        self.control = control
        self.nursery = nursery
        self.public = daemon._ports.public_port
        self.internal = daemon._ports.internal_port
        self._log = log
        self.ended = trio.Event()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self._log.getvalue().splitlines()]

    def logged(self, event: str) -> list[dict[str, Any]]:
        self.daemon._log.flush()
        return [line for line in self.lines if line["event"] == event]

    async def agent(
        self,
        token: str = TOKEN,
        *,
        headers: list[tuple[str, str]] | None = None,
        path: str = "/tunnel/connect",
        run: bool = True,
    ) -> tuple[Connection, dict[str, str]]:
        """A connected agent whose session runs, and the headers of its 101. Raises HandshakeRefused."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.public)
        if headers is None:
            headers = [("Authorization", f"Bearer {token}")]
        try:
            transport, answer = await client_transport(stream, "daemon", path, headers)
        except HandshakeError:
            await stream.aclose()
            raise
        role = Role.SERVER if self.daemon.config.role == "client" else Role.CLIENT
        connection = Connection(transport, role=role, accept_streams=True, name="agent")
        if run:
            self.nursery.start_soon(connection.run)
        await self.until(lambda: any(one.connection for one in self.daemon.parts.sessions.all()))
        return connection, {name.lower(): value for name, value in answer}

    async def serve(self, agent: Connection, handle: Callable[[Stream], Awaitable[None]]) -> None:
        """Let the agent answer every stream with `handle`, in the background."""

        async def accept_all() -> None:
            async with trio.open_nursery() as nursery:
                try:
                    while True:
                        nursery.start_soon(handle, await agent.accept_stream())
                except trio.EndOfChannel:
                    return

        self.nursery.start_soon(accept_all)

    async def until(self, condition: Callable[[], Any]) -> None:
        """What has no event to wait for: looked at between the other tasks' turns."""
        while True:
            if condition():
                return
            await trio.sleep(0.002)

    async def http(
        self,
        target: str,
        *,
        method: str = "GET",
        headers: list[tuple[str, str]] | None = None,
        port: int | None = None,
        secret: str | None = SECRET,
    ) -> tuple[int, dict[str, str], Any]:
        """One request to the internal port (or `port`): status, headers, body (parsed if it is JSON)."""
        stream = await dial(port or self.internal)
        lines = [f"{method} {target} HTTP/1.1", "Host: daemon"]
        if secret is not None:
            lines.append(f"Authorization: Bearer {secret}")
        lines += [f"{name}: {value}" for name, value in headers or []]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        answer = await read_all(stream)
        return parse(answer)

    async def forward(
        self, *, headers: list[tuple[str, str]] | None = None, secret: str = SECRET, first: bytes = b""
    ) -> tuple[int, dict[str, str], ByteStream, bytes]:
        """Ask for a stream: status, headers, the socket, and what was read behind the head."""
        if headers is None:
            headers = [("X-Tunnel-Session", self.daemon.parts.sessions.all()[-1].id)]
        stream = await dial(self.internal)
        lines = ["POST /internal/forward/raw HTTP/1.1", "Host: daemon", f"Authorization: Bearer {secret}"]
        lines += ["Connection: Upgrade", "Upgrade: visiona-stream"] + [f"{name}: {value}" for name, value in headers]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode() + first)
        data = b""
        while b"\r\n\r\n" not in data:
            more = await stream.receive_some()
            if not more:
                break
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        status, fields, _ = parse(head + b"\r\n\r\n")
        return status, fields, stream, rest


_dialled: list[ByteStream] = []


async def dial(port: int) -> ByteStream:
    """A client's socket, closed with the world if not before."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    sock = socket.socket(fileno=stream.socket.detach())
    sock.setblocking(False)
    _dialled.append(ByteStream(sock))
    return _dialled[-1]


async def read_all(stream: ByteStream) -> bytes:
    data = b""
    while more := await stream.receive_some():
        data += more
    stream.close()
    return data


def parse(answer: bytes) -> tuple[int, dict[str, str], Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    try:
        parsed: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        parsed = body
    return int(first.split(" ")[1]), fields, parsed


async def echo(stream: Stream) -> None:
    """An agent's handler: everything back, then the end."""
    try:
        while data := await stream.receive_some():
            await stream.send_all(data)
        await stream.aclose()
    except trio.BrokenResourceError:
        stream.reset()


@asynccontextmanager
async def world(
    *, start_control: bool = True, crashes: int = 0, seconds: float = 30, **settings: Any
) -> AsyncIterator[World]:
    """A running daemon. `settings` are fields of TunnelConfig; `crashes`: connections that are meant to crash;
    `seconds`: how long the test may take by its clock.
    """
    control = Control()
    control.open()
    if not start_control:
        control.close()
    config = replace(
        TunnelConfig(
            public_port=0,
            internal_port=0,
            api_url=f"http://127.0.0.1:{control.port}",
            secrets=(SECRET, "an-older-secret"),
            drain_seconds=5.0,
            log_level="debug",
        ),
        **settings,
    )
    out = io.BytesIO()
    daemon = Daemon(config, bind(config), JsonLog(out, level="debug", node=config.node), version="test")
    with trio.fail_after(seconds):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run)
            this = World(daemon, control, out, nursery)

            async def run(*, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
                try:
                    await daemon.run(task_status=task_status)
                finally:
                    this.ended.set()

            await nursery.start(run)
            try:
                yield this
            finally:
                nursery.cancel_scope.cancel()
                while _dialled:
                    _dialled.pop().close()
                daemon._ports.close()
                control.close()
    assert len(this.logged("connection_crashed")) == crashes, this.lines
