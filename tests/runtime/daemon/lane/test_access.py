"""Who may use the fast lane: the cached word of the API, refusals, invalidation and asking anew."""

from __future__ import annotations

import ipaddress
from contextlib import AsyncExitStack
from functools import partial

import pytest
import trio

from tests.runtime.daemon.daemonworld import OTHER, World
from tests.runtime.daemon.lane.laneworld import DEVICE, LOGIN, Got, Visitor, Wire, box, fast_world, invalidate, ok
from tunnel.daemon.lane import grants as fast_grants
from tunnel.daemon.lane import reauthorize as fast_watch
from tunnel.daemon.lane.fast_path import FastPath
from tunnel.daemon.lane.interfaces import ClientExchange

UNKNOWN = {"status": 401, "code": "UNAUTHENTICATED", "message": "unknown"}


async def turn(w: World, *, everybody: bool = False) -> None:
    """A period has passed for one of those who have a question in common, or for everybody."""
    await w.until(lambda: all(run.checked > 0 for run in served(w)))  # the answer of the turn before has come
    seen = set()
    for run in served(w):
        if everybody or run.grant.question not in seen:
            seen.add(run.grant.question)
            run.checked = -1e12


def served(w: World) -> list[ClientExchange]:
    return [run for run in w.daemon.parts.lane.running if not isinstance(run, FastPath)]


async def forever(wire: Wire) -> None:
    """An answer that has begun and does not end."""
    while await wire.head() is not None:
        await wire.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await wire.gone()


@pytest.mark.parametrize("status", [403, 404, 409, 503])
async def test_a_refusal_is_told_with_its_own_words_and_not_kept(status: int) -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        w.control.forbid = {"status": status, "code": "SOME_CODE", "message": "own words", "details": {"a": ["b"]}}
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code) == (status, "SOME_CODE")
            assert (got.json["error"]["message"], got.json["error"]["details"]) == ("own words", {"a": ["b"]})
            w.control.forbid = None
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200


