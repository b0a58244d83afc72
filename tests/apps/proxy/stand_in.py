"""What the API takes for the tunnel daemon: it speaks `POST /internal/exchange` and asks the box itself."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from typing import Any

import orjson

from tests.apps.proxy.kit import WAIT, Peer, Server, reset
from tunnel.contract import ABORT, ACCEPTED, BEGIN, DATA, END, EOF, RecordReader, record, split_begin
from tunnel.http import CONTINUE, AnswerCut, Exchange, ExchangeError, Limits, ProxyError, RequestParser, Via

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: visiona-exchange\r\n"
    b"X-VisionA-Agent-Features: keepalive\r\n\r\n"
)


class StandInDaemon(Server):
    """One connection to the box for each exchange; no times, no retries, nothing shared.

    `sessions` are those it knows; `refuse` is the (code, whether the box may have seen it) of all exchanges instead.
    """

    def __init__(self, box_port: int) -> None:
        self.box_port = box_port
        self.sessions: set[str] = set()
        self.refuse: tuple[str, bool] | None = None
        self.calls: list[dict[str, Any]] = []
        """What was granted, of each exchange."""
        self.silent = threading.Event()
        self.older = False
        """It is one of the release before: no such route."""
        self.before_answer: Callable[[], object] | None = None
        """Called once, when the first exchange came: what the world does meanwhile."""
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, sock: socket.socket) -> None:
        call = Peer(sock)
        if not call.read_head():
            return
        if self.silent.is_set():
            call.wait_gone(30)
            return
        if self.older and call.path == "/internal/exchange":
            sock.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        if call.path == "/internal/forward/raw":  # another daemon asks
            sock.sendall(SWITCH.replace(b"visiona-exchange", b"visiona-stream"))
            with socket.create_connection(("127.0.0.1", self.box_port), timeout=WAIT) as box:
                join(sock, box, self.killed)
            return
        sock.sendall(SWITCH)
        sock.settimeout(None)
        door = _Door(self, sock)
        while door.next():
            pass


def join(one: socket.socket, two: socket.socket, killed: threading.Event) -> None:
    """Pump both ways until both ended, or one was reset, which resets the other; so does `killed`."""
    one.settimeout(None)
    two.settimeout(None)
    other = {one: two, two: one}
    reading = {one, two}
    while reading:
        for sock in select.select(list(reading), [], [])[0]:
            try:
                data = sock.recv(1 << 18)
                if killed.is_set():
                    raise ConnectionAbortedError
                if data:
                    other[sock].sendall(data)
                else:
                    reading.discard(sock)
                    other[sock].shutdown(socket.SHUT_WR)
            except OSError:
                reset(one)
                reset(two)
                return


class _Door:
    """The records of one connection."""

    def __init__(self, daemon: StandInDaemon, sock: socket.socket) -> None:
        self._daemon = daemon
        self.sock = sock
        self._reader = RecordReader()
        self._waiting: list[tuple[int, bytes]] = []

    def read(self) -> bool:
        """More records; False at the end."""
        data = self.sock.recv(1 << 18)
        if self._daemon.killed.is_set():
            reset(self.sock)
            raise ConnectionAbortedError
        self._waiting += self._reader.feed(data)
        return bool(data)

    def take(self) -> tuple[int, bytes] | None:
        return self._waiting.pop(0) if self._waiting else None

    def next(self) -> bool:
        """One exchange; False: there is none any more."""
        while True:
            while (found := self.take()) is not None:
                if found[0] == BEGIN:
                    self._exchange(*split_begin(found[1]))
                    return True
            if not self.read():
                return False

    def _exchange(self, said: bytes, head: bytes) -> None:
        daemon, call = self._daemon, orjson.loads(said)
        daemon.calls.append(call)
        then, daemon.before_answer = daemon.before_answer, None
        if then is not None:
            then()
        known = call["session"] in daemon.sessions
        refuse = daemon.refuse or (None if known else ("TUNNEL_DISCONNECTED", False))
        if refuse is not None:
            idempotent = head.split(b" ")[0] in (b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS")
            self.end(refuse[0], sent=refuse[1], repeatable=not refuse[1] or idempotent, retry_after=5)
            return
        _Carried(self, daemon, call, head).run()

    def end(
        self, code: str = "", *, outcome: str = "", sent: bool = True, repeatable: bool = False, **more: Any
    ) -> None:
        facts = {
            "outcome": outcome or ("refused" if code else "ok"), "code": code, "problem": code, "sent": sent,
            "repeatable": repeatable, "keep": False, "status": None, "session": "", "attempts": 1, "reused": False,
            "bytes_up": 0, "bytes_down": 0, "head_ms": None,
        }  # fmt: skip
        self.sock.sendall(record(END, orjson.dumps(facts | more)))


class _Carried:
    """One exchange with the box."""

    def __init__(self, door: _Door, daemon: StandInDaemon, call: dict[str, Any], head: bytes) -> None:
        self._door = door
        self._daemon = daemon
        self._call = call
        self._out = b""
        self._early = b""
        self._head_out = False
        self._client_over = False
        parsed = RequestParser().feed(head)
        assert parsed is not None
        via = Via(
            scheme=call["scheme"], address=call["peer"], request_id=call["request_id"], traceparent=call["traceparent"],
            trusted=call["trusted"], mount=call["mount"].encode(), home=call["home"].encode(), upgrade=call["upgrade"],
            close=not call["upgrade"],
        )  # fmt: skip
        self._exchange = Exchange(parsed, via, Limits(request_body=call["body_max"]))
        self._body = self._exchange.request.body_reader()

    def run(self) -> None:
        exchange, again = self._exchange, self._exchange.request.idempotent
        if not (again and not exchange.request.body_length):
            self._door.sock.sendall(record(ACCEPTED))
        try:
            with socket.create_connection(("127.0.0.1", self._daemon.box_port), timeout=WAIT) as box:
                try:
                    self._talk(box)
                except (AnswerCut, ProxyError) as error:
                    reset(box)
                    self._failed(error)
                except ConnectionAbortedError:
                    reset(box)
                    raise
                except BaseException:
                    reset(box)
                    raise
        except ConnectionRefusedError:
            self._door.end("AGENT_UNREACHABLE", repeatable=again)

    def _failed(self, error: ExchangeError) -> None:
        if self._head_out:
            self._door.end(error.code, outcome="cut", status=self._status)
        else:
            again = self._exchange.request.idempotent and not self._exchange.answered
            self._door.end(error.code, repeatable=again)

    @property
    def _status(self) -> int | None:
        answer = self._exchange.answer
        return None if answer is None else answer.status

    def _talk(self, box: socket.socket) -> None:
        exchange = self._exchange
        box.settimeout(None)
        box.sendall(exchange.start())
        if exchange.request.expects_continue and not self._body.done:
            self._door.sock.sendall(record(DATA, CONTINUE))
        box_ended = False
        while not exchange.complete or (exchange.upgraded and not (box_ended and self._client_over)):
            self._from_client(box)
            wanted = [self._door.sock, *([] if box_ended else [box])]
            happened = select.select(wanted, [], [], 0.25)[0]
            if self._daemon.killed.is_set():
                reset(self._door.sock)
                raise ConnectionAbortedError
            if self._door.sock in happened and not self._door.read():
                raise ConnectionAbortedError
            if box in happened:
                box_ended = self._from_box(box)
        last = exchange.client_end() if not exchange.upgraded else b""
        if last:
            self._door.sock.sendall(record(DATA, last))
        self._door.end(status=self._status, keep=exchange.client_keep_alive)

    def _from_client(self, box: socket.socket) -> None:
        exchange = self._exchange
        while (found := self._door.take()) is not None:
            kind, payload = found
            if kind == ABORT:
                raise ConnectionAbortedError
            if kind == EOF:
                self._client_over = True
                if exchange.upgraded:
                    box.shutdown(socket.SHUT_WR)
                elif not self._body.done:
                    raise ConnectionAbortedError
            elif exchange.upgraded:
                box.sendall(payload)
            elif self._call["upgrade"]:
                self._early += payload
            elif not self._body.done:
                self._send_body(box, payload)

    def _send_body(self, box: socket.socket, payload: bytes) -> None:
        exchange = self._exchange
        pieces = [part for piece in self._body.feed(payload) for part in exchange.send_body(piece)]
        try:
            for piece in [*pieces, *([exchange.end_body()] if self._body.done else [])]:
                box.sendall(piece)
        except OSError:
            pass  # what it said before it ended is read, or its end

    def _from_box(self, box: socket.socket) -> bool:
        """Whether it ended."""
        exchange = self._exchange
        try:
            data = box.recv(1 << 18)
        except OSError as error:
            raise exchange.reset_by_box() from error
        if exchange.upgraded and not data:
            self._door.sock.sendall(record(EOF))
            return True
        pieces = exchange.receive(data) if data else exchange.receive_end() or []
        if exchange.answer is not None and not self._head_out:
            self._head_out = True
            fields = [(name.encode(), value.encode()) for name, value in self._call["fields"]]
            if self._call["names_device"]:
                fields.append((b"X-VisionA-Device-Id", self._call["device_id"].encode()))
            self._door.sock.sendall(record(DATA, exchange.client_head(fields)))
            if exchange.upgraded:
                box.sendall(self._early)
        out = b"".join(map(bytes, exchange.client_body(pieces))) if self._head_out else b""
        if out:
            self._door.sock.sendall(record(DATA, out))
        return False
