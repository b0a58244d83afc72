"""Connections that change hands between the processes of one host: the way itself, and when it is gone."""

from __future__ import annotations

import errno
import io
import socket
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, World, world
from tests.runtime.daemon.lane.laneworld import DEVICE, Visitor, Wire, box, ok
from tunnel.daemon.config import Family
from tunnel.daemon.http.accept import HttpServer
from tunnel.daemon.lane.fd_passing import AVAILABLE, DATA_MAX, FdPassing, PassedConnection
from tunnel.daemon.lane.migration import Migration, as_bytes, give
from tunnel.http import LIMITS, ProxyError, RequestHead, RequestParser
from tunnel.logs import JsonLog

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the kernel spreads connections on Linux only")

HEAD = b"GET /d/x/ HTTP/1.1\r\n\r\n"


class Brothers:
    """Two processes' ends in one: `giver` knows `taker`, which keeps what it takes."""

    def __init__(self) -> None:
        self.name = uuid.uuid4().hex
        self.log = io.BytesIO()
        self.taken: list[PassedConnection] = []
        self.giver = self.hands(1)
        self.taker = self.hands(0)

    def hands(self, number: int) -> FdPassing:
        return FdPassing(Family(self.name, ("http://zero", "http://one"), number), JsonLog(self.log))

    def give(self, sock: socket.socket, data: bytes = HEAD, url: str = "http://zero") -> bool:
        return self.giver.give(url, sock, address="192.0.2.1", turns=0, data=data)

    async def given(self, sock: socket.socket) -> None:
        """Give; the first calls only open the way."""
        await until(lambda: self.give(sock))
        sock.close()

    def said(self, event: str) -> bool:
        return f'"{event}"'.encode() in self.log.getvalue()


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.002)


@asynccontextmanager
async def brothers() -> AsyncIterator[Brothers]:
    these = Brothers()
    async with trio.open_nursery() as nursery:
        await nursery.start(these.taker.run, these.taken.append)
        try:
            yield these
        finally:
            nursery.cancel_scope.cancel()
            these.giver.close()
            for handed in these.taken:
                handed.sock.close()


async def test_the_socket_goes_over_with_what_was_read() -> None:
    async with brothers() as these:
        client, accepted = socket.socketpair()
        with client:
            await these.given(accepted)
            await until(lambda: these.taken)
            (handed,) = these.taken
            assert (handed.address, handed.turns, handed.data) == ("192.0.2.1", 1, HEAD)
            handed.sock.send(b"answer")
            assert client.recv(100) == b"answer"
            assert not handed.sock.get_inheritable()
            handed.sock.close()
            assert client.recv(100) == b""  # nobody else holds it
        assert (these.giver.given, these.taker.taken) == (1, 1)


@pytest.mark.parametrize(
    ("url", "data"), [("http://other-host", HEAD), ("http://one", HEAD), ("http://zero", bytes(DATA_MAX + 1))]
)
async def test_what_cannot_be_given_stays(url: str, data: bytes) -> None:
    """To nobody of the family, to itself, too much."""
    async with brothers() as these:
        client, accepted = socket.socketpair()
        with client, accepted:
            for _ in range(3):
                assert not these.give(accepted, data, url)
                await trio.testing.wait_all_tasks_blocked(0.01)
            accepted.send(b"still here")
            assert client.recv(100) == b"still here"
        assert not these.taken


async def test_nobody_there_and_somebody_later() -> None:
    these = Brothers()
    client, accepted = socket.socketpair()
    with client, accepted:
        assert not these.give(accepted)
        for _ in range(2):  # it ends, and another takes its place
            async with trio.open_nursery() as nursery:
                taker = these.hands(0)
                await nursery.start(taker.run, these.taken.append)
                one, other = socket.socketpair()
                await these.given(other)
                await until(lambda: these.taken)
                these.taken.pop().sock.close()
                one.close()
                nursery.cancel_scope.cancel()
            assert not these.give(accepted)
        these.giver.close()


async def test_what_was_given_before_the_end_is_still_taken() -> None:
    """No client is lost between a sibling that gives and one that begins to drain."""
    async with brothers() as these:
        pairs = [socket.socketpair() for _ in range(5)]
        await these.given(pairs[0][1])
        for _, accepted in pairs[1:]:  # nothing runs between these and the end
            assert these.give(accepted)
            accepted.close()
        these.taker.close()
        assert len(these.taken) == 5
        late, accepted = socket.socketpair()
        with late, accepted:
            assert not these.give(accepted)
            accepted.send(b"kept")
            assert late.recv(10) == b"kept"
        for client, _ in pairs:
            client.close()


async def test_another_user_gives_and_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with brothers() as these:
        client, accepted = socket.socketpair()
        with client, accepted:
            monkeypatch.setattr("tunnel.daemon.lane.fd_passing.os.geteuid", lambda: 4_000_000)
            for _ in range(5):
                assert not these.give(accepted)
                await trio.testing.wait_all_tasks_blocked(0.01)
            assert not these.taken


