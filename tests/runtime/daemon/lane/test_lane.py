"""The fast lane over the daemon's real public port: what passes, what is refused, which streams are used again.

The rules of an exchange are shown by tests/system/test_proxy_rules.py and test_proxy_refusals.py, on both lanes.
"""

from __future__ import annotations

import socket
import struct
import time
from contextlib import AsyncExitStack, suppress
from typing import Any

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, World
from tests.runtime.daemon.lane.laneworld import DEVICE, LOGIN, Handler, Visitor, Wire, box, fast_world, ok
from tunnel.daemon.lane.lane import PublicLane
from tunnel.http import PROBE_SECONDS, ProxyError

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def once(data: bytes) -> Handler:
    """Reads one head, says this, and ends the stream."""

    async def answer(wire: Wire) -> None:
        await wire.head()
        await wire.send(data)

    return answer


async def test_a_get_goes_through_and_the_connection_is_kept() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hello"))
        async with Visitor(w) as visitor:
            for number in range(3):
                got = await visitor.ask(f"GET /d/{DEVICE}/x?n={number}")
                assert (got.status, got.body) == (200, b"hello")
        assert len(w.control.authorizations) == 1
        line = w.logged("forward")[0]
        assert (line["outcome"], line["status"], line["bytes_down"]) == ("ok", 200, 5)
        assert [line["reused"] for line in w.logged("forward")] == [False, True, True]


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with fast_world() as w:

        async def tell(wire: Wire) -> None:
            while (head := await wire.head()) is not None:
                path = head.split(b" ")[1]
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(path) + path)

        await box(w, tell)
        async with Visitor(w) as visitor:
            head = "GET /d/{}/{} HTTP/1.1\r\nHost: h\r\n\r\n"
            await visitor.stream.send_all("".join(head.format(DEVICE, number) for number in range(20)).encode())
            assert [(await visitor.read()).body for _ in range(20)] == [b"/%d" % number for number in range(20)]


async def test_a_reset_that_waits_for_a_slow_client_holds_a_place() -> None:
    """What the box said before goes first, however slowly it is read; meanwhile the descriptor is counted."""
    async with fast_world() as w:

        async def say_and_reset(wire: Wire) -> None:
            await wire.head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n" + bytes(64 * 1024))
            wire.stream.reset_when_flushed()

        await box(w, say_and_reset)
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        with sock, suppress(BlockingIOError):
            with suppress(BlockingIOError):
                sock.connect(("127.0.0.1", w.public))
            await trio.lowlevel.wait_writable(sock)
            sock.send(f"GET /d/{DEVICE}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {LOGIN}\r\n\r\n".encode())
            await w.until(lambda: [line["outcome"] for line in w.logged("forward")] == ["cut"])
            await trio.testing.wait_all_tasks_blocked()
            assert _clients(w) == 1
        await w.until(lambda: _clients(w) == 0)


def _clients(w: World) -> float:
    """Connections of clients that the public port counts."""
    room = w.daemon.parts.room
    return next(sample.value for metric in room.live() for sample in metric.samples)


async def test_a_box_that_speaks_no_http() -> None:
    async with fast_world() as w:
        await box(w, once(b"SSH-2.0-OpenSSH\r\n"))
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (502, "AGENT_BAD_RESPONSE")


async def test_a_stream_that_ends_behind_its_answer_is_not_used_again() -> None:
    async with fast_world() as w:
        await box(w, once(OK))
        async with Visitor(w) as visitor:
            for _ in range(5):
                got = await visitor.ask(f"GET /d/{DEVICE}/x")
                assert (got.status, got.body) == (200, b"ok")


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 502)])
async def test_a_reused_stream_that_ends_unanswered(method: str, status: int) -> None:
    """An idempotent request is made again on a new stream; another one is told, since it may have been done."""
    async with fast_world() as w:
        streams = 0

        async def one_answer(wire: Wire) -> None:
            nonlocal streams
            streams += 1
            await wire.head()
            await wire.send(OK)
            await wire.head()  # the next request on this stream gets no answer

        await box(w, one_answer)
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            got = await visitor.ask(f"{method} /d/{DEVICE}/x")
            assert got.status == status
        assert streams == (2 if method == "GET" else 1)


async def test_a_request_that_no_stream_answers_is_made_twice_and_no_more() -> None:
    """The one more time is for a stream that had been at rest; a box that answers neither is told of."""
    async with fast_world() as w:
        streams = 0

        async def one_answer_in_all(wire: Wire) -> None:
            nonlocal streams
            streams += 1
            await wire.head()
            if streams == 1:
                await wire.send(OK)
                await wire.head()

        await box(w, one_answer_in_all)
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
        assert streams == 2
        assert w.logged("forward")[-1]["attempts"] == 2


