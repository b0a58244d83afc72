"""The shipped nginx in front of two daemons of which one is away, and the other has just come back."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.apps.proxy.kit import Wire
from tests.system.nginx import need_nginx, running

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SECONDS = 30.0


def serve(listener: socket.socket, held: threading.Semaphore) -> None:
    """Answer each connection's one request; those for `/…/hold` stay unanswered, as a tunnel that stands for days."""
    with ExitStack() as open_ones:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            open_ones.enter_context(sock)
            sock.settimeout(SECONDS)
            head = b""
            while b"\r\n\r\n" not in head:
                data = sock.recv(4096)
                if not data:
                    break
                head += data
            if b"hold" in head.partition(b"\r\n")[0]:
                held.release()
            else:
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")


@pytest.mark.parametrize("path", ["/d/x", "/tunnel/connect"])
def test_a_daemon_that_is_back_is_asked_by_all_at_once(tmp_path: Path, free_port: Callable[[], int], path: str) -> None:
    """Not by one alone until that one is answered, while all others are told that there is no daemon."""
    need_nginx()
    public, held = free_port(), threading.Semaphore(0)
    with ExitStack() as kept:
        back, away = (kept.enter_context(socket.socket()) for _ in range(2))
        for one in (back, away):
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in (back, away)]
        nginx = kept.enter_context(running(tmp_path, public, api=ports[1], tunnels=ports))

        def ask(more: str = "") -> Wire:
            wire = kept.enter_context(Wire(nginx.port))
            wire.send(f"GET {path}{more} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return wire

        assert ask().read().status == 503  # nobody listens: both have failed
        back.listen()
        served = threading.Thread(target=serve, args=(back, held))
        served.start()
        try:
            for _ in range(3):
                ask("/hold")
                assert held.acquire(timeout=SECONDS)
                assert ask().read().status == 200
        finally:
            back.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            served.join(SECONDS)
