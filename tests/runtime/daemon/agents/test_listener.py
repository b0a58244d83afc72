"""Agents at the public port: who is let in, what the others are told, and which connection of a device counts."""

from __future__ import annotations

import base64
import json

import pytest
import trio
import trio.testing

from tests.runtime.daemon.daemonworld import OTHER, SECRET, TOKEN, Control, dial, echo, parse, read_all, world
from tests.runtime.daemon.refusals import code_of, refused
from tunnel.mux.errors import StreamRefused
from tunnel.websocket.handshake import HandshakeRefused

BEARER = [("Authorization", f"Bearer {TOKEN}")]
UPGRADE = [
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", base64.b64encode(b"0123456789abcdef").decode()),
]


async def test_an_admitted_agent_is_told_who_it_is() -> None:
    async with world() as w:
        w.control.extra[TOKEN] = {"session_token": "vAs_" + "9" * 32}
        headers = [
            *BEARER,
            ("X-Request-ID", "boot-1"),
            ("X-VisionA-Agent", "visiona-agent/1.2; features=keepalive, handover"),
            ("X-VisionA-Instance", "i-1"),
            ("X-VisionA-Serial", "S1"),
            ("X-VisionA-Chip", "KL720"),
            ("X-VisionA-Firmware", "2.0"),
            ("X-VisionA-Local", "127.0.0.1:8080; listening=no"),
        ]
        _, answer = await w.agent(headers=headers)
        session = w.daemon.parts.sessions.all()[0]
        assert answer["x-visiona-device-id"] == "device-0"
        assert answer["x-visiona-tunnel-session"] == session.id
        assert answer["x-visiona-session-token"] == "vAs_" + "9" * 32
        assert answer["x-request-id"] == "boot-1"
        assert w.control.authentications[0]["node"] == w.daemon.config.node
        assert w.control.authentications[0]["credentials"] == [
            {
                "token": TOKEN,
                "session": session.id,
                "address": "127.0.0.1",
                "request_id": "boot-1",
                "agent": "visiona-agent/1.2",
                "features": ["keepalive", "handover"],
                "instance": "i-1",
                "serial": "S1",
                "chip": "KL720",
                "firmware": "2.0",
                "local": "127.0.0.1:8080",
                "local_listening": False,
            }
        ]
        assert b"bearer " + SECRET.encode() in w.control.headers[0].lower()
        assert b"x-visiona-contract: 1" in w.control.headers[0].lower()
        event = (await w.control.wait(lambda: w.control.events))[0]
        assert (event["type"], event["session"], event["epoch"]) == ("connected", session.id, 1)
        line = w.logged("connect")[0]
        assert (line["request_id"], line["device"], line["session"]) == ("boot-1", "device-0", session.id)


@pytest.mark.parametrize(
    "headers,path",
    [
        (BEARER, "/tunnel/connect"),
        ([("authorization", f"bearer {TOKEN}")], "/tunnel/connect"),
        ([], f"/tunnel/connect?token={TOKEN}"),
        ([("X-Relay-Token", TOKEN)], "/tunnel/connect"),
        ([*BEARER, ("X-Relay-Token", OTHER)], f"/tunnel/connect?token={OTHER}"),
        ([("X-Relay-Token", OTHER)], f"/tunnel/connect?a=b&token={TOKEN}"),
        ([("Authorization", "Basic eDp5"), ("X-Relay-Token", TOKEN)], "/tunnel/connect"),
    ],
)
async def test_the_credential_is_found_in_its_order_and_never_logged(headers: list[tuple[str, str]], path: str) -> None:
    async with world() as w:
        _, answer = await w.agent(headers=headers, path=path)
        assert "x-visiona-session-token" not in answer
        assert w.control.authentications[0]["credentials"][0]["token"] == TOKEN
        w.daemon.parts.sessions.all()[0].close(1000)
        await w.until(lambda: w.logged("disconnect"))
        assert TOKEN not in str(w.lines)
        assert OTHER not in str(w.lines)


@pytest.mark.parametrize("name", ["Authorization", "X-Relay-Token"])
async def test_of_two_credentials_in_fields_of_one_name_neither_is_taken(name: str) -> None:
    async with world() as w:
        twice = [(name, f"Bearer {TOKEN}"), (name.lower(), f"Bearer {OTHER}")]
        refusal = await refused(w, headers=twice)
        assert (refusal.status, code_of(refusal)) == (400, "BAD_REQUEST")
        assert not w.control.authentications


