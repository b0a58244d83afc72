"""Connections to daemons, against servers that answer as they are told: which are kept, who is asked by how many."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from apps.tunnels import node_connections
from apps.tunnels.node_connections import KEPT, NodeAway, NodeConnection, NodeConnections, NodeHangs, NodeTooOld
from tests.apps.proxy.kit import WAIT, Peer, Server, until

SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: visiona-exchange\r\n\r\n"


Connect = Callable[[NodeConnections, "Daemon"], NodeConnection]


class Daemon(Server):
    """Answers each call with `said`; while that is empty it says nothing."""

    def __init__(self) -> None:
        self.said = SWITCH
        self.heads: list[bytes] = []
        super().__init__()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def serve(self, sock: socket.socket) -> None:
        peer = Peer(sock)
        if not peer.read_head():
            return
        self.heads.append(peer.head)
        until(lambda: self.said)
        sock.sendall(self.said)
        peer.wait_gone(WAIT)


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with closing(Daemon()) as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Make a connection, which is closed when the test ends."""
    made: list[NodeConnection] = []

    def make(pool: NodeConnections, daemon: Daemon) -> NodeConnection:
        made.append(pool.connect(daemon.url, "the-secret", request_id="req_1"))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_one_is_made_and_kept_and_taken_last_first(daemon: Daemon, connect: Connect) -> None:
    pool = NodeConnections()
    first, second = connect(pool, daemon), connect(pool, daemon)
    assert daemon.heads[0].startswith(b"POST /internal/exchange HTTP/1.1\r\n")
    assert b"Authorization: Bearer the-secret" in daemon.heads[0]
    assert pool.take(daemon.url) is None
    pool.give(first)
    pool.give(second)
    assert pool.take(daemon.url) is second
    assert pool.take(daemon.url) is first
    assert not first.sock.getblocking()


def test_those_that_are_too_many_or_too_old_are_closed(
    daemon: Daemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = NodeConnections()
    made = [connect(pool, daemon) for _ in range(KEPT + 1)]
    for each in made:
        pool.give(each)
    assert [each.sock.fileno() >= 0 for each in made] == [True] * KEPT + [False]
    monkeypatch.setattr(node_connections, "IDLE_SECONDS", 0.0)
    time.sleep(0.01)
    assert pool.take(daemon.url) is None
    assert pool.expire() == 0
    assert all(each.sock.fileno() < 0 for each in made)


def test_those_to_a_daemon_that_is_gone_are_dropped(daemon: Daemon, connect: Connect) -> None:
    pool = NodeConnections()
    made = connect(pool, daemon)
    pool.give(made)
    pool.drop(daemon.url)
    assert (pool.take(daemon.url), made.sock.fileno()) == (None, -1)


def test_one_of_the_release_before_is_not_asked_again_at_once(daemon: Daemon, connect: Connect) -> None:
    pool = NodeConnections()
    daemon.said = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    for _ in range(3):
        with pytest.raises(NodeTooOld):
            connect(pool, daemon)
    assert len(daemon.heads) == 1
    assert pool.is_older(daemon.url)


@pytest.mark.parametrize(
    "said",
    [b"HTTP/1.1 503 No\r\n\r\n", b"HTTP/1.1 401 No\r\n\r\n", b"no http\r\n\r\n", b"x" * 20_000, SWITCH + b"too early"],
)
def test_another_answer_is_none_and_the_next_call_is_made(daemon: Daemon, connect: Connect, said: bytes) -> None:
    pool, daemon.said = NodeConnections(), said
    with pytest.raises(NodeAway):
        connect(pool, daemon)
    daemon.said = SWITCH
    assert connect(pool, daemon).node_url == daemon.url


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://no-such-host.invalid:3801", "https://x:1", "nonsense"])
def test_where_nobody_is(url: str) -> None:
    with pytest.raises(NodeAway) as caught:
        NodeConnections().connect(url, "s", request_id="r")
    assert not isinstance(caught.value, NodeHangs | NodeTooOld)


def test_one_that_hangs_holds_one_caller_and_is_found_well_at_once(
    daemon: Daemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_connections, "ANSWER_SECONDS", 0.3)
    pool, daemon.said = NodeConnections(), b""
    with pytest.raises(NodeHangs):
        connect(pool, daemon)
    monkeypatch.setattr(node_connections, "ANSWER_SECONDS", WAIT)
    found: list[object] = []
    prober = threading.Thread(target=lambda: found.append(connect(pool, daemon)))
    prober.start()
    until(lambda: len(daemon.heads) == 2)
    began = time.monotonic()
    for _ in range(20):
        with pytest.raises(NodeHangs):
            connect(pool, daemon)
    assert time.monotonic() - began < 5
    assert len(daemon.heads) == 2, "only one asks"
    daemon.said = SWITCH
    prober.join(WAIT)
    assert found
    assert connect(pool, daemon).node_url == daemon.url


def test_one_that_hung_is_asked_by_the_next_caller(
    daemon: Daemon, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is remembered beyond its own hanging: who comes after it went on is served."""
    monkeypatch.setattr(node_connections, "ANSWER_SECONDS", 0.3)
    pool, daemon.said = NodeConnections(), b""
    with pytest.raises(NodeHangs):
        connect(pool, daemon)
    daemon.said = SWITCH
    assert connect(pool, daemon).node_url == daemon.url
