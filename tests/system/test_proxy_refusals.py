"""What the proxy must refuse (api.md, "What the proxy must get right"), by each lane, over raw sockets.

What it passes is in `test_proxy_rules`.
"""

from __future__ import annotations

import pytest

from tests.apps.proxy.kit import Peer, until
from tests.apps.proxy.stack import Lane

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = ["stand-in", "tunnel", "fast"]


def test_a_local_server_that_refuses(lane: Lane) -> None:
    lane.box.close()
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 2",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\rSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\0Set-Cookie: a=b\r\n\r\n",
    ],
)
def test_a_local_server_that_speaks_no_http(lane: Lane, said: bytes) -> None:
    lane.box.on("/x", lambda peer: peer.sock.sendall(said))
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (502, "AGENT_BAD_RESPONSE")


@pytest.mark.parametrize("path", ["//evil.example/x", "/../x", "/a/%2e%2e/x", "/a/..%2fx", "/a/%252e%252e/x"])
def test_a_path_that_climbs_is_refused(lane: Lane, path: str) -> None:
    got = lane.ask("GET", path)
    assert (got.status, got.code) == (400, "BAD_REQUEST")
    assert lane.box.heads == []


@pytest.mark.parametrize(
    "raw",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "X-A: 1\r\n folded: 2",
        "Content-Length: +3",
        "X-A : 1",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding\x0b: chunked",
        "X-A: 1\nTransfer-Encoding: chunked",
        "X-A: 1\n\nGET /smuggled HTTP/1.1\nX-B: 2",
        "X-A: 1\rTransfer-Encoding: chunked",
        "X-A: 1\r\rGET /smuggled HTTP/1.1",
        "X-A: 1\0Transfer-Encoding: chunked",
        "X\0A: 1",
    ],
)
def test_smuggling_is_refused(lane: Lane, raw: str) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/x", raw) + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        got = wire.read()
        assert (got.status, got.code) == (400, "BAD_REQUEST")
        wire.wait_end()
    assert lane.box.heads == []


@pytest.mark.parametrize("change", [(b"GET", b"get"), (b"GET", b"G#T"), (b" /", b" http://box.example/")])
def test_spellings_of_a_request_line_that_are_refused(lane: Lane, change: tuple[bytes, bytes]) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/x").replace(*change, 1))
        assert wire.read_head().status == 400
    assert lane.box.heads == []


def test_a_bad_chunk_is_refused_and_the_box_never_sees_an_end(lane: Lane) -> None:
    bodies: list[bytes] = []

    def take(peer: Peer) -> None:
        try:
            bodies.extend(peer.body())
            bodies.append(b"END")
        except OSError:
            bodies.append(b"RESET")

    lane.box.on("/x", take)
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/x", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        until(lambda: lane.box.heads)
        wire.send(b"zz\r\n")
        got = wire.read()
        assert (got.status, got.code) == (400, "BAD_REQUEST")
    until(lambda: b"RESET" in bodies)
    assert b"END" not in bodies