@pytest.mark.parametrize("line", ["GET", "POST"])
async def test_a_502_names_the_address_at_which_nothing_answers(line: str) -> None:
    async def nothing(wire: Wire) -> None:
        await wire.head()
        raise trio.BrokenResourceError

    async with fast_world() as w:
        await box(w, nothing, local="127.0.0.1:8080; listening=no")
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"{line} /d/{DEVICE}/x")
            assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
            assert got.json["error"]["details"] == {"local_address": ["127.0.0.1:8080"]}
            assert "on the device" in got.json["error"]["message"]


def resting(w: World) -> int:
    """Streams that are kept for the next request."""
    return sum(len(line.lines) for line in w.daemon.parts.lane.upstreams.locals())


async def test_streams_of_a_silent_agent_are_reused_once_one_stayed_open() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"), features="")
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            await w.until(lambda: resting(w) == 1)
            await trio.sleep(1.5 * PROBE_SECONDS)  # counted from its rest, not from the answer
            for _ in range(2):
                assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            assert (await visitor.ask(f"POST /d/{DEVICE}/x", "Content-Length: 0")).status == 200
        await w.until(lambda: len(w.logged("forward")) == 4)
        assert [line["reused"] for line in w.logged("forward")] == [False, True, True, False]


async def test_both_directions_stream_and_a_chunked_body_passes() -> None:
    async with fast_world() as w:

        async def mirror(wire: Wire) -> None:
            head = await wire.head()
            assert head is not None
            assert b"Transfer-Encoding: chunked" in head
            await wire.send(b"HTTP/1.1 200 OK\r\n\r\n")
            while data := wire.buffer or await wire.stream.receive_some():
                wire.buffer = b""
                await wire.send(data)

        await box(w, mirror)
        async with Visitor(w) as visitor:
            await visitor.send(f"POST /d/{DEVICE}/m", "Transfer-Encoding: chunked")
            assert (await visitor.read_head()).status == 200
            for word in (b"one", b"three"):
                await visitor.stream.send_all(b"%x\r\n%b\r\n" % (len(word), word))
                await visitor.until(word)


async def test_a_large_answer_to_a_slow_reader_waits_in_the_box() -> None:
    size = 8 << 20
    async with fast_world() as w:
        sent = 0

        async def pour(wire: Wire) -> None:
            nonlocal sent
            await wire.head()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            while sent < size:
                await wire.send(b"x" * 65536)
                sent += 65536

        await box(w, pour)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/big")
            got = await visitor.read_head()
            await trio.sleep(0.3)  # nothing is read for a while: what was not taken must not be gathered
            held = sum(one.connection.session.buffered for one in w.daemon.parts.sessions.all())
            assert held <= 1 << 20
            assert sent < size
            while len(visitor.buffer) < size:
                assert await visitor.more()
            assert (got.status, visitor.buffer) == (200, b"x" * size)


async def test_the_client_leaves_and_the_stream_is_reset() -> None:
    async with fast_world() as w:
        reached, ends = trio.Event(), []

        async def wait(wire: Wire) -> None:
            await wire.head()
            reached.set()
            ends.append(await wire.gone())

        await box(w, wait)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x")
            await reached.wait()
            visitor.stream.reset()
        with trio.fail_after(1):
            await w.until(lambda: ends)
        assert ends == ["reset"]
        assert w.logged("forward")[0]["outcome"] == "client_left"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/x-mixed-replace; boundary=b", "text/event-stream"])
@pytest.mark.parametrize("when", ["before the head", "behind it"])
async def test_a_fin_is_leaving_only_where_the_answer_has_no_end(kind: str, when: str) -> None:
    async with fast_world() as w:
        reached, go, ends = trio.Event(), trio.Event(), []
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n--b\r\n".encode()

        async def answer(wire: Wire) -> None:
            await wire.head()
            if when == "behind it":
                await wire.send(head)
            reached.set()
            await go.wait()
            if kind != "text/plain" and when == "behind it":
                ends.append(await wire.gone())
                return
            await wire.send(b"end" if when == "behind it" else head)
            if kind != "text/plain":
                ends.append(await wire.gone())

        await box(w, answer)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x")
            await reached.wait()
            if when == "behind it":
                await visitor.until(b"--b")
            visitor.stream.send_eof()
            await trio.sleep(0.7)  # longer than from one look to the next
            assert len(w.daemon.parts.lane) == (kind == "text/plain" or when != "behind it")
            go.set()
            if kind == "text/plain":
                await visitor.until(b"0\r\n\r\n")
                assert await visitor.end() == "end"
            else:
                await w.until(lambda: ends == ["reset"])
        outcome = "ok" if kind == "text/plain" else "client_left"
        assert w.logged("forward")[-1]["outcome"] == outcome


