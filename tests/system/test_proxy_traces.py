"""What an exchange leaves behind: no descriptor and no stream, but one log line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.apps.proxy.kit import until
from tests.apps.proxy.stack import Lane, Stack

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descriptors(pid: int) -> int:
    return sum(len(list(Path(f"/proc/{child}/fd").iterdir())) for child in children(pid))


def test_nothing_is_left_behind(lane: Lane) -> None:
    lane.box.on("/cut", lambda peer: peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"))
    lane.ask("GET", "/warm")

    def round_of_all_ends() -> None:
        lane.ask("GET", "/fine")
        lane.ask("GET", "/cut")
        with lane.wire() as wire:
            wire.send(lane.head("PUT", "/left", "Content-Length: 5") + b"x")
        lane.ask("GET", "/../refused")

    round_of_all_ends()
    until(lambda: len(lane.daemon.live) <= 1)
    before = descriptors(lane.api_pid)
    for _ in range(15):
        round_of_all_ends()
    until(lambda: len(lane.daemon.live) <= 1)  # one idle stream is kept for the next request
    until(lambda: descriptors(lane.api_pid) <= before + 2)


def test_one_line_is_logged_for_each_exchange_and_no_query(lane: Lane, stack: Stack) -> None:
    lane.ask("POST", "/logged?ticket=secret-of-mine", "X-Request-ID: log-line-1", body=b"12345")
    until(lambda: "log-line-1" in stack.process.text() and '"event":"forward"' in stack.process.text())
    lines = [json.loads(line) for line in stack.process.text().splitlines() if line.startswith("{")]
    (line,) = [one for one in lines if one.get("event") == "forward" and one.get("request_id") == "log-line-1"]
    assert (line["outcome"], line["status"], line["device"], line["bytes_up"]) == ("ok", 200, lane.device_id, 5)
    assert line["bytes_down"] > 0
    assert line["ms"] >= line["head_ms"] >= 0
    assert line["node"] == lane.daemon.url
    assert "secret-of-mine" not in stack.process.text()
    assert lane.token not in stack.process.text()
