"""Large bodies both ways at constant memory, on every lane."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from tests.apps.proxy.kit import Peer
from tests.apps.proxy.stack import EVERY_CARRIER, Lane

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = bytes(range(256)) * 1024  # 256 KiB
GROWTH = 16 * MIB
"""What one large exchange may add to the worker's memory: a quarter of the body would show at once."""


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def peak(pid: int) -> int:
    """The highest resident memory so far, in bytes, summed over the API's workers; of the daemon, which has none."""
    total = 0
    for child in children(pid) or [pid]:
        for line in Path(f"/proc/{child}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                total += int(line.split()[1]) * 1024
    return total


def expected() -> str:
    digest = hashlib.sha256()
    for _ in range(SIZE // len(BLOCK)):
        digest.update(BLOCK)
    return digest.hexdigest()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_upload_at_constant_memory(lane: Lane, framing: str) -> None:
    lane.ask("PUT", "/warm", body=BLOCK * 8)
    before = peak(lane.api_pid)
    with lane.wire() as wire:
        if framing == "length":
            wire.send(lane.head("PUT", "/up", f"Content-Length: {SIZE}"))
            for _ in range(SIZE // len(BLOCK)):
                wire.send(BLOCK)
        else:
            wire.send(lane.head("PUT", "/up", "Transfer-Encoding: chunked"))
            for _ in range(SIZE // len(BLOCK)):
                wire.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK))
            wire.send(b"0\r\n\r\n")
        got = wire.read()
    assert (got.json["size"], got.json["sha256"]) == (SIZE, expected())
    assert peak(lane.api_pid) - before < GROWTH


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_download_at_constant_memory_even_to_a_slow_reader(lane: Lane, framing: str) -> None:
    def send(peer: Peer) -> bool:
        if framing == "length":
            peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        else:
            peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(SIZE // len(BLOCK)):
            peer.sock.sendall(BLOCK if framing == "length" else b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK))
        if framing == "chunked":
            peer.sock.sendall(b"0\r\n\r\n")
        return True

    lane.box.on("/down", send)
    before = peak(lane.api_pid)
    stalled = threading.Event()
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/down"))
        stalled.wait(0.5)  # read nothing for a while: what is not taken must not be gathered
        got = wire.read()
    assert (len(got.body), got.complete) == (SIZE, True)
    assert hashlib.sha256(got.body).hexdigest() == expected()
    assert peak(lane.api_pid) - before < GROWTH
