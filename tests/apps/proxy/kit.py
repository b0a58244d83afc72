"""A scripted box, a stand-in for the daemon, and a client that speaks raw bytes: what the proxy's tests are made of.

The box is a plain TCP server, so the same scripts serve behind the stand-in, behind a real agent, and on both lanes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

RESET = struct.pack("ii", 1, 0)
WAIT = 30.0


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


class Peer:
    """One connection at the box: buffered reads of a request, and whatever a script wants to send."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(WAIT)
        self.buffer = b""
        self.head = b""

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("latin-1")

    def fields(self, name: str) -> list[str]:
        """Every value of a field, in order."""
        found = []
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.decode("latin-1").lower() == name.lower():
                found.append(value.strip().decode("latin-1"))
        return found

    def read_head(self) -> bool:
        """The next request's head into `head`; False at the end of the connection."""
        while b"\r\n\r\n" not in self.buffer:
            data = self.sock.recv(65536)
            if not data:
                return False
            self.buffer += data
        self.head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        return True

    def _more(self) -> bytes:
        data = self.buffer or self.sock.recv(1 << 18)
        self.buffer = b""
        if not data:
            raise ConnectionError("the request's body ended early")
        return data

    def body(self) -> Iterator[bytes]:
        """The request's body bytes."""
        if self.fields("transfer-encoding"):
            while True:
                while b"\r\n" not in self.buffer:
                    self.buffer += self._more()
                line, _, self.buffer = self.buffer.partition(b"\r\n")
                size = int(line, 16)
                left = size + 2
                while left:
                    data = self._more()
                    part, self.buffer = data[:left], data[left:]
                    left -= len(part)
                    if size:
                        yield part[: len(part) if left >= 2 else len(part) - 2 + left]
                if not size:
                    return
        left = int((self.fields("content-length") or ["0"])[0])
        while left:
            data = self._more()
            part, self.buffer = data[:left], data[left:]
            left -= len(part)
            yield part

    def answer(self, body: bytes = b"", status: str = "200 OK", *fields: str) -> None:
        """A whole answer with a length, on a connection that stays."""
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields]
        self.sock.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)

    def wait_gone(self, seconds: float = WAIT) -> str:
        """Wait until the other side leaves: `reset` or `end`; `still there` after the time."""
        self.sock.settimeout(seconds)
        try:
            while self.sock.recv(65536):
                pass
        except TimeoutError:
            return "still there"
        except OSError:
            return "reset"
        return "end"


Script = Callable[[Peer], "bool | None"]
"""Serves one request whose head was read. True: the connection stays for the next one."""


