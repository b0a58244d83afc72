"""`POST /internal/exchange`: exchanges whose clients are connected to the API, carried as those of the public lane."""

from __future__ import annotations

from contextlib import AsyncExitStack
from ipaddress import ip_network
from typing import Any

import orjson
import pytest
import trio

from tests.runtime.daemon.daemonworld import SECRET, dial
from tests.runtime.daemon.lane.exchangeworld import MOUNT, Caller, call_of, head_of, small_buffers
from tests.runtime.daemon.lane.laneworld import DEVICE, Wire, box, fast_world, invalidate, ok
from tests.runtime.daemon.share.cameraworld import camera, metric, views, watch
from tunnel.contract.exchange import ACCEPTED, BEGIN, DATA, END, begin_record, record

WS = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


async def test_a_get_with_the_site_s_fields_and_many_on_one_connection() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi", "X-Box: 1"))
        async with Caller(w) as caller:
            for round_ in range(5):
                told = await caller.ask(head_of("GET /x?a=1"), names_device=True)
                assert told.data.endswith(b"\r\n\r\nhi"), told
                assert told.head.startswith(b"HTTP/1.1 200 OK")
                for line in (b"X-Box: 1", b"X-Site: yes", b"X-Request-ID: req_of-the-api"):
                    assert line in told.head
                assert f"X-VisionA-Device-Id: {DEVICE}".encode() in told.head
                assert told.kinds == [DATA, END]  # no ACCEPTED: it may be made again in any case
                end = told.end
                assert end is not None
                assert (end["outcome"], end["code"], end["keep"], end["sent"]) == ("ok", "", True, True)
                assert (end["status"], end["attempts"], end["bytes_down"]) == (200, 1, 2)
                assert end["reused"] == (round_ > 0)
                assert not end["repeatable"]
            line = w.logged("forward")[-1]
            assert (line["lane"], line["address"], line["request_id"]) == ("drf", "192.0.2.7", "req_of-the-api")
            assert w.control.authorizations == []


