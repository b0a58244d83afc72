"""A forwarder by itself: its client is one end of a socket pair, and nobody but the test ends it."""

from __future__ import annotations

import socket
import threading
from typing import Any

from apps.tunnels.forwarder import (
    Elsewhere,
    Exchange,
    Forward,
    Limits,
    RequestHead,
    Route,
    Via,
)
from tests.apps.proxy.kit import WAIT, Got, Wire
from tests.apps.proxy.stand_in import StandInDaemon


class FakeControl:
    ended = ""


class FakeClient:
    """The lent connection: one end of a TCP pair, the other one in the hands of the test."""

    def __init__(self, early: bytes = b"") -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.wire = Wire(listener.getsockname()[1])
            self.sock, _ = listener.accept()
        self.early = early
        self.given: tuple[bytes, bool, bool] | None = None
        self.was_cut = False

    def take(self) -> bytes:
        return self.early

    def give_back(self, rest: bytes, *, answered: bool, keep_alive: bool, sent: int = 0) -> None:
        self.sock.setblocking(True)
        self.given = (rest, answered, keep_alive)

    def cut(self, sent: int = 0) -> None:
        self.was_cut = True
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.sock.close()

    def close(self) -> None:
        self.sock.close()
        self.wire.sock.close()


def route(daemon: StandInDaemon, session: str = "session-1") -> Route:
    return Route("device-1", daemon.url, session, 1)


def make(
    client: FakeClient,
    to: Route,
    target: bytes = b"/thing",
    *,
    method: bytes = b"GET",
    fields: tuple[tuple[bytes, bytes], ...] = (),
    newer: Route | None = None,
    limits: Limits | None = None,
    control: Any = None,
    elsewhere: Elsewhere | None = None,
) -> Forward:
    own = limits or Limits(open_seconds=2, head_seconds=2, idle_seconds=2)
    head = RequestHead(method, target, [(b"Host", b"box.example"), *fields], http11=True)
    exchange = Exchange(head, Via(scheme="http", address="192.0.2.7", request_id="req_1"), own)
    return Forward(
        exchange,
        request_id="req_1",
        route=to,
        find_route=lambda _than: newer or to,
        client=client,
        control=control or FakeControl(),
        limits=own,
        secret="s3cret",
        elsewhere=elsewhere,
    )


def run(forward: Forward, client: FakeClient, *, head_only: bool = False) -> Got:
    """Run it to its end on a thread, and read what the client gets."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            forward.to_head()
            forward.to_end([(b"X-Ours", b"yes")])
        except BaseException as error:  # noqa: BLE001 - told to the test
            failed.append(error)
            client.sock.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return client.wire.read(head_only=head_only)
    finally:
        thread.join(WAIT)
        forward.close()
        if failed:
            raise failed[0]