@pytest.mark.parametrize("token", ["none", "vAu_" + "0" * 32, "vAs_short", "nonsense"])
async def test_what_is_no_agents_token_is_401_without_asking_django(token: str) -> None:
    async with world() as w:
        refusal = await refused(w, headers=[("Authorization", f"Bearer {token}")] if token != "none" else [])
        assert (refusal.status, code_of(refusal)) == (401, "UNAUTHENTICATED")
        assert not w.control.authentications


@pytest.mark.parametrize(
    "status,code,retry_after",
    [
        (401, "UNAUTHENTICATED", None),
        (401, "TOKEN_EXPIRED", None),
        (401, "TOKEN_REVOKED", None),
        (403, "ACCOUNT_DISABLED", None),
        (409, "SERIAL_TAKEN", None),
        (429, "RATE_LIMITED", 30),
        (503, "OVERLOADED", 5),
    ],
)
async def test_djangos_refusal_is_told_before_the_upgrade(status: int, code: str, retry_after: int | None) -> None:
    async with world() as w:
        w.control.refuse[TOKEN] = {"status": status, "code": code, "message": "because"}
        if retry_after:
            w.control.refuse[TOKEN]["retry_after"] = retry_after
        refusal = await refused(w, headers=[*BEARER, ("X-Request-ID", "r-9")])
        assert (refusal.status, code_of(refusal)) == (status, code)
        assert refusal.header("Retry-After") == (str(retry_after) if retry_after else None)
        assert refusal.header("X-Request-ID") == "r-9"
        assert b"because" in refusal.body
        assert not len(w.daemon.parts.sessions)
        assert w.logged("connect_refused")[0]["code"] == code


