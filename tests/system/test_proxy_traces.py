"""What an exchange leaves behind: no descriptor and no stream, but one log line."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.apps.proxy.kit import Peer, reset, until
from tests.apps.proxy.stack import EVERY_CARRIER, Lane
from tests.system.ws_kit import WS, echo

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER
ROUNDS = 12
"""Of all ends; a leak of one kind would leave as many."""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> int:
    """Those of the API's workers; of the daemon, which has none, its own."""
    return sum(len(list(Path(f"/proc/{one}/fd").iterdir())) for one in children(pid) or [pid])


def cut(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")


def slow(peer: Peer) -> None:
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
    peer.wait_gone()


def test_nothing_is_left_behind(lane: Lane) -> None:
    lane.box.on("/cut", cut)
    lane.box.on("/reset", lambda peer: reset(peer.sock))
    lane.box.on("/nonsense", lambda peer: peer.sock.sendall(b"SSH-2.0-OpenSSH\r\n"))
    lane.box.on("/slow", slow)
    lane.box.on("/ws/echo", echo)

    def round_of_all_ends() -> None:
        assert lane.ask("GET", "/fine").status == 200
        assert not lane.ask("GET", "/cut").complete
        assert lane.ask("GET", "/reset").status == 502
        assert lane.ask("GET", "/nonsense").status == 502
        assert lane.ask("GET", "/../refused").status == 400
        with lane.wire() as wire:
            wire.send(lane.head("PUT", "/left", "Content-Length: 5") + b"x")
        with lane.wire() as wire:
            wire.send(lane.head("GET", "/slow"))
            assert wire.read_head().status == 200
            reset(wire.sock)
        with lane.wire() as wire:
            wire.send(lane.head("PUT", "/bad", "Transfer-Encoding: chunked") + b"zz\r\n")
            assert wire.read().status == 400
        with lane.wire() as wire:  # upgraded, and ended by both sides
            wire.send(lane.head("GET", "/ws/echo", *WS, prefix=""))
            assert wire.read_head().status == 101
            wire.send(b"last")
            wire.sock.shutdown(socket.SHUT_WR)
            assert (wire.wait_end(), wire.buffer) == ("closed", b"lastbye")
        with lane.wire() as wire:  # upgraded, and left by the client
            wire.send(lane.head("GET", "/ws/echo", *WS, prefix=""))
            assert wire.read_head().status == 101

    round_of_all_ends()
    until(lambda: lane.streams() <= 1)
    before = descriptors(lane.api_pid)
    for _ in range(ROUNDS):
        round_of_all_ends()
    until(lambda: lane.streams() <= 1)  # one idle stream is kept for the next request
    until(lambda: descriptors(lane.api_pid) <= before + ROUNDS // 3)


def test_one_line_is_logged_for_each_exchange_and_no_query(lane: Lane) -> None:
    name = f"log-line-{lane.name}"
    lane.ask("POST", "/logged?ticket=secret-of-mine", f"X-Request-ID: {name}", body=b"12345")

    def told() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in lane.log().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if line.get("event") == "forward" and line.get("request_id") == name]

    until(told)
    (line,) = told()
    assert (line["outcome"], line["status"], line["device"], line["bytes_up"]) == ("ok", 200, lane.device_id, 5)
    assert line["lane"] == ("fast" if lane.direct else "drf")
    assert line["bytes_down"] > 0
    assert line["ms"] >= line["head_ms"] >= 0
    assert "secret-of-mine" not in lane.log()
    assert lane.token not in lane.log()