class Server:
    """A TCP server on a thread, a thread a connection; all gone when it is closed."""

    def __init__(self, port: int = 0) -> None:
        self.listener = socket.create_server(("127.0.0.1", port))
        self.port: int = self.listener.getsockname()[1]
        self.accepted = 0
        self.killed = threading.Event()
        self.live: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self.live.add(sock)
            thread = threading.Thread(target=self._run, args=(sock,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _run(self, sock: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self.serve(sock)
        finally:
            with self._lock:
                self.live.discard(sock)
            sock.close()

    def serve(self, sock: socket.socket) -> None:
        raise NotImplementedError

    def kill_all(self) -> None:
        """Reset every connection, as the death of the process would."""
        self.killed.set()
        self.killed = threading.Event()
        with self._lock:
            live = list(self.live)
        for sock in live:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RD)  # wakes its thread, which closes it

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self._lock:
            live = list(self.live)
        for sock in live:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._accepting.join(5)
        for thread in self._threads:
            thread.join(5)


class Box(Server):
    """The local server: `on` gives a script to a path (without its query); others echo what came as JSON."""

    def __init__(self, port: int = 0) -> None:
        self.scripts: dict[str, Script] = {}
        self.heads: list[bytes] = []
        super().__init__(port)

    def on(self, path: str, script: Script) -> str:
        """Set a script; the path again."""
        self.scripts[path] = script
        return path

    def serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        while peer.read_head():
            self.heads.append(peer.head)
            script = self.scripts.get(peer.path.partition("?")[0], echo)
            if script(peer) is not True:
                return


def echo(peer: Peer) -> bool:
    """Answer with the request as it came: line, fields, size and sha256 of the body."""
    digest, size = hashlib.sha256(), 0
    for part in peer.body():
        digest.update(part)
        size += len(part)
    line, *lines = peer.head.decode("latin-1").split("\r\n")
    said = {"line": line, "fields": [item.split(": ", 1) for item in lines], "size": size, "sha256": digest.hexdigest()}
    peer.answer(json.dumps(said).encode(), "200 OK", "Content-Type: application/json")
    return True


@dataclass
class Got:
    """An answer as it came over the wire. `complete`: it ended as its head promised; `ended`: how the connection is."""

    status: int
    reason: str
    head: bytes
    fields: list[tuple[str, str]]
    body: bytes
    complete: bool
    ended: str = "open"
    extra: dict[str, float] = field(default_factory=dict)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.fields if key.lower() == name.lower()]

    def one(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The envelope's error code."""
        answer = json.loads(self.body)
        assert answer["success"] is False
        assert answer["error"]["request_id"] == self.one("x-request-id")
        return str(answer["error"]["code"])


class Wire:
    """A client's connection, byte by byte; with `room`, what its kernel takes while nobody reads, in bytes."""

    def __init__(self, port: int, host: str = "127.0.0.1", *, room: int = 0) -> None:
        self.sock = socket.socket()
        self.sock.settimeout(WAIT)
        if room:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        self.sock.connect((host, port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.ended = "open"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def more(self) -> bool:
        """Read once; False when the connection ended, `ended` says how."""
        try:
            data = self.sock.recv(1 << 18)
        except ConnectionError:
            self.ended = "reset"
            return False
        if not data:
            self.ended = "closed"
        self.buffer += data
        return bool(data)

    def read_head(self) -> Got:
        """The answer's head; what follows stays in `buffer`."""
        while b"\r\n\r\n" not in self.buffer and self.more():
            pass
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").split("\r\n")
        assert line.startswith("HTTP/1.1 "), (line, self.ended)
        fields = [(name, value.strip()) for name, _, value in (item.partition(":") for item in lines)]
        return Got(int(line[9:12]), line[13:], head, fields, b"", complete=False)

    def read(self, *, head_only: bool = False) -> Got:
        """A whole answer, or as much of it as comes."""
        got = self.read_head()
        while got.status == 100:
            got = self.read_head()
        if head_only or got.status in (204, 304):
            got.complete = True
        elif got.all("transfer-encoding"):
            self._chunks(got)
        elif got.all("content-length"):
            size = int(got.one("content-length"))
            while len(self.buffer) < size and self.more():
                pass
            got.body, self.buffer = self.buffer[:size], self.buffer[size:]
            got.complete = len(got.body) == size
        else:
            while self.more():
                pass
            got.body, self.buffer = self.buffer, b""
            got.complete = self.ended == "closed"
        got.ended = self.ended
        return got

    def _chunks(self, got: Got) -> None:
        body = bytearray()
        while True:
            while b"\r\n" not in self.buffer:
                if not self.more():
                    got.body = bytes(body)
                    return
            line, _, self.buffer = self.buffer.partition(b"\r\n")
            size = int(line, 16)
            while len(self.buffer) < size + 2 and self.more():
                pass
            body += self.buffer[:size]
            whole = len(self.buffer) >= size + 2
            self.buffer = self.buffer[size + 2 :]
            if not size or not whole:
                got.complete = whole
                got.body = bytes(body)
                return

    def wait_end(self, seconds: float = WAIT) -> str:
        """Read until the connection ends: `closed` or `reset`."""
        self.sock.settimeout(seconds)
        while self.more():
            pass
        return self.ended


def until(look: Callable[[], object], seconds: float = WAIT) -> None:
    """Wait until `look` answers something true."""
    deadline = time.monotonic() + seconds
    while not look():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)