async def test_what_is_no_hand_is_told_and_leaves_nothing_open() -> None:
    async with brothers() as these:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as way:
            way.connect(f"\0visiona-{these.name}-0".encode())
            one, other = socket.socketpair()
            for message in (b"nonsense", b"x y\ndata", b"1 192.0.2.1\n"):
                socket.send_fds(way, [message], [other.fileno()])
            way.send(b"1 192.0.2.1\ndata")  # no socket with it
            other.close()
            await until(lambda: these.log.getvalue().count(b"bad_hand") == 4 or these.taker._log.flush())
            assert one.recv(1) == b""
            one.close()
        assert not these.taken


@pytest.mark.parametrize("closed", [False, True])
async def test_a_call_that_cannot_be_accepted_ends_nobody(monkeypatch: pytest.MonkeyPatch, *, closed: bool) -> None:
    """Out of descriptors, which passes; or closed between the kernel's word that somebody calls and ours."""
    accept = socket.socket.accept
    failures = [OSError(errno.EMFILE, "Too many open files")] * 2

    async with brothers() as these:

        def failing(sock: socket.socket) -> tuple[socket.socket, Any]:
            if closed:
                these.taker.close()
            elif failures:
                raise failures.pop()
            return accept(sock)

        monkeypatch.setattr(socket.socket, "accept", failing)
        client, accepted = socket.socketpair()
        with client, accepted:
            await until(lambda: these.give(accepted) or these.taker._closed)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert not failures or closed
        assert len(these.taken) == (not closed)


@pytest.mark.parametrize("mount", ["/d/{}", "/api/devices/{}/proxy"])
def test_when_a_connection_is_worth_giving(mount: str) -> None:
    """After two requests for one device; after sixteen where it has changed hands; in the end it stays."""
    target = f"{mount.format(DEVICE)}/x".encode()
    for turns, often in ((0, 2), (1, 16), (2, 128), (3, 1024)):
        wander = Migration(turns)
        for _ in range(often - 1):
            wander.went(target, "http://zero")
            assert not wander.where(target)
        wander.went(target, "http://zero")
        assert wander.where(target) == "http://zero"
        assert not wander.where(mount.format("0190a0a0-0000-7000-8000-00000000000b").encode())
        assert not wander.where(b"/tunnel/connect")
        wander.stays()
        assert not wander.where(target)
    wander = Migration(4)
    for _ in range(10_000):
        wander.went(target, "http://zero")
    assert not wander.where(target)


def test_a_target_that_does_not_tell_its_device_takes_no_connection_along() -> None:
    wander = Migration()
    for _ in range(9):
        wander.went(b"/api/cameras/0", "http://zero")
        assert not wander.where(b"/api/cameras/0")


def test_devices_that_take_turns_leave_the_connection_where_it_is() -> None:
    wander = Migration()
    for number in range(100):
        target = f"/d/{DEVICE[:-1]}{number % 2}/x".encode()
        wander.went(target, "http://zero")
        assert not wander.where(target)
    wander.went(target, "http://one")  # the device has moved
    assert not wander.where(target)


def test_a_head_reads_the_same_again() -> None:
    raw = b"POST /d/x/y?q=1 HTTP/1.1\r\nHost: h\r\nX-A:  two words \r\nX-Empty:\r\nContent-Length: 3\r\n\r\nabc"
    first, again = RequestParser(), RequestParser()
    head = first.feed(raw)
    assert head is not None
    assert again.feed(as_bytes(head) + first.rest) == head
    assert again.rest == b"abc"
    old = RequestHead(b"GET", b"/", [], http11=False)
    assert RequestParser().feed(as_bytes(old)) == old


def test_a_head_that_would_be_too_long_again_stays() -> None:
    """Of 32 KiB as it came, without a blank behind its colons."""
    fields = b"".join(b"x%d:y\r\n" % number for number in range(50))
    raw = b"GET /d/%b/ HTTP/1.1\r\n" % DEVICE.encode() + fields + b"z:\r\n\r\n"
    raw = raw.replace(b"z:", b"z:" + b"a" * (LIMITS.head_bytes - len(raw)))
    head = RequestParser().feed(raw)
    assert head is not None
    with pytest.raises(ProxyError):
        RequestParser().feed(as_bytes(head))
    wander, hands = Migration(), Mock()
    for _ in range(2):
        wander.went(head.target, "http://zero")
    client: Any = SimpleNamespace(wander=wander, unsent=False, sock=None, address="192.0.2.1")
    assert not give(client, hands, head, b"")
    assert not hands.give.called


