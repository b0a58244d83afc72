"""The internal API: who may, what is answered, and bytes through a stream in every way that they can end."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from tests.runtime.daemon.daemonworld import OTHER, SECRET, TOKEN, dial, echo, parse, read_all, world
from tunnel.daemon.internal import _is_loopback
from tunnel.mux.errors import StreamReset
from tunnel.mux.stream import Stream


async def test_bytes_go_both_ways_and_half_closes_pass() -> None:
    async with world() as w:
        agent, _ = await w.agent(
            headers=[("Authorization", f"Bearer {TOKEN}"), ("X-VisionA-Agent", "a/1; features=keepalive")]
        )
        await w.serve(agent, echo)
        session = w.daemon.parts.sessions.all()[0]
        status, fields, raw, rest = await w.forward(
            first=b"first ", headers=[("X-Device-Id", "device-0"), ("X-Request-ID", "req-1")]
        )
        assert (status, fields["upgrade"], fields["connection"]) == (101, "visiona-stream", "Upgrade")
        assert fields["x-tunnel-session"] == session.id
        assert fields["x-visiona-agent-features"] == "keepalive"
        assert fields["x-request-id"] == "req-1"
        await raw.send_all(b"x" * 1_000_000)
        raw.send_eof()
        assert rest + await read_all(raw) == b"first " + b"x" * 1_000_000
        await w.until(lambda: not len(w.daemon.parts.relay))
        line = w.logged("forward")[0]
        assert (line["request_id"], line["outcome"], line["device"]) == ("req-1", "done", "device-0")
        assert line["bytes_up"] == line["bytes_down"] == 1_000_006
        assert session.connection.streams == 0


async def test_the_agents_half_close_comes_first_and_the_other_direction_goes_on() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        got = bytearray()
        done = trio.Event()

        async def answer_first(stream: Stream) -> None:
            await stream.send_all(b"all there is")
            await stream.send_eof()
            while data := await stream.receive_some():
                got.extend(data)
            done.set()

        await w.serve(agent, answer_first)
        _, _, raw, rest = await w.forward()
        while more := await raw.receive_some():
            rest += more
        assert rest == b"all there is"
        await raw.send_all(b"still talking")
        raw.send_eof()
        await done.wait()
        assert got == b"still talking"
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "done"


async def test_an_agents_reset_is_a_reset_of_the_socket() -> None:
    async with world() as w:
        agent, _ = await w.agent()

        async def reset(stream: Stream) -> None:
            await stream.receive_some()
            stream.reset()

        await w.serve(agent, reset)
        _, _, raw, _ = await w.forward()
        await raw.send_all(b"go")
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "agent_reset"


@pytest.mark.parametrize("half_closed", [False, True])
async def test_a_clients_reset_is_a_reset_of_the_stream(half_closed: bool) -> None:
    async with world() as w:
        agent, _ = await w.agent()
        seen: list[BaseException] = []
        done = trio.Event()

        async def wait(stream: Stream) -> None:
            try:
                while await stream.receive_some():
                    pass
                await stream.receive_some()
                while True:  # after the client's half-close only sending can tell
                    await stream.wait_send_all_might_not_block()
                    await trio.sleep(0.05)
            except StreamReset as error:
                seen.append(error)
                done.set()

        await w.serve(agent, wait)
        _, _, raw, _ = await w.forward()
        await raw.send_all(b"go")
        if half_closed:
            raw.send_eof()
            await w.until(lambda: any(one.up_done for one in w.daemon.parts.relay._forwards))
        start = trio.current_time()
        raw.reset()
        await done.wait()
        assert trio.current_time() - start < 2.5
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "client_reset"


async def test_a_lost_session_resets_its_streams() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        agent._transport._sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "session_ended"


async def test_an_idle_stream_is_reset() -> None:
    async with world(idle_seconds=0.5) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        with pytest.raises(trio.BrokenResourceError):
            await raw.receive_some()
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "idle"


async def test_a_slow_client_stalls_its_stream_only() -> None:
    async with world() as w:
        agent, _ = await w.agent()

        async def pour(stream: Stream) -> None:
            try:
                if await stream.receive_some() == b"flood":
                    while True:
                        await stream.send_all(b"y" * 65_536)
                await stream.send_all(b"quick")
                await stream.aclose()
            except trio.BrokenResourceError:
                stream.reset()

        await w.serve(agent, pour)
        _, _, slow, _ = await w.forward()
        await slow.send_all(b"flood")
        await w.until(lambda: w.daemon.parts.sessions.all()[0].connection.statistics().buffered > 100_000)
        for _ in range(20):
            _, _, raw, rest = await w.forward()
            await raw.send_all(b"hello")
            raw.send_eof()
            assert rest + await read_all(raw) == b"quick"
        assert w.daemon.parts.sessions.all()[0].connection.statistics().buffered <= 1 << 20
        slow.reset()


async def test_an_agent_that_lives_and_does_not_acknowledge_gets_the_request() -> None:
    """Some acknowledge with their first own frame: it is the answer's head that is waited for then."""
    async with world(open_seconds=0.5) as w:
        await w.agent()  # it runs, but nobody accepts streams
        for _ in range(4):
            status, _, raw, _ = await w.forward()
            assert status == 101
            raw.reset()
        assert not w.daemon.parts.sessions.all()[0].closing


