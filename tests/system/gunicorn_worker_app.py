"""A tiny WSGI app and a worker in a hurry, for the tests of the worker class."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cloud.server.messages import WatchedBody
from cloud.server.worker import ApiWorker


class HurriedWorker(ApiWorker):
    """As in production, but a head must come within one second, and so must a body."""

    head_seconds = 1.0

    def init_process(self) -> None:
        """In the worker's process, before it serves."""
        WatchedBody.grace_seconds = 1.0
        _wait_if_not_the_first()
        super().init_process()

    def load_wsgi(self) -> None:
        """Takes as long as the test likes."""
        gate = os.environ.get("TEST_LOADS_ONCE_THERE_IS")
        while gate and not Path(gate).exists():
            time.sleep(0.02)
        super().load_wsgi()


def _wait_if_not_the_first() -> None:
    """Hold every worker but the first where it has the master's signal handlers still, until there is a file."""
    gate = os.environ.get("TEST_OTHERS_WAIT_FOR")
    if not gate:
        return
    try:
        Path(gate + ".first").touch(exist_ok=False)
    except FileExistsError:
        while not Path(gate).exists():
            time.sleep(0.02)


def _read(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    try:
        body = environ["wsgi.input"].read()
    except OSError as error:
        body = f"fault: {error}".encode()  # as Django would: the app makes an answer of it
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]


def _facts(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    facts = {
        "headers": [
            [name.decode("latin-1"), value.decode("latin-1")] for name, value in environ["visiona.raw_headers"]
        ],
        "target": environ["visiona.raw_target"].decode("latin-1"),
        "request_id": environ["HTTP_X_REQUEST_ID"],
        "scheme": environ["wsgi.url_scheme"],
        "keys": sorted(key for key in environ if key.startswith("HTTP_")),
        "pid": os.getpid(),
        "pid_thread": threading.get_ident(),
    }
    body = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Content-Type", "application/json")])
    return [body]


def _cut(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    yield b"some"
    raise RuntimeError("the source died")


def _hijack(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    sock = environ["gunicorn.socket"]
    start_response("200 OK", [])
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nraw bytes")
    sock.shutdown(2)
    return [b"never seen"]


def _borrow(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    loan = environ["visiona.connection"]
    early = loan.take()
    mode = environ["QUERY_STRING"]
    if mode == "crash":
        loan.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        raise RuntimeError("the relay died")
    if mode == "caught":
        start_response("500 Internal Server Error", [("Content-Length", "4")])
        return [b"oops"]
    body = b"got " + early
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body)
    loan.sock.sendall(head + body)
    start_response("200 OK", [])
    loan.give_back(b"", answered=True, keep_alive=True, sent=len(head + body))
    return []


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """One behaviour a path."""
    path = environ["PATH_INFO"]
    if path == "/facts":
        return _facts(environ, start_response)
    if path in ("/read", "/storage/read"):
        return _read(environ, start_response)
    if path == "/cut":
        return _cut(environ, start_response)
    if path == "/hijack":
        return _hijack(environ, start_response)
    if path == "/borrow":
        return _borrow(environ, start_response)
    if path == "/crash":
        raise RuntimeError("a crash with ?ticket=secret")
    if path == "/endless":
        start_response("200 OK", [])
        return iter(lambda: b"x" * 65536, b"")
    if path == "/healthz" and environ.get("visiona.stopping"):
        start_response("503 Service Unavailable", [("Content-Length", "0")])
        return []
    if path in ("/slow", "/slower"):
        time.sleep(1.5 if path == "/slow" else 4.0)
    if path == "/own":
        start_response(
            "299 All is well",
            [("Content-Length", "0"), ("Server", "box"), ("Date", "its own"), ("X-A", "1"), ("X-A", "2")],
        )
        return []
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