async def test_a_bad_credential_is_remembered_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_grants, "_REFUSED_SECONDS", 0.5)
    async with fast_world() as w:
        await box(w, ok(b"x"))
        w.control.forbid = {"status": 401, "code": "UNAUTHENTICATED", "message": "own words"}
        async with Visitor(w) as visitor:
            for path in ("x", "y?z", "x"):
                got = await visitor.ask(f"GET /d/{DEVICE}/{path}")
                assert (got.status, got.code, got.json["error"]["message"]) == (401, "UNAUTHENTICATED", "own words")
            assert len(w.control.authorizations) == 1
            assert (await visitor.ask(f"GET /d/{DEVICE}/x", token="another")).status == 401
            assert len(w.control.authorizations) == 2
            w.control.forbid = None

            async def good() -> bool:
                return (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200

            while not await good():
                await trio.sleep(0.01)


async def test_an_address_with_many_bad_credentials_is_not_asked_about_for_a_while() -> None:
    """Known callers of the same address go on, and a few newcomers a second are asked about still."""
    async with fast_world(trusted_proxies=(ipaddress.ip_network("127.0.0.1"),)) as w:
        await box(w, ok(b"x"))
        w.control.ttl = 0.0  # every request is asked about
        async with Visitor(w) as visitor:

            async def ask(token: str, address: str) -> Got:
                return await visitor.ask(f"GET /d/{DEVICE}/x", f"X-Forwarded-For: {address}", token=token)

            assert (await ask(LOGIN, "192.0.2.1")).status == 200
            w.control.forbid_tokens = {f"bad{n}": UNKNOWN for n in range(400)}
            seen = [await ask(f"bad{n}", "192.0.2.1") for n in range(400)]
            assert {got.status for got in seen} == {401, 429}
            assert seen[-1].all("retry-after") == ["1"]
            assert sum(got.status == 401 for got in seen) < 200
            assert (await ask(LOGIN, "192.0.2.1")).status == 200
            assert (await ask("new", "192.0.2.2")).status == 200


async def test_strangers_take_nothing_that_known_callers_agents_and_heartbeats_need() -> None:
    """Their look-ups stand still at the API: all others are asked about, admitted and told as if there were none."""
    async with fast_world(heartbeat_seconds=0.05, call_seconds=20) as w:
        w.control.ttl = 0.0
        await box(w, ok(b"x"))
        async with Visitor(w) as known:
            assert (await known.ask(f"GET /d/{DEVICE}/x")).status == 200
            w.control.stuck = lambda path, body: path.endswith("/authorize") and body["token"].startswith("bad")

            async def stranger(number: int) -> None:
                async with Visitor(w) as visitor:
                    await visitor.send(f"GET /d/{DEVICE}/x", token=f"bad{number}")
                    await visitor.more()

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(stranger, number)
                await w.control.wait(lambda: [path for path, _ in w.control.calls if path.endswith("!stuck")])
                await w.until(lambda: len(w.daemon.parts.lane._clients) > 60)
                beats = len(w.control.heartbeats)
                with trio.fail_after(10):
                    for _ in range(30):
                        assert (await known.ask(f"GET /d/{DEVICE}/x")).status == 200
                    await w.agent(OTHER)
                    await w.control.wait(lambda: len(w.control.heartbeats) > beats + 2)
                    assert (await w.http("/readyz", secret=None))[0] == 200
                nursery.cancel_scope.cancel()


async def test_one_token_in_many_spellings_has_one_grant() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for bearer in ("Bearer", "bearer", "BEARER", "bEaReR"):
                for blanks in (" ", "  ", "      "):
                    fields = f"Authorization: {bearer}{blanks}{LOGIN}{blanks}"
                    assert (await visitor.ask(f"GET /d/{DEVICE}/x", fields, token="")).status == 200
        assert len(w.control.authorizations) == 1


async def test_what_the_api_is_asked() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            await visitor.ask(f"GET /d/{DEVICE}/a%2Fb?c=1", "X-Request-ID: req-1", "Origin: http://front.example")
            await visitor.ask(f"GET /d/{DEVICE}/i?ticket=t%2B1", token="")
            await visitor.ask(f"GET /d/{DEVICE}/i?ticket=t%2B1", token="")
            await visitor.ask(f"GET /d/{DEVICE.upper()}/n", token="")
        first, ticket, again, nobody = w.control.authorizations
        assert (first["kind"], first["token"], first["device"]) == ("bearer", LOGIN, DEVICE)
        assert (first["method"], first["path"], first["websocket"]) == ("GET", "/a%2Fb", False)
        assert (first["request_id"], first["origin"], first["address"]) == (
            "req-1",
            "http://front.example",
            "127.0.0.1",
        )
        assert (ticket["kind"], ticket["token"]) == ("ticket", "t+1")
        assert again["kind"] == "ticket"  # never from the cache: it is spent
        assert (nobody["kind"], nobody["token"], nobody["device"]) == ("none", "", DEVICE)
        assert LOGIN not in str(w.lines)


async def test_callers_with_the_same_credential_share_one_look_up() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))

        async def ask() -> None:
            async with Visitor(w) as visitor:
                assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ask)
        assert len(w.control.authorizations) == 1


async def test_the_api_is_down() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        w.control.status, w.control.code = 503, "DATABASE_UNAVAILABLE"
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code, got.all("retry-after")) == (503, "DATABASE_UNAVAILABLE", ["2"])


@pytest.mark.parametrize("what", [{"logins": ["login-of-" + LOGIN]}, {"users": ["user"]}, {"devices": [DEVICE]}])
async def test_an_invalidation_drops_what_is_kept_and_ends_what_runs(what: dict[str, list[str]]) -> None:
    async with fast_world() as w:
        await box(w, forever)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x")
            await visitor.until(b"x\r\n")
            assert await invalidate(w, {"users": [], "logins": ["another"], "devices": []}) == (
                200,
                {"success": True, "data": {"dropped": 0, "ended": 0}},
            )
            w.control.forbid = {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}
            status, answer = await invalidate(w, what)
            assert (status, answer) == (200, {"success": True, "data": {"dropped": 1, "ended": 1}})
            assert await visitor.end() == "reset"
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).code == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("raw", "status"), [(b"{", 400), (b"[]", 400), (b'{"users": "a"}', 400), (b'{"users": [1]}', 400)]
)
async def test_an_invalidation_that_is_none(raw: bytes, status: int) -> None:
    async with fast_world() as w:
        assert (await invalidate(w, None, raw=raw))[0] == status
        assert (await invalidate(w, {}, secret="wrong"))[0] == 401