@pytest.mark.parametrize(
    "method,target,without,instead,status,code",
    [
        ("GET", "/tunnel/connect", "Upgrade", None, 426, "UPGRADE_REQUIRED"),
        ("GET", "/tunnel/connect", "Connection", None, 426, "UPGRADE_REQUIRED"),
        ("GET", "/tunnel/connect", "Sec-WebSocket-Version", "8", 426, "UPGRADE_REQUIRED"),
        ("GET", "/tunnel/connect", "Sec-WebSocket-Version", None, 426, "UPGRADE_REQUIRED"),
        ("GET", "/tunnel/connect", "Sec-WebSocket-Key", None, 400, "BAD_REQUEST"),
        ("GET", "/tunnel/connect", "Sec-WebSocket-Key", "c2hvcnQ=", 400, "BAD_REQUEST"),
        ("GET", "/tunnel/connect", "Sec-WebSocket-Key", "!!!!", 400, "BAD_REQUEST"),
        ("GET", "/tunnel/connect", "Host", None, 400, "BAD_REQUEST"),
        ("GET", "/tunnel/connect", "+Host", "another", 400, "BAD_REQUEST"),
        ("POST", "/tunnel/connect", "", None, 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/tunnel/connect HTTP/1.0", "", None, 426, "UPGRADE_REQUIRED"),
        ("GET", "/", "", None, 404, "NOT_FOUND"),
        ("GET", "/tunnel/connect/", "", None, 404, "NOT_FOUND"),
        ("GET", "/internal/sessions", "", None, 404, "NOT_FOUND"),
        ("GET", "/metrics", "", None, 404, "NOT_FOUND"),
    ],
)
async def test_requests_that_are_no_agents_upgrade(
    method: str, target: str, without: str, instead: str | None, status: int, code: str
) -> None:
    async with world() as w:
        fields = [*UPGRADE, *BEARER, ("Host", "daemon"), ("X-Request-ID", "r.2")]
        fields = [(name, value) for name, value in fields if name != without]
        if instead is not None:
            fields.append((without.lstrip("+"), instead))
        stream = await dial(w.public)
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
        version = "" if "HTTP/" in target else " HTTP/1.1"
        await stream.send_all(f"{method} {target}{version}\r\n{lines}\r\n".encode())
        got, answer, body = parse(await read_all(stream))
        assert (got, body["success"], body["error"]["code"]) == (status, False, code)
        assert answer["x-request-id"] == "r.2"
        assert not w.control.authentications


async def test_an_overlong_fact_is_refused() -> None:
    async with world() as w:
        refusal = await refused(w, headers=[*BEARER, ("X-VisionA-Serial", "s" * 256)])
        assert (refusal.status, code_of(refusal)) == (400, "VALIDATION_ERROR")
        details = json.loads(refusal.body)["error"]["details"]
        assert details == {"X-VisionA-Serial": ["up to 255 printable ASCII characters"]}


async def test_while_the_api_is_down_agents_are_asked_to_retry_and_it_comes_back() -> None:
    async with world(call_seconds=0.5) as w:
        await w.control.wait(lambda: w.control.heartbeats)
        w.control.close()
        refusal = await refused(w)
        assert (refusal.status, code_of(refusal)) == (503, "TUNNEL_UNAVAILABLE")
        assert 1 <= int(refusal.header("Retry-After") or 0) <= 10
        failed = len(w.logged("authenticate_failed"))
        assert (await refused(w)).status == 503  # at once: the daemon backs off
        assert len(w.logged("authenticate_failed")) == failed
        w.control.open()
        await w.until(lambda: trio.current_time() > 0)
        with trio.fail_after(10):
            while True:
                try:
                    await w.agent()
                    break
                except HandshakeRefused:
                    await trio.sleep(0.1)
        # what Django may have admitted in the dark is set right by a full list
        assert await w.control.wait(lambda: [one for one in w.control.heartbeats if one["sessions"] is not None])


async def test_a_frozen_api_is_503_in_time() -> None:
    async with world(call_seconds=0.3, admit_seconds=2) as w:
        await w.control.wait(lambda: w.control.heartbeats)
        w.control.frozen = True
        start = trio.current_time()
        refusal = await refused(w)
        assert refusal.status == 503
        assert trio.current_time() - start < 2


@pytest.mark.parametrize(
    "status,code,told",
    [
        (503, "DATABASE_UNAVAILABLE", "DATABASE_UNAVAILABLE"),
        (503, "CACHE_UNAVAILABLE", "CACHE_UNAVAILABLE"),
        (500, "INTERNAL_ERROR", "TUNNEL_UNAVAILABLE"),
        (401, "UNAUTHENTICATED", "TUNNEL_UNAVAILABLE"),
    ],
)
async def test_an_api_that_answers_with_an_error(status: int, code: str, told: str) -> None:
    async with world() as w:
        await w.control.wait(lambda: w.control.heartbeats)
        w.control.status, w.control.code = status, code
        refusal = await refused(w)
        assert (refusal.status, code_of(refusal)) == (503, told)
        assert refusal.header("Retry-After") is not None


async def test_credentials_that_gather_during_a_call_go_with_the_next() -> None:
    async with world() as w:
        w.control.hold = trio.Event()
        tokens = ["vAs_" + digit * 32 for digit in "0123456789"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.agent, tokens[0])
            await w.control.wait(lambda: w.control.authentications)
            for token in tokens[1:]:
                nursery.start_soon(w.agent, token)
            await w.until(lambda: w.daemon.parts.admission.waiting == 9)
            w.control.hold.set()
        assert [len(call["credentials"]) for call in w.control.authentications] == [1, 9]
        assert {one.device_id for one in w.daemon.parts.sessions.all()} == {f"device-{digit}" for digit in "0123456789"}


async def test_an_agent_that_left_while_django_was_asked_leaves_no_ghost() -> None:
    async with world(admit_seconds=0.2) as w:
        w.control.hold = trio.Event()
        assert (await refused(w)).status == 503
        w.control.hold.set()
        event = (await w.control.wait(lambda: w.control.events))[0]
        assert (event["type"], event["reason"], event["epoch"]) == ("disconnected", "lost", 1)
        assert event["session"] == w.control.authentications[0]["credentials"][0]["session"]


async def test_the_newest_connection_wins_and_the_older_one_is_closed_with_4409() -> None:
    async with world() as w:
        first, _ = await w.agent()
        second, answer = await w.agent()
        await w.until(lambda: first.end_reason is not None)
        assert first.end_reason is not None
        assert (first.end_reason.close_code, first.end_reason.remote) == (4409, True)
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        assert w.daemon.parts.sessions.all()[0].id == answer["x-visiona-tunnel-session"]
        assert second.end_reason is None
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["code"], ended[0]["epoch"]) == ("replaced", 4409, 1)
        assert ended[0]["answered"] is True