async def test_a_fin_behind_two_requests_lets_both_be_answered() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi"))
        async with Visitor(w) as visitor:
            request = f"GET /d/{DEVICE}/x HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {LOGIN}\r\n\r\n".encode()
            await visitor.stream.send_all(request * 2)
            visitor.stream.send_eof()
            assert [(await visitor.read()).body for _ in range(2)] == [b"hi", b"hi"]
            assert await visitor.end() == "end"


async def test_a_reset_behind_a_fin_is_leaving_and_a_fin_is_not_read_again_and_again() -> None:
    async with fast_world() as w:
        reached, ends = trio.Event(), []

        async def wait(wire: Wire) -> None:
            await wire.head()
            reached.set()
            ends.append(await wire.gone())

        await box(w, wait)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x")
            await reached.wait()
            visitor.stream.send_eof()
            await trio.sleep(0.2)
            before = time.process_time()
            await trio.sleep(0.5)
            assert time.process_time() - before < 0.2
            assert not ends
            visitor.stream.reset()
            with trio.fail_after(1):
                await w.until(lambda: ends == ["reset"])


async def test_a_fin_within_a_body_is_leaving() -> None:
    async with fast_world() as w:
        reached, ends = trio.Event(), []

        async def wait(wire: Wire) -> None:
            await wire.head()
            reached.set()
            ends.append(await wire.gone())

        await box(w, wait)
        async with Visitor(w) as visitor:
            await visitor.send(f"POST /d/{DEVICE}/x", "Content-Length: 5", body=b"abc")
            await reached.wait()
            visitor.stream.send_eof()
            await w.until(lambda: ends == ["reset"])


async def test_a_fin_behind_a_body_that_the_box_takes_slowly_is_not_leaving() -> None:
    size = 2 << 20
    async with fast_world() as w:
        go = trio.Event()

        async def slow(wire: Wire) -> None:
            await wire.head()
            await go.wait()
            await wire.body(size)
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        await box(w, slow)
        async with Visitor(w) as visitor, trio.open_nursery() as nursery:

            async def upload() -> None:
                await visitor.send(f"POST /d/{DEVICE}/x", f"Content-Length: {size}", body=b"x" * size)
                visitor.stream.send_eof()

            nursery.start_soon(upload)
            await trio.sleep(1.2)
            assert len(w.daemon.parts.lane) == 1
            go.set()
            assert (await visitor.read()).body == b"hi"


async def test_no_head_in_time_and_no_progress() -> None:
    async with fast_world(answer_seconds=0.5, exchange_idle_seconds=0.5) as w:

        async def stall(wire: Wire) -> None:
            head = await wire.head()
            if head is not None and b"/begun" in head:
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
            await wire.gone()

        await box(w, stall)
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (504, "TUNNEL_TIMEOUT")
            got = await visitor.ask(f"GET /d/{DEVICE}/begun")
            assert (got.body, got.ended) == (b"some", "reset")
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"POST /d/{DEVICE}/x", "Content-Length: 5", body=b"x")
            assert (got.status, got.code) == (408, "REQUEST_TIMEOUT")