@pytest.mark.parametrize("definite", [True, False])
async def test_a_long_stream_is_asked_about_anew(monkeypatch: pytest.MonkeyPatch, *, definite: bool) -> None:
    monkeypatch.setattr(fast_watch, "REAUTHORIZE_SECONDS", 0.3)
    async with fast_world() as w:
        await box(w, forever)
        async with Visitor(w) as visitor:
            await visitor.send(f"GET /d/{DEVICE}/x?ticket=t", token="")
            await visitor.until(b"x\r\n")
            if definite:
                w.control.forbid = {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}
                assert await visitor.end() == "reset"
                again = w.control.authorizations[-1]
                assert (again["kind"], again["token"]) == ("login", "login-of-t")
            else:
                w.control.forbid = {"status": 503, "code": "TUNNEL_DISCONNECTED", "message": "no"}
                await w.control.wait(lambda: len(w.control.authorizations) >= 3)
                w.control.status = 503
                await w.control.wait(lambda: [path for path, _ in w.control.calls].count("/internal/authorize!refused"))
                assert len(w.daemon.parts.lane or "") == 1


async def test_a_stream_that_begins_with_a_kept_answer_is_as_old_as_that() -> None:
    """Else what a logout nobody told of left behind would be asked about up to an answer's life too late."""
    async with fast_world() as w, AsyncExitStack() as stack:
        await box(w, forever)
        await many(w, stack, 1)
        await trio.sleep(0.05)
        await many(w, stack, 1)
        assert len(w.control.authorizations) == 1
        assert len({run.checked for run in w.daemon.parts.lane.running if not isinstance(run, FastPath)}) == 1
        assert len(w.daemon.parts.lane.running) == 2


async def many(w: World, stack: AsyncExitStack, count: int, *fields: str, token: str = LOGIN) -> list[Visitor]:
    """So many endless answers, all begun."""
    visitors = [await stack.enter_async_context(Visitor(w)) for _ in range(count)]
    for visitor in visitors:
        await visitor.send(f"GET /d/{DEVICE}/x", *fields, token=token)
        await visitor.until(b"x\r\n")
    return visitors


def anew(w: World) -> list[str]:
    """Whose logins were asked about while they were served."""
    return [asked["token"] for asked in w.control.authorizations if asked["kind"] == "login"]


def asked_so_often(w: World, count: int) -> bool:
    return len(anew(w)) >= count


async def test_all_streams_of_a_login_to_a_device_are_asked_about_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A question a period, however many there are and whenever they began; a refusal ends them all, and only them."""
    monkeypatch.setattr(fast_watch, "REAUTHORIZE_SECONDS", 1e9)
    async with fast_world() as w, AsyncExitStack() as stack:
        await box(w, forever)
        mine = await many(w, stack, 6)
        mine += await many(w, stack, 6, "Origin: http://front.example")  # of no upgrade: it changes nothing
        other = "vAu_" + "b" * 32
        others = await many(w, stack, 3, token=other)
        for number in (1, 2):
            await turn(w, everybody=number == 1)
            await w.control.wait(partial(asked_so_often, w, 2 * number))
            assert sorted(anew(w)) == sorted(["login-of-" + LOGIN, "login-of-" + other] * number)
        w.control.forbid_tokens = {"login-of-" + LOGIN: {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}}
        await turn(w)
        assert [await visitor.end() for visitor in mine] == ["reset"] * 12
        assert len(anew(w)) == 6
        assert len(w.daemon.parts.lane or "") == 3
        w.control.status = 503  # no word is no refusal
        await turn(w)
        await w.control.wait(lambda: [path for path, _ in w.control.calls].count("/internal/authorize!refused"))
        assert len(w.daemon.parts.lane or "") == len(others)


async def test_what_one_page_may_is_asked_for_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Upgrades: the Origin counts, so each page has a question of its own."""
    monkeypatch.setattr(fast_watch, "REAUTHORIZE_SECONDS", 1e9)

    async def accept(wire: Wire) -> None:
        await wire.head()
        await wire.send(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nx\r\n")
        await wire.gone()

    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    async with fast_world() as w, AsyncExitStack() as stack:
        await box(w, accept)
        for page in ("http://front.example", "http://other.example"):
            await many(w, stack, 3, *upgrade, f"Origin: {page}")
        await turn(w)
        await w.control.wait(lambda: len(anew(w)) >= 2)
        asked = [one["origin"] for one in w.control.authorizations if one["kind"] == "login"]
        assert sorted(asked) == ["http://front.example", "http://other.example"]


async def test_the_api_is_told_whose_request_a_trusted_proxy_passes_on() -> None:
    nets = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("10.0.0.0/8"))
    async with fast_world(trusted_proxies=nets) as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for number, told in enumerate(("203.0.113.9, 192.0.2.7, 10.0.0.1", "nonsense", "")):
                fields = [f"X-Forwarded-For: {told}"] if told else []
                await visitor.ask(f"GET /d/{DEVICE}/x", *fields, token=f"vAu_{number}")
        assert [asked["address"] for asked in w.control.authorizations] == ["192.0.2.7", "127.0.0.1", "127.0.0.1"]