@asynccontextmanager
async def two_daemons() -> AsyncIterator[tuple[World, World]]:
    """(the one that holds the box, another of its family that is asked)."""
    name = uuid.uuid4().hex
    async with world(family=Family(name, ("http://zero", "http://one"), 0)) as holder:
        family = Family(name, (holder.daemon.node_url, "http://one"), 1)
        async with world(family=family) as asked:
            yield holder, asked


async def grant(holder: World, asked: World) -> None:
    """Let the other daemon know where the box is."""
    await holder.until(lambda: len(holder.daemon.parts.sessions))
    session = holder.daemon.parts.sessions.all()[-1]
    asked.control.grant = {"node_url": holder.daemon.node_url, "session": session.id, "epoch": session.epoch}


def given(asked: World) -> int:
    assert asked.daemon.parts.lane.hands is not None
    return asked.daemon.parts.lane.hands.given


async def test_a_kept_connection_goes_to_the_daemon_that_holds_the_box() -> None:
    async with two_daemons() as (holder, asked):
        await box(holder, ok(b"hello"))
        await grant(holder, asked)
        async with Visitor(asked) as visitor:

            async def ask() -> int:
                got = await visitor.ask(f"GET /d/{DEVICE}/x")
                assert (got.status, got.body) == (200, b"hello")
                return given(asked)

            count = 0
            while not await ask():  # the first call that would give it only opens the way
                count += 1
                assert count < 1000
            before = len(asked.logged("forward"))
            for _ in range(5):
                await ask()
            assert len(asked.logged("forward")) == before == count
            lines = [line for line in holder.logged("forward") if line.get("lane") == "fast"]
            assert [line["status"] for line in lines] == [200] * 6
            metrics = (await asked.http("/metrics"))[2]
            assert b'visiona_fast_handed_total{direction="given"} 1.0' in metrics
            assert b"visiona_fast_connections 0.0" in metrics
            assert b'visiona_fast_handed_total{direction="taken"} 1.0' in (await holder.http("/metrics"))[2]
        await holder.until(lambda: not holder.daemon.parts.lane._clients if holder.daemon.parts.lane else True)


async def test_bodies_and_requests_behind_go_with_it() -> None:
    async with two_daemons() as (holder, asked):

        async def tell(wire: Wire) -> None:
            while (head := await wire.head()) is not None:
                size = 6 if b"POST" in head else 0
                body = await wire.body(size) or head.split(b" ")[1]
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

        await box(holder, tell)
        await grant(holder, asked)
        async with Visitor(asked) as visitor:
            for number in range(1000):
                await visitor.send(f"POST /d/{DEVICE}/x", "Content-Length: 6", body=b"abc")
                await trio.testing.wait_all_tasks_blocked()  # the head is on its way before the rest comes
                await visitor.stream.send_all(b"def")
                await visitor.send(f"GET /d/{DEVICE}/{number}")
                answers = [(await visitor.read()).body for _ in range(2)]
                assert answers == [b"abcdef", b"/%d" % number]
                if given(asked):
                    break
            assert given(asked) == 1


async def test_a_holder_that_drains_takes_none_and_loses_none() -> None:
    async with two_daemons() as (holder, asked):
        await box(holder, ok(b"hello"))
        await grant(holder, asked)
        async with Visitor(asked) as first:
            while not given(asked):
                assert (await first.ask(f"GET /d/{DEVICE}/x")).status == 200
            assert holder.daemon.parts.lane.hands is not None
            holder.daemon.parts.lane.hands.close()
            assert (await first.ask(f"GET /d/{DEVICE}/x")).status == 200
        async with Visitor(asked) as second:
            for _ in range(20):
                assert (await second.ask(f"GET /d/{DEVICE}/x")).status == 200
            assert given(asked) == 1


async def test_a_client_that_is_refused_where_it_came_to_is_told_there() -> None:
    """Whoever gets the connection asks for itself who may."""
    async with two_daemons() as (holder, asked):
        await box(holder, ok(b"hello"))
        await grant(holder, asked)
        holder.control.forbid = {"status": 403, "code": "FORBIDDEN", "message": "no", "headers": []}
        async with Visitor(asked) as visitor:
            for _ in range(1000):
                got = await visitor.ask(f"GET /d/{DEVICE}/x", token=OTHER)
                if got.status != 200:
                    break
            assert (got.status, given(asked)) == (403, 1)


async def test_a_daemon_without_room_tells_whom_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    adopt = HttpServer.adopt

    def crowded(self: HttpServer, *args: Any) -> None:
        self._max_connections = self.connections
        adopt(self, *args)

    monkeypatch.setattr(HttpServer, "adopt", crowded)
    async with two_daemons() as (holder, asked):
        await box(holder, ok(b"hello"))
        await grant(holder, asked)
        async with Visitor(asked) as visitor:
            while not given(asked):
                got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (503, "OVERLOADED")
            assert got.all("retry-after") == ["1"]