async def test_an_agent_that_is_silent_is_504(monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(open_seconds=0.3) as w:
        agent, _ = await w.agent()

        async def silence(_: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(agent._transport, "try_send", lambda _: False)
        monkeypatch.setattr(agent._transport, "send_all", silence)
        status, _, raw, _ = await w.forward()
        assert status == 504
        raw.close()
        assert b"visiona_tunnel_streams_total" in (await w.http("/metrics"))[2]
        assert w.daemon.parts.sessions.all()[0].connection.streams == 0


async def test_a_full_tunnel_is_503_with_retry_after() -> None:
    async with world(max_streams=3) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        held = [(await w.forward())[2] for _ in range(3)]
        status, fields, raw, _ = await w.forward()
        assert (status, fields["retry-after"]) == (503, "1")
        raw.close()
        held.pop().reset()
        await w.until(lambda: len(w.daemon.parts.relay) == 2)
        status, _, raw, _ = await w.forward()
        assert status == 101
        raw.close()


async def test_an_agent_that_is_going_away_is_503() -> None:
    async with world() as w:
        agent, _ = await w.agent()
        agent.go_away(0)
        await w.until(lambda: w.daemon.parts.sessions.all()[0].connection.peer_going_away)
        status, fields, raw, rest = await w.forward()
        assert (status, fields["retry-after"]) == (503, "1")
        assert b"TUNNEL_DISCONNECTED" in rest + await read_all(raw)


async def test_the_buffer_budget_refuses_and_breaks_off() -> None:
    async with world(buffer_bytes=100_000) as w:
        agent, _ = await w.agent()

        async def pour(stream: Stream) -> None:
            try:
                while True:
                    await stream.send_all(b"y" * 65_536)
            except trio.BrokenResourceError:
                stream.reset()

        await w.serve(agent, pour)
        _, _, slow, _ = await w.forward()  # never read: the daemon has to hold what comes
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["outcome"] == "overloaded"
        assert w.daemon.parts.relay._over_budget
        status, _, raw, _ = await w.forward()
        assert status == 503
        raw.close()
        slow.close()
        await w.until(lambda: not w.daemon.parts.relay._over_budget)


@pytest.mark.parametrize(
    "headers,status,code",
    [
        ([("X-Tunnel-Session", "unknown")], 404, "NOT_FOUND"),
        ([("X-Device-Id", "unknown")], 404, "NOT_FOUND"),
        ([], 400, "BAD_REQUEST"),
        ([("X-Device-Id", "x"), ("Content-Length", "5")], 400, "BAD_REQUEST"),
        ([("X-Device-Id", "x"), ("Transfer-Encoding", "chunked")], 400, "BAD_REQUEST"),
        ([("X-Device-Id", "x"), ("X-VisionA-Contract", "2")], 400, "BAD_REQUEST"),
        ([("X-Device-Id", "x"), ("X-VisionA-Contract", "0")], 404, "NOT_FOUND"),
        ([("X-Device-Id", "x"), ("X-VisionA-Contract", "1")], 404, "NOT_FOUND"),
    ],
)
async def test_what_forward_refuses(headers: list[tuple[str, str]], status: int, code: str) -> None:
    async with world() as w:
        stream = await dial(w.internal)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
        await stream.send_all(
            f"POST /internal/forward/raw HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {SECRET}\r\n"
            f"Connection: Upgrade\r\nUpgrade: visiona-stream\r\nX-Request-ID: r.1\r\n{lines}\r\n".encode()
        )
        got, fields, body = parse(await read_all(stream))
        assert (got, body["success"], body["error"]["code"]) == (status, False, code)
        assert fields["x-request-id"] == body["error"]["request_id"] == "r.1"


async def test_forward_needs_its_upgrade_and_post() -> None:
    async with world() as w:
        assert (await w.http("/internal/forward/raw", method="POST"))[0] == 426
        old = await dial(w.internal)
        await old.send_all(
            f"POST /internal/forward/raw HTTP/1.0\r\nHost: d\r\nAuthorization: Bearer {SECRET}\r\nX-Device-Id: d\r\n"
            "Connection: Upgrade\r\nUpgrade: visiona-stream\r\n\r\n".encode()
        )
        assert parse(await read_all(old))[0] == 426
        status, fields, _ = await w.http("/internal/forward/raw")
        assert (status, fields["allow"]) == (405, "POST")


@pytest.mark.parametrize("target", ["/internal/sessions", "/internal/session/x", "/internal/nothing"])
@pytest.mark.parametrize("secret", [None, "", "wrong", SECRET + "x"])
async def test_without_the_secret_internal_is_401(target: str, secret: str | None) -> None:
    async with world() as w:
        status, _, body = await w.http(target, secret=secret)
        assert (status, body["error"]["code"]) == (401, "UNAUTHENTICATED")


async def test_every_secret_of_the_list_is_accepted_and_another_scheme_is_not() -> None:
    async with world() as w:
        assert (await w.http("/internal/sessions", secret="an-older-secret"))[0] == 200
        basic = [("Authorization", f"Basic {SECRET}")]
        assert (await w.http("/internal/sessions", secret=None, headers=basic))[0] == 401


async def test_facts_pages_and_closing_of_sessions() -> None:
    async with world() as w:
        first, _ = await w.agent(headers=[("X-Relay-Token", TOKEN), ("X-VisionA-Agent", "box/2.1")])
        await w.agent(OTHER)
        await w.until(lambda: len(w.daemon.parts.sessions) == 2)
        ids = sorted(one.id for one in w.daemon.parts.sessions.all())
        status, _, body = await w.http("/internal/sessions?limit=1")
        assert (status, body["meta"]) == (200, {"total": 2, "next": ids[0]})
        _, _, body = await w.http(f"/internal/sessions?limit=1&after={ids[0]}")
        assert [one["session"] for one in body["data"]] == [ids[1]]
        assert body["meta"]["next"] is None
        mine = w.daemon.parts.sessions.of_device("device-0")
        assert mine is not None
        _, _, body = await w.http(f"/internal/session/{mine.id}")
        assert body["data"]["device_id"] == "device-0"
        assert body["data"]["agent"] == "box/2.1"
        assert body["data"]["streams"] == 0
        assert body["data"]["node"] == w.daemon.config.node
        assert {"window_stalls", "rtt_ms", "connected_at", "bytes_in", "bytes_out"} <= set(body["data"])
        status, _, body = await w.http(f"/internal/session/{mine.id}?code=4401&reason=token%20revoked", method="DELETE")
        assert (status, body) == (200, {"success": True, "data": None})
        await w.until(lambda: first.end_reason is not None)
        assert first.end_reason is not None
        assert (first.end_reason.close_code, first.end_reason.remote) == (4401, True)
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        assert (await w.http(f"/internal/session/{mine.id}", method="DELETE"))[0] == 404
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["code"], ended[0]["session"]) == ("revoked", 4401, mine.id)


@pytest.mark.parametrize("there", [True, False], ids=["lives", "gone without a word"])
async def test_a_sign_of_life_is_asked_of_the_agent(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.internal._PING_SECONDS", 30.0 if there else 0.2)
    async with world() as w:
        agent, _ = await w.agent(run=there)
        session = w.daemon.parts.sessions.all()[0].id
        for _ in range(2):  # the first ping of a silent one is still outstanding
            status, _, body = await w.http(f"/internal/session/{session}?ping=1")
            assert (status, body["data"]["answers"], body["data"]["session"]) == (200, there, session)
        assert (await w.http("/internal/session/nobody?ping=1"))[0] == 404
        assert "answers" not in (await w.http(f"/internal/session/{session}"))[2]["data"]
        await agent.aclose()


@pytest.mark.parametrize("query", ["code=4400", "code=x", "code=-1", "code=99999999999"])
async def test_a_code_that_is_none_of_ours_is_refused(query: str) -> None:
    async with world() as w:
        await w.agent()
        session = w.daemon.parts.sessions.all()[0]
        status, _, body = await w.http(f"/internal/session/{session.id}?{query}", method="DELETE")
        assert (status, body["error"]["code"]) == (400, "VALIDATION_ERROR")
        assert not session.closing


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=ten"])
async def test_a_bad_page_is_refused(query: str) -> None:
    async with world() as w:
        assert (await w.http(f"/internal/sessions?{query}"))[0] == 400


@pytest.mark.parametrize(
    "method,target,status",
    [
        ("POST", "/internal/sessions", 405),
        ("PUT", "/internal/session/x", 405),
        ("GET", "/internal/drain", 405),
        ("POST", "/healthz", 405),
        ("POST", "/metrics", 405),
        ("GET", "/nothing", 404),
        ("GET", "/internal/", 404),
        ("GET", "/internal/authz/invalidate", 405),
    ],
)
async def test_methods_and_unknown_routes(method: str, target: str, status: int) -> None:
    async with world() as w:
        got, _, body = await w.http(target, method=method)
        assert (got, body["success"]) == (status, False)


async def test_probes_and_metrics_need_no_secret_on_loopback() -> None:
    async with world() as w:
        await w.control.wait(lambda: w.control.heartbeats)
        await w.until(lambda: w.daemon.parts.heartbeat.accepted)
        assert (await w.http("/healthz", secret=None))[2] == {"status": "ok"}
        assert (await w.http("/healthz", secret=None, method="HEAD"))[2] == b""
        assert (await w.http("/readyz", secret=None))[2] == {"status": "ready"}
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        _, _, raw, _ = await w.forward()
        await raw.send_all(b"12345")
        raw.send_eof()
        await read_all(raw)
        await w.until(lambda: w.logged("forward"))
        status, fields, text = await w.http("/metrics", secret=None)
        assert status == 200
        assert fields["content-type"].startswith("text/plain")
        lines = text.decode().splitlines()
        assert "visiona_tunnel_sessions 1.0" in lines
        assert 'visiona_tunnel_streams_total{outcome="done"} 1.0' in lines
        assert "visiona_tunnel_open_seconds_count 1.0" in lines
        assert any(line.startswith('visiona_tunnel_bytes_total{direction="in"} ') for line in lines)


def test_metrics_are_for_loopback_only() -> None:
    assert [_is_loopback(peer) for peer in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "?")] == [
        True,
        True,
        True,
        False,
        False,
    ]


async def test_half_a_request_and_garbage() -> None:
    async with world(head_seconds=0.3) as w:
        stream = await dial(w.internal)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: d\r\n")
        assert parse(await read_all(stream))[0] == 408
        for garbage, status in (
            (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nX: " + b"a" * 40_000, 431),
            (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 101 + b"\r\n", 431),
            (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n\r\n", 414),
        ):
            stream = await dial(w.internal)
            await stream.send_all(garbage)
            assert parse(await read_all(stream))[0] == status
        stream = await dial(w.internal)
        stream.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.close()
        assert (await w.http("/healthz"))[0] == 200