async def test_a_replaced_agent_that_is_gone_already_is_told_from_one_that_is_there() -> None:
    async with world() as w:
        gone, _ = await w.agent(run=False)  # it reads no close frame, and says none
        await w.agent()
        ended = await w.control.wait(lambda: [e for e in w.control.events if e["type"] == "disconnected"])
        assert (ended[0]["reason"], ended[0]["answered"]) == ("replaced", False)
        await gone.aclose()


async def test_what_is_newest_is_told_by_the_epoch_and_not_by_who_gets_here_last() -> None:
    async with world() as w:
        w.control.extra[TOKEN] = {"epoch": 9}
        kept, _ = await w.agent()
        w.control.extra[TOKEN] = {"epoch": 8}
        late, _ = await w.agent()
        await w.until(lambda: late.end_reason is not None)
        assert late.end_reason is not None
        assert late.end_reason.close_code == 4409
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        assert kept.end_reason is None
        assert [one.epoch for one in w.daemon.parts.sessions.all()] == [9]


async def test_fifty_connections_of_one_device_leave_one() -> None:
    async with world() as w:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(w.agent)
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        assert w.daemon.parts.sessions.all()[0].epoch == 50


async def test_an_older_session_on_another_node_is_closed_there() -> None:
    other = Control()
    other.open()
    async with world() as w:
        w.nursery.start_soon(other.run)
        w.control.extra[TOKEN] = {"replaced": {"node_url": f"http://127.0.0.1:{other.port}", "session": "old-1"}}
        await w.agent()
        call = (await other.wait(lambda: other.calls))[0]
        assert call == ("/internal/session/old-1?code=4409", None)
        assert other.headers[0].startswith(b"DELETE ")
        other.close()
        w.control.extra[TOKEN] = {"replaced": {"node_url": f"http://127.0.0.1:{other.port}", "session": "old-2"}}
        agent, _ = await w.agent()  # that node is down: no reason to refuse anybody here
        await w.until(lambda: w.logged("replaced_not_closed"))
        assert agent.end_reason is None


async def test_an_older_session_that_django_names_on_this_node_is_closed_here() -> None:
    async with world() as w:
        first, answer = await w.agent(OTHER)
        w.control.extra[TOKEN] = {
            "replaced": {"node_url": w.daemon.node_url, "session": answer["x-visiona-tunnel-session"]}
        }
        await w.agent(TOKEN)
        await w.until(lambda: first.end_reason is not None)
        assert first.end_reason is not None
        assert first.end_reason.close_code == 4409


@pytest.mark.parametrize("role,odd", [("client", 1), ("server", 0)])
async def test_the_daemon_takes_the_yamux_role_that_is_set_and_refuses_inbound_streams(role: str, odd: int) -> None:
    async with world(role=role) as w:
        agent, _ = await w.agent()
        await w.serve(agent, echo)
        status, _, raw, _ = await w.forward()
        assert status == 101
        raw.close()
        await w.until(lambda: w.logged("forward"))
        assert w.logged("forward")[0]["stream"] % 2 == odd
        with pytest.raises(StreamRefused):
            await agent.open_stream(timeout=2)
        assert agent.end_reason is None


async def test_a_text_message_ends_that_session_with_1003_and_no_other() -> None:
    async with world() as w:
        other, _ = await w.agent(OTHER)
        stream = await dial(w.public)
        lines = "".join(f"{name}: {value}\r\n" for name, value in [*UPGRADE, *BEARER, ("Host", "d")])
        await stream.send_all(f"GET /tunnel/connect HTTP/1.1\r\n{lines}\r\n".encode())
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 101 ")
        await stream.send_all(b"\x81\x84\0\0\0\0text")
        answer = await read_all(stream)
        assert b"\x03\xeb" in answer[:4]
        await w.until(lambda: len(w.daemon.parts.sessions) == 1)
        assert w.logged("disconnect")[0]["reason"] == "error"
        assert other.end_reason is None