async def test_a_head_that_trickles_is_given_up() -> None:
    async with fast_world(head_seconds=0.5) as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            await visitor.stream.send_all(b"GET /d/")  # a kept connection's second head
            got = await visitor.read()
            assert (got.status, got.code) == (408, "REQUEST_TIMEOUT")
            assert await visitor.end() == "end"


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GET /d/%b/x HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 40_000, 431, "HEADERS_TOO_LARGE"),
        (b"GET /d/%b/x HTTP/1.1\r\nHost: h" + b"\r\nX: y" * 101 + b"\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
        (b"GET /d/%b/" + b"y" * 9000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414, "URI_TOO_LONG"),
        (b"GET /d/%b/x HTTP/1.1\nHost: h\n\n", 400, "BAD_REQUEST"),
        (b"FLY /d/%b/x HTTP/1.1\r\nHost: h\r\n\r\n", 405, "METHOD_NOT_ALLOWED"),
        (b"GET http://other/d/%b/x HTTP/1.1\r\nHost: h\r\n\r\n", 400, "BAD_REQUEST"),
        (b"PUT /d/%b/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1073741825\r\n\r\n", 413, "PAYLOAD_TOO_LARGE"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
async def test_heads_that_are_refused(raw: bytes, status: int, code: str, *, first: bool) -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            if not first:
                assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
            await visitor.stream.send_all(raw.replace(b"%b", DEVICE.encode()))
            got = await visitor.read()
            assert (got.status, got.code) == (status, code)


async def test_what_a_page_may_read() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x", "Access-Control-Allow-Origin: *"))
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x", "Origin: http://front.example")
            assert got.all("access-control-allow-origin") == ["http://front.example"]
            got = await visitor.ask(f"GET /d/{DEVICE}/x", "Origin: http://evil.example")
            assert got.all("access-control-allow-origin") == []
            w.control.forbid = {"status": 404, "code": "NOT_FOUND", "message": "no"}
            got = await visitor.ask("GET /d/else/x", "Origin: http://front.example")
            assert (got.status, got.all("access-control-allow-origin")) == (404, ["http://front.example"])
            asked = len(w.control.authorizations)
            got = await visitor.ask(
                f"OPTIONS /d/{DEVICE}/x", "Origin: http://front.example", "Access-Control-Request-Method: PUT", token=""
            )
            assert (got.status, got.body) == (200, b"")
            assert "PUT" in got.all("access-control-allow-methods")[0]
            assert len(w.control.authorizations) == asked


@pytest.mark.parametrize("secure", [True, False])
async def test_every_answer_of_the_port_says_that_it_is_reached_by_tls(secure: bool) -> None:
    """Boxes' answers, read and kept ones, and each refusal; a box's own word on it is nobody's."""
    said = ["max-age=31536000"] * secure
    async with fast_world(hsts=secure) as w:
        answer = b"HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=0\r\nContent-Length: 2\r\n\r\nok"

        async def tell(wire: Wire) -> None:
            while await wire.head() is not None:
                await wire.send(answer)

        await box(w, tell)
        async with Visitor(w) as visitor:
            for origin in ("", "http://front.example", ""):
                got = await visitor.ask(f"GET /d/{DEVICE}/x", *[f"Origin: {origin}"] * bool(origin))
                assert (got.status, got.all("strict-transport-security")) == (200, said)
            asked = "Access-Control-Request-Method: PUT"
            for origin in ("http://front.example", "http://other.example"):
                got = await visitor.ask(f"OPTIONS /d/{DEVICE}/x", f"Origin: {origin}", asked, token="")
                assert (got.status, got.all("strict-transport-security")) == (200, said)
        for line in ("GET /d/none/x", "GET /nothing", "GET /tunnel/connect", "BAD"):
            async with Visitor(w) as visitor:
                got = await visitor.ask(line, token="")
                assert (got.status >= 400, got.all("strict-transport-security")) == (True, said)


async def test_the_device_is_offline() -> None:
    async with fast_world() as w, Visitor(w) as visitor:
        got = await visitor.ask(f"GET /d/{DEVICE}/x", "Accept-Language: zh-TW,en;q=0.5")
        assert (got.status, got.all("retry-after") != []) == (503, True)
        assert len(got.all("x-request-id")) == 1
        assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 503  # the connection is none the worse


async def test_a_drain_lets_exchanges_finish_and_takes_no_new_ones() -> None:
    async with fast_world() as w:
        reached, go_on = trio.Event(), trio.Event()

        async def slow(wire: Wire) -> None:
            await wire.head()
            reached.set()
            await go_on.wait()
            await wire.send(OK)

        await box(w, slow)
        held = w.daemon.parts.sessions.all()[0].id
        w.control.grant = {"node_url": w.daemon.node_url, "session": held}
        async with Visitor(w) as visitor, Visitor(w) as idle:
            await visitor.send(f"GET /d/{DEVICE}/x")
            await reached.wait()
            await idle.stream.send_all(b"GET /d/")  # one that comes too late
            await trio.testing.wait_all_tasks_blocked(0.05)  # the daemon has read it: the connection is not idle
            w.daemon.drain()
            await w.until(lambda: w.daemon.parts.metrics.draining)
            await idle.stream.send_all(f"{DEVICE}/late HTTP/1.1\r\nHost: h\r\n\r\n".encode())
            assert (await idle.read()).code == "TUNNEL_DISCONNECTED"
            go_on.set()
            got = await visitor.read()
            assert (got.body, got.all("connection")) == (b"ok", ["close"])
            with trio.fail_after(20):
                await w.ended.wait()


async def test_over_the_budget_of_buffers_running_exchanges_are_shed() -> None:
    """Of the tunnel that holds most; what is small goes on."""
    async with fast_world(buffer_bytes=60_000) as w:

        async def pours(wire: Wire) -> None:
            await wire.head()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 900000000\r\n\r\n")
                while True:
                    await wire.send(bytes(65536))

        await box(w, pours)
        async with Visitor(w) as visitor:
            visitor.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await visitor.send(f"GET /d/{DEVICE}/endless")
            await visitor.read_head()  # and no more than that
            await w.until(lambda: w.daemon.streams_fast == 0)
            (line,) = [each for each in w.logged("forward") if each["outcome"] == "cut"]
            assert "OVERLOADED" in line["problem"]


async def test_clients_that_reset_as_their_answer_comes_cost_nobody_else() -> None:
    """One that left before the task that writes its rest had begun ended the whole daemon: Trio takes a closed socket
    for descriptor -1, and breaks down."""
    async with fast_world() as w:
        await box(w, once(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + bytes(240_000)))
        async with trio.open_nursery() as nursery:
            for number in range(12):
                nursery.start_soon(trio.to_thread.run_sync, _ask_and_reset, w.public, number)
        await w.until(lambda: w.daemon.streams_fast == 0)
        await box(w, ok(b"hello"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).body == b"hello"
        assert not [line for line in w.lines if line["level"] == "error"]


async def test_who_is_cut_before_its_rest_is_written_costs_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, surely: whatever ends an exchange may do so before the task that it has begun has had its turn."""
    spawn = PublicLane.spawn

    def spawn_and_cut(lane: PublicLane, *work: Any) -> None:
        spawn(lane, *work)
        for run in list(lane.running):
            run.end_with(ProxyError("OVERLOADED", "cut"))

    async with fast_world() as w:
        await box(w, once(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n" + bytes(6_000_000)))
        with monkeypatch.context() as patch:
            patch.setattr(PublicLane, "spawn", spawn_and_cut)
            async with Visitor(w) as visitor:
                visitor.stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await visitor.send(f"GET /d/{DEVICE}/x")
                await w.until(lambda: [line["problem"] for line in w.logged("forward")] == ["OVERLOADED: cut"])
                await trio.testing.wait_all_tasks_blocked()
        await box(w, ok(b"hello"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).body == b"hello"
        assert not [line for line in w.lines if line["level"] == "error"]


def _ask_and_reset(port: int, number: int) -> None:
    """Clients one after the other, each a little later than the last as it leaves."""
    for turn in range(60):
        sock = socket.socket()
        with sock, suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.settimeout(5)
            sock.connect(("127.0.0.1", port))
            sock.sendall(f"GET /d/{DEVICE}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {LOGIN}\r\n\r\n".encode())
            sock.recv(1)
            time.sleep((turn * 12 + number) % 40 * 5e-5)


async def test_an_agent_may_come_on_a_connection_that_was_a_clients() -> None:
    """A proxy in front may keep one connection for both."""
    async with fast_world() as w:
        await box(w, ok(b"hello"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).body == b"hello"
            await visitor.send(
                "GET /tunnel/connect", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", token=OTHER,
            )  # fmt: skip
            assert (await visitor.read_head()).status == 101
            await w.until(lambda: len(w.daemon.parts.sessions) == 2)
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).body == b"hello"
            got = await visitor.ask("GET /tunnel/connect", token=OTHER)
            assert (got.status, got.code) == (426, "UPGRADE_REQUIRED")


async def test_slow_heads_on_kept_connections_push_each_other_out() -> None:
    async with fast_world(max_handshakes=2, head_seconds=1000) as w, AsyncExitStack() as stack:
        await box(w, ok(b"hello"))
        visitors = [await stack.enter_async_context(Visitor(w)) for _ in range(4)]
        for visitor in visitors:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).body == b"hello"
            await visitor.stream.send_all(b"GET /d/")
            await trio.testing.wait_all_tasks_blocked(0.01)
        for visitor in visitors[:2]:
            got = await visitor.read()
            assert (got.status, got.code) == (408, "REQUEST_TIMEOUT")
        for visitor in visitors[2:]:  # as many as there may be
            rest = f"{DEVICE}/x HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {LOGIN}\r\n\r\n"
            await visitor.stream.send_all(rest.encode())
            assert (await visitor.read()).body == b"hello"
