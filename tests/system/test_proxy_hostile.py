"""Boxes and clients that mean harm, by each lane, over raw sockets: heads without end, answers that nobody asked for.

What is refused at sight is in `test_proxy_refusals`.
"""

from __future__ import annotations

import select
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, repeat

import psutil
import pytest

from tests.apps.proxy.kit import WAIT, Peer, Wire, until
from tests.apps.proxy.stack import EVERY_CARRIER, Lane, Stack, Tunnel

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_CARRIER

MIB = 1 << 20
UNDER_WAY = 16 * MIB
"""What sockets and a stream's window may hold of what nobody reads, and more: far less than a box could send."""
TOO_MUCH = 256 * MIB


def resident(pid: int) -> int:
    """Bytes of memory of a process and its children."""
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    return sum(each.memory_info().rss for each in family)


# --- boxes ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["fields", "one field", "interim heads", "reason"])
def test_a_head_without_end_is_given_up(lane: Lane, kind: str) -> None:
    """The box is stopped after what is under way, the client told, and nothing of it kept."""
    begun, more = {
        "fields": (b"HTTP/1.1 200 OK\r\n", b"X-Filler: " + b"x" * 1000 + b"\r\n"),
        "one field": (b"HTTP/1.1 200 OK\r\nX-Filler: ", b"x" * 1000),
        "interim heads": (b"", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 20),
        "reason": (b"HTTP/1.1 200 ", b"x" * 1000),
    }[kind]
    sent, ends = [0], []

    def endless(peer: Peer) -> bool:
        try:
            for part in chain([begun], repeat(more * 64)):
                peer.sock.sendall(part)
                sent[0] += len(part)
                if sent[0] > TOO_MUCH:
                    ends.append("taken")
                    return False
        except TimeoutError:
            ends.append("still there")
        except OSError:
            ends.append("reset")
        return False

    lane.box.on("/endless", endless)
    assert lane.ask("GET", "/first").status == 200
    before = resident(lane.api_pid)
    got = lane.ask("GET", "/endless")
    assert (got.status, got.code) == (502, "AGENT_BAD_RESPONSE")
    until(lambda: ends)
    assert ends == ["reset"]
    assert sent[0] < UNDER_WAY
    assert resident(lane.api_pid) - before < 2 * UNDER_WAY
    assert lane.ask("GET", "/next").json["line"] == "GET /next HTTP/1.1"


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ],
)
def test_an_answer_that_nobody_asked_for_reaches_nobody(lane: Lane, said: bytes) -> None:
    """It stands behind a whole one on a connection that would be kept: the next request must not be given it."""
    gone: list[str] = []

    def two(peer: Peer) -> bool:
        peer.sock.sendall(said + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
        gone.append(peer.wait_gone())
        return False

    lane.box.on("/two", two)
    with lane.wire() as wire:  # one connection, and the same bytes again and again: also what is passed on in few steps
        for number in range(1, 6):
            wire.send(lane.head("GET", "/two"))
            got = wire.read()
            assert (got.status, got.body, got.complete) == (200, b"ok", True)
            for _ in range(2):
                wire.send(lane.head("GET", "/next"))
                assert wire.read().json["line"] == "GET /next HTTP/1.1"
            until(lambda: len(gone) == number)  # noqa: B023 - used at once
    assert "still there" not in gone


# --- clients ----------------------------------------------------------------------------------------------------------
TRICKLES = 80
"""More than the API has threads."""


def test_heads_that_trickle_are_given_up_and_hold_nobody_up(stack: Stack, tunnel: Tunnel) -> None:
    """A byte now and then for ever, by many: ten seconds are for the whole head. Both ports at once, as it lasts."""
    with ThreadPoolExecutor(2) as pool:
        for served, told in pool.map(trickle, (stack.port, tunnel.public)):
            assert served > 0, "nobody was served while they trickled"
            assert [line.split(b" ")[:2] for line in told] == [[b"HTTP/1.1", b"408"]] * TRICKLES


def trickle(port: int) -> tuple[int, list[bytes]]:
    """How many ordinary requests were answered before the first slow client was told anything, and what each was."""
    wires = {wire.sock: wire for wire in (Wire(port) for _ in range(TRICKLES))}
    served, told = 0, []
    deadline = time.monotonic() + 3 * WAIT
    try:
        for wire in wires.values():
            wire.send(b"GET /d/x/y HTTP/1.1\r\nHost: h\r\nX-Slow: ")
        left = dict(wires)
        while left and time.monotonic() < deadline:
            answered = ordinary(port)
            for sock in select.select(list(left), [], [], 0.3)[0]:
                left[sock].wait_end()
                told.append(left.pop(sock).buffer)
            served += answered and not told
            for sock in left:
                with suppress(OSError):  # told just now
                    sock.sendall(b"x")
    finally:
        for sock in wires:
            sock.close()
    return served, told


def ordinary(port: int) -> bool:
    with Wire(port) as wire:
        wire.send(b"OPTIONS /d/x/y HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        return wire.read_head().status > 0
