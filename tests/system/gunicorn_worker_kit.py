"""A gunicorn with the API's worker class, and raw sockets to speak to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
THREADS = 4
CONFIG = "tests/system/gunicorn_worker_conf.py"
COMMAND = [sys.executable, "-m", "gunicorn", "-c", CONFIG, "tests.system.gunicorn_worker_app:app"]


class Server:
    """One process with `workers` of THREADS threads each; what it logs is in `log`."""

    def __init__(self, log: Path, workers: int = 1, **settings: str) -> None:
        self.port = free_port()
        self.log = log
        environ = {name: value for name, value in os.environ.items() if not name.startswith("VISIONA_")}
        environ |= {
            "VISIONA_API_PORT": str(self.port),
            "VISIONA_API_WORKERS": str(workers),
            "VISIONA_API_THREADS": str(THREADS),
            "VISIONA_LOG_LEVEL": "debug",
            "HOME": str(log.parent),
            **settings,
        }
        with log.open("wb") as out:
            self.process = subprocess.Popen(COMMAND, cwd=ROOT, env=environ, stdout=out, stderr=out)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(OSError), self.connect() as sock:
                sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                if sock.recv(100):
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def connect(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def lines(self) -> list[dict[str, Any]]:
        """Of JSON, but one that is being written."""
        whole, _, _ = self.log.read_text().rpartition("\n")
        return [json.loads(line) for line in whole.splitlines()]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


@contextlib.contextmanager
def served(folder: Path, **settings: str) -> Iterator[Server]:
    """A server that is ready, its log in `folder`."""
    running = Server(folder / "log.jsonl", **settings)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def read_all(sock: socket.socket) -> bytes:
    """Until the end; a reset raises."""
    data = b""
    while part := sock.recv(65536):
        data += part
    return data


def read_until_reset(sock: socket.socket) -> bytes:
    """What came before a reset; a clean end fails the test."""
    data = b""
    try:
        while part := sock.recv(65536):
            data += part
    except ConnectionResetError:
        return data
    raise AssertionError(f"a clean end after {data!r}")


def read_answer(sock: socket.socket) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """Status line, fields, body of one answer with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = sock.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    line, *rest = head.split(b"\r\n")
    fields = {name.lower(): value for name, _, value in (field.partition(b": ") for field in rest)}
    while len(body) < int(fields.get(b"content-length", b"0")):
        body += sock.recv(65536)
    return line, fields, body


def talk(server: Server, raw: bytes, *, byte_by_byte: bool = False) -> bytes:
    with server.connect() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for part in [raw[i : i + 1] for i in range(len(raw))] if byte_by_byte else [raw]:
                sock.sendall(part)
        return read_all(sock)


def get(server: Server, path: str, *headers: str) -> tuple[bytes, dict[bytes, bytes], bytes]:
    with server.connect() as sock:
        lines = [f"GET {path} HTTP/1.1", "Host: a", *headers, "", ""]
        sock.sendall("\r\n".join(lines).encode("latin-1"))
        return read_answer(sock)


def check_refusal(raw: bytes, status: int, code: str) -> dict[bytes, bytes]:
    head, _, body = raw.partition(b"\r\n\r\n")
    line, *rest = head.split(b"\r\n")
    assert line.startswith(b"HTTP/1.1 %d " % status), raw
    fields = {name.lower(): value for name, _, value in (field.partition(b": ") for field in rest)}
    error = json.loads(body)["error"]
    assert (error["code"], error["request_id"]) == (code, fields[b"x-request-id"].decode())
    assert int(fields[b"content-length"]) == len(body)
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"connection"] == b"close"
    assert fields[b"x-content-type-options"] == b"nosniff"
    assert b"content-security-policy" in fields
    assert b"server" not in fields
    return fields


HOST = b"Host: a\r\n"