async def test_what_the_box_is_shown() -> None:
    heads: list[bytes] = []

    async def answer(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            heads.append(head)
            await wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with fast_world(trusted_proxies=(ip_network("127.0.0.1"),)) as w:  # who forwards, and none of the matter
        await box(w, answer)
        async with Caller(w) as caller:
            await caller.ask(head_of("GET /x", "Authorization: Bearer vAu_1", "X-Forwarded-For: 203.0.113.9"))
            trusted = head_of("GET /x", "X-Forwarded-For: 203.0.113.9")
            await caller.ask(trusted, trusted=True, traceparent="00-" + "1" * 32 + "-" + "2" * 16 + "-01")
    first, second = heads
    assert first.startswith(b"GET /x HTTP/1.1\r\nHost: site.example\r\n")
    assert b"X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\n" in first
    assert f"X-Forwarded-Prefix: {MOUNT}".encode() in first
    assert b"vAu_1" not in first
    assert b"traceparent" not in first
    assert b"X-Forwarded-For: 203.0.113.9, 192.0.2.1\r\n" in second
    assert b"traceparent: 00-" + b"1" * 32 in second


async def test_the_route_needs_the_upgrade_the_secret_and_no_body() -> None:
    async with fast_world() as w:
        status, fields, answer = await w.http("/internal/exchange", method="POST")
        assert (status, fields["upgrade"], answer["error"]["code"]) == (426, "visiona-exchange", "UPGRADE_REQUIRED")
        assert (await w.http("/internal/exchange", method="POST", secret="wrong"))[0] == 401
        assert (await w.http("/internal/exchange"))[0] == 405
        upgrade = [("Connection", "Upgrade"), ("Upgrade", "visiona-exchange")]
        assert (await w.http("/internal/exchange", method="POST", headers=[*upgrade, ("Content-Length", "1")]))[
            0
        ] == 400


async def test_a_call_may_stand_behind_the_head() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi"))
        stream = await dial(w.internal)
        lines = ["POST /internal/exchange HTTP/1.1", "Host: d", f"Authorization: Bearer {SECRET}"]
        lines += ["Connection: Upgrade", "Upgrade: visiona-exchange", "", ""]
        call = begin_record(orjson.dumps(call_of(w)), head_of("GET /x"))
        await stream.send_all("\r\n".join(lines).encode() + call)
        data = b""
        while b'"ok"' not in data:
            data += await stream.receive_some()
        assert data.startswith(b"HTTP/1.1 101 ")


async def echo_body(wire: Wire) -> None:
    while (head := await wire.head()) is not None:
        if b"chunked" in head:
            body = b""
            while (size := int((await _line(wire)), 16)) != 0:
                body += await wire.body(size)
                await _line(wire)
            await _line(wire)
        else:
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            body = await wire.body(int(length.split(b":")[1]))
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


async def _line(wire: Wire) -> bytes:
    while b"\r\n" not in wire.buffer:
        wire.buffer += await wire.stream.receive_some()
    line, _, wire.buffer = wire.buffer.partition(b"\r\n")
    return line


async def test_bodies_with_a_length_and_in_chunks() -> None:
    async with fast_world() as w:
        await box(w, echo_body)
        async with Caller(w) as caller:
            big = bytes(range(256)) * 2000
            await caller.begin(head_of("POST /x", f"Content-Length: {len(big)}"))
            for at in range(0, len(big), 50_000):
                await caller.say(big[at : at + 50_000])
            told = await caller.told()
            assert (told.body, told.kinds[0]) == (big, ACCEPTED)
            assert told.end is not None
            assert told.end["bytes_up"] == len(big)
            assert told.end["keep"]
            await caller.begin(head_of("PUT /x", "Transfer-Encoding: chunked"))
            for part in (b"5\r\nhel", b"lo\r\n3\r\nyou\r\n0\r\n", b"\r\n"):
                await caller.say(part)
            told = await caller.told()
            assert (told.body, told.accepted) == (b"helloyou", True)


async def test_a_continue_is_told_and_none_comes_before_a_refusal() -> None:
    async with fast_world() as w:
        await box(w, echo_body)
        async with Caller(w) as caller:
            await caller.begin(head_of("POST /x", "Content-Length: 2", "Expect: 100-continue"))
            told = await caller.until(b"HTTP/1.1 100 Continue\r\n\r\n")
            assert told.data == b"HTTP/1.1 100 Continue\r\n\r\n"
            await caller.say(b"ok")
            assert (await caller.told()).body == b"ok"
            told = await caller.ask(head_of("POST /x", "Content-Length: 2097152", "Expect: 100-continue"))
            assert (told.data, told.outcome) == (b"", ("refused", "PAYLOAD_TOO_LARGE"))
            assert told.end is not None
            assert "details" in told.end
            assert not told.end["sent"]


async def test_refusals_are_told_by_the_end_alone() -> None:
    async with fast_world(answer_seconds=0.3, open_seconds=0.3) as w:

        async def silent(wire: Wire) -> None:
            await wire.head()
            await wire.gone()

        async with Caller(w) as caller:
            w.control.grant = {"node_url": w.daemon.node_url, "session": "no-such"}
            gone = await caller.ask(head_of("GET /x"), session="no-such", epoch=1)
            assert (gone.outcome, gone.kinds) == (("refused", "TUNNEL_DISCONNECTED"), [END])
            assert gone.end is not None
            assert (gone.end["sent"], gone.end["repeatable"], gone.end["retry_after"]) == (False, True, 5)
            await box(w, silent)
            late = await caller.ask(head_of("GET /x"))
            assert late.outcome == ("refused", "TUNNEL_TIMEOUT")
            assert late.end is not None
            assert (late.end["sent"], late.end["repeatable"], late.end["keep"]) == (True, True, True)
            post = await caller.ask(head_of("POST /x", "Content-Length: 0"))
            assert post.end is not None
            assert (post.accepted, post.end["repeatable"]) == (True, False)
            assert (await caller.ask(head_of("BREW /x"))).outcome == ("refused", "METHOD_NOT_ALLOWED")
            assert (await caller.ask(b"GET /x HTTP/1.1\r\n\r\n", mount="")).outcome == ("refused", "BAD_REQUEST")
        assert all(line["lane"] == "drf" for line in w.logged("forward"))


async def test_a_box_that_is_not_reached_is_told_with_its_address() -> None:
    async def refuse(wire: Wire) -> None:
        await wire.head()
        wire.stream.reset()

    async with fast_world() as w:
        await box(w, refuse, local="127.0.0.1:8080")
        async with Caller(w) as caller:
            told = await caller.ask(head_of("GET /x"))
            assert told.outcome == ("refused", "AGENT_UNREACHABLE")
            assert told.end is not None
            assert told.end["details"] == {"local_address": ["127.0.0.1:8080"]}


async def test_a_body_over_the_limit_in_chunks() -> None:
    async with fast_world() as w:

        async def slow(wire: Wire) -> None:
            await wire.head()
            await wire.gone()

        await box(w, slow)
        async with Caller(w) as caller:
            await caller.begin(head_of("POST /x", "Transfer-Encoding: chunked"), body_max=1000)
            await caller.say(b"800\r\n" + b"x" * 0x800 + b"\r\n0\r\n\r\n")
            told = await caller.told()
            assert told.outcome == ("refused", "PAYLOAD_TOO_LARGE")
            assert told.end is not None
            assert (told.end["sent"], told.end["repeatable"], told.end["keep"]) == (True, False, False)


async def test_a_dead_idle_stream_is_made_good() -> None:
    answered: list[bytes] = []

    async def once(wire: Wire) -> None:
        head = await wire.head()
        assert head is not None
        answered.append(head)
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await wire.head()  # the next one ends unanswered
        wire.stream.reset()

    async with fast_world() as w:
        await box(w, once)
        async with Caller(w) as caller:
            assert (await caller.ask(head_of("GET /1"))).body == b"hi"
            told = await caller.ask(head_of("GET /2"))
            assert told.body == b"hi"
            assert told.end is not None
            assert (told.end["attempts"], told.end["reused"]) == (2, False)


async def test_a_cut_answer() -> None:
    async def cut(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        await trio.sleep(0.05)
        wire.stream.reset()

    async with fast_world() as w:
        await box(w, cut)
        async with Caller(w) as caller:
            told = await caller.ask(head_of("GET /x"))
            assert (told.outcome, told.body) == (("cut", "AGENT_BAD_RESPONSE"), b"some")
            assert told.end is not None
            assert (told.end["keep"], told.end["repeatable"], told.end["status"]) == (False, False, 200)
            assert (await caller.ask(head_of("GET /y"))).outcome[0] == "cut"  # the connection goes on


async def ws_echo(wire: Wire) -> None:
    await wire.head()
    await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    while data := await wire.stream.receive_some():
        await wire.send(data)
    await wire.send(b"bye")
    await wire.stream.send_eof()


async def test_an_upgrade_and_its_half_closes() -> None:
    async with fast_world() as w:
        await box(w, ws_echo)
        async with Caller(w) as caller:
            for _ in range(2):
                await caller.begin(head_of("GET /ws/x", *WS), upgrade=True, mount="")
                told = await caller.until(b"\r\n\r\n")
                assert told.head.startswith(b"HTTP/1.1 101 ")
                await caller.say(b"hello")
                told = await caller.until(b"hello")
                await caller.eof()
                told = await caller.told()
                assert (told.data, told.outcome) == (b"bye", ("ok", ""))
                assert told.kinds == [DATA, 3, END]
                assert told.end is not None
                assert not told.end["keep"]


async def test_a_client_that_is_gone_or_may_no_longer_resets_the_stream() -> None:
    gone: list[str] = []

    async def begun(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        gone.append(await wire.gone())

    async with fast_world() as w:
        await box(w, begun)
        async with Caller(w) as caller:
            await caller.begin(head_of("GET /x"))
            await caller.until(b"some")
            await caller.abort()
            assert (await caller.told()).outcome == ("client_left", "")
            await w.until(lambda: gone == ["reset"])
            await caller.begin(head_of("GET /x"))
            await caller.until(b"some")
            await caller.abort("UNAUTHENTICATED")
            assert (await caller.told()).outcome == ("cut", "UNAUTHENTICATED")
            await caller.begin(head_of("GET /x"))
            await caller.until(b"some")
        await w.until(lambda: gone == ["reset"] * 3)  # the caller itself left
        assert w.logged("forward")[-1]["outcome"] == "client_left"


@pytest.mark.parametrize("kind", ["text/plain", "multipart/x-mixed-replace; boundary=b", "text/event-stream"])
async def test_a_client_s_fin_is_leaving_where_the_answer_has_no_end(kind: str) -> None:
    gone: list[str] = []
    go = trio.Event()

    async def slow(wire: Wire) -> None:
        await wire.head()
        await wire.send(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n--b\r\n".encode())
        if kind == "text/plain":
            await go.wait()
            await wire.send(b"end")
        else:
            gone.append(await wire.gone())

    async with fast_world() as w:
        await box(w, slow)
        async with Caller(w) as caller:
            await caller.begin(head_of("GET /x"))
            told = await caller.until(b"--b")
            await caller.eof()
            if kind == "text/plain":
                await trio.sleep(0.7)  # longer than from one look to the next
                go.set()
                told = await caller.told(told)
                assert (told.outcome, told.body.endswith(b"3\r\nend\r\n0\r\n\r\n")) == (("ok", ""), True)
            else:
                assert (await caller.told(told)).outcome == ("client_left", "")
                await w.until(lambda: gone == ["reset"])


async def test_a_fin_before_the_request_is_whole_is_leaving() -> None:
    gone: list[str] = []
    reached = trio.Event()

    async def wait(wire: Wire) -> None:
        await wire.head()
        reached.set()
        gone.append(await wire.gone())

    async with fast_world() as w:
        await box(w, wait)
        async with Caller(w) as caller:
            await caller.begin(head_of("POST /x", "Content-Length: 5"))
            await caller.say(b"abc")
            await reached.wait()
            await caller.eof()
            assert (await caller.told()).outcome == ("client_left", "")
        await w.until(lambda: gone == ["reset"])


async def test_an_end_less_head_behind_a_fin_is_nobody_s() -> None:
    go = trio.Event()

    async def late(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await wire.gone()

    async with fast_world() as w:
        await box(w, late)
        async with Caller(w) as caller:
            await caller.begin(head_of("GET /x"))
            await caller.eof()
            await trio.sleep(0.1)
            go.set()
            told = await caller.told()
            assert (told.outcome, told.data) == (("client_left", ""), b"")


async def test_a_slow_caller_holds_up_the_box_and_not_the_daemon_s_memory() -> None:
    size = 4 << 20

    async def big(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(size >> 16):
            await wire.send(b"x" * (1 << 16))
        await wire.gone()

    async with fast_world() as w:
        await box(w, big)
        async with Caller(w) as caller:
            small_buffers(caller)
            await caller.begin(head_of("GET /big"))
            await trio.sleep(0.5)
            client = next(iter(w.daemon.parts.lane._clients))
            assert sum(map(len, client._unsent)) <= 256 * 1024
            assert sum(one.connection.session.buffered for one in w.daemon.parts.sessions.all()) <= 1 << 20
            told = await caller.told()
            assert (len(told.body), told.outcome) == (size, ("ok", ""))


async def test_viewers_of_both_doors_join_one_pull() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        eye = await watch(stack, w)
        caller = await stack.enter_async_context(Caller(w))
        await w.until(lambda: show.wires)
        first = await show.show()
        await eye.open()
        await caller.begin(head_of("GET /cameras/0/stream"))
        told = await caller.until(first)
        assert b"multipart/x-mixed-replace" in told.head
        await w.until(lambda: views(w) == 2)
        second = await show.show()
        while second not in told.data:
            await caller.next(told)
        await eye.until(second)
        assert len(show.asked) == 1
        await caller.abort()
        assert (await caller.told()).outcome == ("client_left", "")
        await w.until(lambda: views(w) == 1)
        await eye.until(await show.show())


async def test_a_slow_viewer_skips_frames_and_holds_nobody_up() -> None:
    async with camera() as (w, show, _), AsyncExitStack() as stack:
        show.go.set()
        slow = await stack.enter_async_context(Caller(w))
        small_buffers(slow)
        await slow.begin(head_of("GET /cameras/0/stream"))
        quick = await watch(stack, w)
        await w.until(lambda: show.wires)
        first = await show.show()
        await quick.open()
        await quick.until(first)
        for _ in range(60):
            await quick.until(await show.show(50_000))
            quick.body = b""
        await quick.until(await show.show(50_000))
        assert len(show.asked) == 1
        told = await slow.until(b"000061" + bytes(100))
        assert metric(w, "visiona_shared_units_skipped_total") > 0
        assert told.data.count(b"Content-Length: 50006") < 50


async def test_an_invalidation_and_a_refusal_end_what_runs() -> None:
    async def begun(wire: Wire) -> None:
        head = await wire.head()
        assert head is not None
        if b"/begun" in head:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nsome")
        await wire.gone()

    async with fast_world() as w:
        await box(w, begun)
        async with Caller(w) as caller, Caller(w) as other:
            await caller.begin(head_of("GET /begun"))
            await other.begin(head_of("GET /x"))
            await caller.until(b"some")
            await w.until(lambda: len(w.daemon.parts.lane.running) == 2)
            status, answer = await invalidate(w, {"users": [], "logins": ["login-1"], "devices": []})
            assert (status, answer["data"]["ended"]) == (200, 2)  # type: ignore[index]
            assert (await caller.told()).outcome == ("cut", "UNAUTHENTICATED")
            assert (await other.told()).outcome == ("refused", "UNAUTHENTICATED")

            await caller.begin(head_of("GET /begun"))
            await other.begin(head_of("GET /x"))
            w.control.forbid = {"status": 403, "code": "FORBIDDEN", "message": "Not yours any more."}
            assert (await caller.told()).outcome[0] == "cut"
            told = await other.told()
            assert told.outcome == ("refused", "FORBIDDEN")
            assert told.end is not None
            assert told.end["message"] == "Not yours any more."
            asked = w.control.authorizations
            assert {(each["kind"], each["token"], each["device"]) for each in asked} == {("login", "login-1", DEVICE)}
            assert len(asked) == 1  # one question for both


async def test_a_drain_lets_what_runs_finish_and_keeps_clients() -> None:
    go = trio.Event()

    async def slow(wire: Wire) -> None:
        await wire.head()
        await go.wait()
        await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await wire.gone()

    async with fast_world() as w:
        await box(w, slow)
        async with Caller(w) as caller, Caller(w) as idle:
            await caller.begin(head_of("GET /x"))
            await w.until(lambda: w.daemon.parts.lane.running)
            w.daemon.drain()
            assert await idle.closed()
            go.set()
            told = await caller.told()
            assert (told.body, told.outcome) == (b"hi", ("ok", ""))
            assert b"Connection: close" not in told.head
            assert told.end is not None
            assert told.end["keep"]
            assert await caller.closed()
        await w.ended.wait()


@pytest.mark.parametrize(
    "over",
    [
        {"device_id": "no-id"},
        {"epoch": "1"},
        {"epoch": True},
        {"trusted": 1},
        {"mount": "/a\r\nX: y"},
        {"scheme": "ftp"},
        {"request_id": "a b"},
        {"fields": [["X", "a\r\nY: b"]]},
        {"fields": [["X"]]},
        {"fields": {"X": "y"}},
        {"login": None},
    ],
)
async def test_a_call_that_our_api_never_makes(over: dict[str, Any]) -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi"))
        async with Caller(w) as caller:
            told = await caller.ask(head_of("GET /x"), **over)
            assert told.outcome == ("refused", "BAD_REQUEST")
            assert await caller.closed()


async def test_records_that_make_no_sense_end_the_connection() -> None:
    async def wait(wire: Wire) -> None:
        await wire.head()
        await wire.gone()

    async with fast_world() as w:
        await box(w, wait)
        for data in (b"\x63\0\0\0", record(ACCEPTED), record(BEGIN, b"\0\0\0\x09{}"), record(BEGIN, b"\0\0\0\x02[]")):
            async with Caller(w) as caller:
                await caller.stream.send_all(data)
                assert await caller.closed()
        for data in (b"\x63\0\0\0", record(END, b"{}"), record(BEGIN, b"\0\0\0\x02{}")):
            async with Caller(w) as caller:
                await caller.begin(head_of("GET /x"))
                await w.until(lambda: w.daemon.parts.lane.running)
                await caller.stream.send_all(data)
                assert (await caller.told()).outcome == ("refused", "BAD_REQUEST")
                assert await caller.closed()


async def test_what_comes_behind_an_end_is_ignored() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi"))
        async with Caller(w) as caller:
            await caller.ask(head_of("GET /x"))
            await caller.say(b"late")
            await caller.eof()
            await caller.abort()
            assert (await caller.ask(head_of("GET /x"))).outcome == ("ok", "")


async def test_a_call_whose_caller_has_given_up_reaches_no_box() -> None:
    heads: list[bytes] = []

    async def answer(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            heads.append(head)
            await wire.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with fast_world() as w:
        await box(w, answer)
        async with Caller(w) as caller:
            caller.stream.sock.send(caller.first(head_of("POST /x", "Content-Length: 0")))
            caller.stream.close()  # before the daemon has had a turn
        async with Caller(w) as caller:
            assert (await caller.ask(head_of("GET /next"))).outcome == ("ok", "")
        assert [head.split(b" ")[1] for head in heads] == [b"/next"]


async def test_an_answer_and_its_end_leave_together() -> None:
    async with fast_world() as w:
        await box(w, ok(b"hi"))
        async with Caller(w) as caller:
            await caller.begin(head_of("GET /x"))
            data = await caller.stream.receive_some()
            kinds = [kind for kind, _ in caller.reader.feed(data)]
            assert kinds == [DATA, END]


async def test_the_last_of_an_answer_that_its_caller_takes_slowly_comes_whole() -> None:
    """It leaves with its end in one piece, of which the kernel takes a part: nobody but us writes the rest."""
    size = 120_000

    async def big(wire: Wire) -> None:
        while await wire.head() is not None:
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)

    async with fast_world() as w:
        await box(w, big)
        async with Caller(w) as caller:
            small_buffers(caller)
            for _ in range(3):
                await caller.begin(head_of("GET /big"))
                await trio.sleep(0.2)
                told = await caller.told()
                assert (len(told.body), told.outcome) == (size, ("ok", ""))