async def test_nobody_else_is_believed_about_its_address() -> None:
    async with fast_world(trusted_proxies=(ipaddress.ip_network("10.0.0.0/8"),)) as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            await visitor.ask(f"GET /d/{DEVICE}/x", "X-Forwarded-For: 192.0.2.7")
        assert [asked["address"] for asked in w.control.authorizations] == ["127.0.0.1"]


async def test_what_one_may_without_an_upgrade_or_from_one_page_says_nothing_of_another() -> None:
    """A page of a foreign origin must not profit from what a page of ours was allowed, nor a plain GET."""
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: x")
    async with fast_world() as w:
        await box(w, ok(b"x"))
        for fields in (
            (),
            upgrade,
            (*upgrade, "Origin: http://front.example"),
            (*upgrade, "Origin: http://evil.example"),
        ):
            for _ in range(2):
                async with Visitor(w) as visitor:
                    await visitor.ask(f"GET /d/{DEVICE}/ws", *fields)
        asked = [(one["websocket"], one["origin"]) for one in w.control.authorizations]
        assert asked == [(False, ""), (True, ""), (True, "http://front.example"), (True, "http://evil.example")]
        async with Visitor(w) as visitor:
            await visitor.stream.send_all(
                f"GET /d/{DEVICE}/ws HTTP/1.1\r\nHost: other\r\nAuthorization: Bearer {LOGIN}\r\n".encode()
                + "\r\n".join([*upgrade, "", ""]).encode()
            )
            await visitor.read()
        assert w.control.authorizations[-1]["host"] == "other"
        assert len(w.control.authorizations) == 5


async def test_a_limit_is_told_with_its_figures() -> None:
    """429 in the API's words, with RateLimit-* and nothing else of what it might say."""
    async with fast_world() as w:
        await box(w, ok(b"x"))
        figures = {"RateLimit-Limit": "5", "RateLimit-Remaining": "0", "RateLimit-Reset": "7", "Set-Cookie": "a=b"}
        w.control.forbid = {
            "status": 429, "code": "RATE_LIMITED", "message": "slower", "retry_after": 7, "headers": figures,
        }  # fmt: skip
        async with Visitor(w) as visitor:
            got = await visitor.ask(f"GET /d/{DEVICE}/x")
            assert (got.status, got.code, got.all("retry-after")) == (429, "RATE_LIMITED", ["7"])
            assert [got.all(f"ratelimit-{name}") for name in ("limit", "remaining", "reset")] == [["5"], ["0"], ["7"]]
            assert got.all("set-cookie") == []
            w.control.forbid = None
            assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200


async def test_an_answer_that_may_not_be_kept_is_asked_for_each_time() -> None:
    """How the API counts each call: its word is good for no time at all."""
    async with fast_world() as w:
        await box(w, ok(b"x"))
        w.control.ttl = 0.0
        async with Visitor(w) as visitor:
            for _ in range(3):
                assert (await visitor.ask(f"GET /d/{DEVICE}/x")).status == 200
        assert len(w.control.authorizations) == 3


async def test_a_malformed_request_by_ticket_spends_none_and_a_bad_ticket_is_told_first() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(f"GET /d/{DEVICE}/a/../b?ticket=t", token="")).code == "BAD_REQUEST"
            w.control.forbid = {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}
            assert (await visitor.ask(f"GET /d/{DEVICE}/a/../b?ticket=u", token="")).code == "UNAUTHENTICATED"
        assert [asked["spend"] for asked in w.control.authorizations] == [False, False]
