"""Ordinary requests that were met before: served in few steps, as they are served the long way."""

from __future__ import annotations

import re

import pytest
import trio

from tests.runtime.daemon.lane.fastpathworld import ANSWER, GET, met, met_world, quick, scripted, silent
from tests.runtime.daemon.lane.laneworld import DEVICE, LOGIN, Got, Visitor, Wire, box, fast_world, invalidate, ok
from tunnel.daemon.lane import client as fast_client

OTHER = "vAu_" + "b" * 32


def bare(got: Got) -> tuple[bytes, bytes]:
    """An answer less its id."""
    return re.sub(rb"req_[0-9a-f]{20}", b"", got.head), got.body


async def test_the_short_way_looks_the_same_to_the_client_the_box_and_the_log() -> None:
    heads: list[bytes] = []

    async def handler(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            heads.append(re.sub(rb"(req_)[0-9a-f]{20}|[0-9a-f]{32}-[0-9a-f]{16}", b"", head))
            await wire.send(ANSWER)

    async with fast_world() as w:
        await box(w, handler)
        async with Visitor(w) as visitor:
            answers = [await visitor.ask(GET, "X-B: 1", "Origin: http://front.example") for _ in range(6)]
            ids = {got.all("x-request-id")[0] for got in answers}
        assert quick(w) == 3
        assert len({bare(got) for got in answers}) == len(set(heads)) == 1
        assert len(ids) == 6
        assert answers[5].all("access-control-allow-origin") == ["http://front.example"]
        lines = w.logged("forward")
        assert {line["request_id"] for line in lines} == ids
        assert len({tuple(line) for line in lines}) == 1  # the same names in the same order
        known = (
            "outcome",
            "problem",
            "method",
            "path",
            "status",
            "device",
            "user",
            "session",
            "bytes_up",
            "bytes_down",
        )
        assert len({tuple(line[name] for name in known) for line in lines}) == 1
        assert lines[5]["reused"]
        metrics = w.daemon.parts.metrics.render().decode()
        assert 'visiona_fast_exchanges_total{outcome="ok"} 6.0' in metrics
        assert 'visiona_fast_bytes_total{direction="down"} 12.0' in metrics
        assert "visiona_fast_exchanges 0.0" in metrics


@pytest.mark.parametrize(
    ("line", "body"),
    [
        (f"HEAD /d/{DEVICE}/x", b""),
        (f"DELETE /d/{DEVICE}/x", b""),
        (f"POST /d/{DEVICE}/x", b'{"a": 1}'),
        (f"PUT /d/{DEVICE}/x", b"x" * 8192),
    ],
)
async def test_other_methods_and_small_bodies(line: str, body: bytes) -> None:
    async def handler(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            got = await wire.body(len(body))
            assert got == body
            head_only = head.startswith(b"HEAD")
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + (b"" if head_only else b"hello"))

    async with fast_world() as w:
        await box(w, handler)
        async with Visitor(w) as visitor:
            fields = [f"Content-Length: {len(body)}"] if body else []
            for _ in range(5):
                got = await visitor.ask(line, *fields, body=body)
                assert (got.status, got.body) == (200, b"" if line.startswith("HEAD") else b"hello")
        assert quick(w) == 2
        assert {line["bytes_up"] for line in w.logged("forward")} == {len(body)}


@pytest.mark.parametrize(
    ("target", "seen"),
    [
        (f"/api/devices/{DEVICE}/proxy/x?a=1", "/x?a=1"),
        ("/api/cameras/0/snapshot", "/api/cameras/0/snapshot"),
        (f"/api/inference/run?device_id={DEVICE}&a=1", "/api/inference/run?a=1"),
    ],
)
async def test_the_front_ends_own_urls_take_the_short_way_too(target: str, seen: str) -> None:
    lines: list[bytes] = []

    async def handler(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            lines.append(head.partition(b"\r\n")[0])
            await wire.send(ANSWER)

    async with fast_world() as w:
        w.control.grant = {"device_id": DEVICE}  # the only one online
        await box(w, handler)
        async with Visitor(w) as visitor:
            for _ in range(5):
                assert (await visitor.ask(f"GET {target}")).body == b"hi"
        assert quick(w) == 2
    assert lines == [f"GET {seen} HTTP/1.1".encode()] * 5


async def test_an_answer_that_leads_elsewhere_is_placed_where_paths_pass_as_they_are() -> None:
    """An ordinary request's too: what its answer's head comes to depends on the device then."""
    leads = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /login\r\n\r\n"
    async with fast_world() as w:
        w.control.grant = {"device_id": DEVICE}
        await box(w, scripted(ANSWER, ANSWER, ANSWER, ANSWER, leads))
        async with Visitor(w) as visitor:
            await met(visitor, "GET /api/cameras/0")
            assert (await visitor.ask("GET /api/cameras/0")).body == b"hi"
            got = await visitor.ask("GET /api/cameras/0")
            assert got.all("location") == [f"/api/devices/{DEVICE}/proxy/login"]
        assert quick(w) == 1


async def test_where_a_client_leads_is_not_kept_for_another_device() -> None:
    """Path for path `Destination` is read by the device, which a head need not name."""
    async with fast_world() as w:
        w.control.grant = {"device_id": DEVICE}
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for _ in range(5):
                await visitor.ask("MOVE /api/cameras/a", "Destination: /api/cameras/b")
        assert quick(w) == 0


async def test_a_body_that_comes_later_goes_the_long_way() -> None:
    async with fast_world() as w:

        async def handler(wire: Wire) -> None:
            while await wire.head() is not None:
                await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n" + await wire.body(3))

        await box(w, handler)
        async with Visitor(w) as visitor:
            for _ in range(3):
                await visitor.ask(f"POST /d/{DEVICE}/x", "Content-Length: 3", body=b"abc")
            await visitor.send(f"POST /d/{DEVICE}/x", "Content-Length: 3", body=b"d")
            await w.until(lambda: len(w.daemon.parts.lane or ()) == 1)
            await visitor.stream.send_all(b"ef")
            assert (await visitor.read()).body == b"def"
        assert quick(w) == 0


async def test_the_caller_is_asked_about_as_ever() -> None:
    async with met_world(ok(b"mine")) as (w, visitor):
        assert (await visitor.ask(GET)).status == 200
        assert (await visitor.ask(GET, token=OTHER)).status == 200  # another head, another question
        assert [asked["token"] for asked in w.control.authorizations] == [LOGIN, OTHER]
        w.control.forbid = {"status": 401, "code": "UNAUTHENTICATED", "message": "no"}
        await invalidate(w, {"users": [], "logins": [f"login-of-{LOGIN}"], "devices": []})
        assert (await visitor.ask(GET)).status == 401
        w.control.forbid = None
        await invalidate(w, {"users": [], "logins": [], "devices": []})  # which forgets what was refused, too
        assert (await visitor.ask(GET)).status == 200
        assert (quick(w), len(w.control.authorizations)) == (1, 4)


async def test_a_device_that_was_admitted_anew_is_asked_about_again() -> None:
    async with met_world(ok(b"x")) as (w, visitor):
        await visitor.ask(GET)
        asked = len(w.control.authorizations)
        await box(w, ok(b"newer"))
        assert (await visitor.ask(GET)).body == b"newer"
        assert len(w.control.authorizations) == asked + 1


@pytest.mark.parametrize(
    "said",
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", b"llo"),
        (b"HTTP/1.1 200 OK\r\nConte", b"nt-Length: 5\r\n\r\nhello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"0\r\n\r\n"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nLocation: /a\r\n\r\nhello", b""),
    ],
)
async def test_an_answer_that_is_not_ordinary_is_carried_on(said: tuple[bytes, bytes]) -> None:
    first, second = said

    async def handler(wire: Wire) -> None:
        while await wire.head() is not None:
            await wire.send(first)
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            await wire.send(second)

    async with met_world(handler) as (w, visitor):
        got = await visitor.ask(GET)
        assert got.body == b"hello"
        assert got.all("location") == ([f"/d/{DEVICE}/a"] if b"Location" in first else [])
        assert (await visitor.ask(GET)).body == b"hello"
        assert {line["outcome"] for line in w.logged("forward")} == {"ok"}


async def test_a_reused_stream_that_ends_unanswered_is_made_good() -> None:
    async with met_world(scripted(ANSWER, ANSWER, ANSWER, None, ANSWER)) as (w, visitor):
        assert (await visitor.ask(GET)).body == b"hi"
        assert w.logged("forward")[3]["attempts"] == 2


async def test_a_box_that_dies_within_the_body_is_no_whole_answer() -> None:
    async def handler(wire: Wire) -> None:
        for _ in range(3):
            await wire.head()
            await wire.send(ANSWER)
        await wire.head()
        await wire.send(ANSWER[:-1])
        await seen.wait()
        wire.stream.reset()

    seen = trio.Event()
    async with met_world(handler) as (w, visitor):
        await visitor.send(GET)
        assert (await visitor.read_head()).status == 200
        seen.set()
        assert await visitor.end() == "reset"
        assert w.logged("forward")[-1]["outcome"] == "cut"


async def test_an_answer_with_more_behind_it_keeps_no_stream() -> None:
    async with met_world(scripted(ANSWER, ANSWER, ANSWER, ANSWER + b"HTTP/1.1 200 OK", ANSWER)) as (w, visitor):
        assert (await visitor.ask(GET)).body == b"hi"
        assert (await visitor.ask(GET)).body == b"hi"
        assert [line["reused"] for line in w.logged("forward")] == [False, True, True, True, False]


@pytest.mark.parametrize("half", [False, True])
async def test_a_client_that_leaves_resets_its_stream(*, half: bool) -> None:
    gone: list[str] = []
    async with met_world(lambda wire: silent(wire, 3, gone)) as (w, visitor):
        await visitor.send(GET)
        await w.until(lambda: gone == ["waits"])
        if half:  # it may wait for its answer still
            visitor.stream.send_eof()
            await trio.sleep(0.7)
            assert gone == ["waits"]
        visitor.stream.reset()
        await w.until(lambda: gone == ["reset"])
        assert w.logged("forward")[-1]["outcome"] == "client_left"


async def test_what_takes_its_time_can_still_be_ended_and_told() -> None:
    gone: list[str] = []
    async with met_world(lambda wire: silent(wire, 3, gone)) as (w, visitor):
        await visitor.send(GET)
        await w.until(lambda: gone == ["waits"])
        await invalidate(w, {"users": ["user"], "logins": [], "devices": []})
        got = await visitor.read()
        assert (got.status, got.code) == (401, "UNAUTHENTICATED")
        await w.until(lambda: gone == ["reset"])


async def test_an_answer_that_does_not_come_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.lane.fast_path._OLD_SECONDS", 0.0)
    gone: list[str] = []
    async with met_world(lambda wire: silent(wire, 3, gone), answer_seconds=0.2) as (_, visitor):
        assert (await visitor.ask(GET)).code == "TUNNEL_TIMEOUT"


async def test_requests_behind_one_that_is_under_way_are_answered_in_order() -> None:
    came, go = trio.Event(), trio.Event()

    async def handler(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            path = head.split(b" ")[1]
            if len(wire.heads) == 4:
                came.set()
                await go.wait()
            await wire.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    async with met_world(handler) as (w, visitor):
        one = f"{GET} HTTP/1.1\r\nHost: daemon\r\nAuthorization: Bearer {LOGIN}\r\n\r\n".encode()
        two = one.replace(b"/x?", b"/y?")
        await visitor.stream.send_all(one)
        await came.wait()
        await visitor.stream.send_all(two + one)
        await w.until(lambda: not next(iter(w.daemon.parts.lane._clients)).reading)
        go.set()
        bodies = [(await visitor.read()).body for _ in range(3)]
        await visitor.stream.send_all(one + two)
        bodies += [(await visitor.read()).body for _ in range(2)]
        assert bodies == [b"/x?a=%2Fb", b"/y?a=%2Fb", b"/x?a=%2Fb", b"/x?a=%2Fb", b"/y?a=%2Fb"]
        assert (await visitor.ask(GET)).body == b"/x?a=%2Fb"
        assert quick(w) >= 1


async def test_an_empty_line_before_a_request_is_nobodys_head() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for path in ("a", "b", "b", "c", "c"):
                await visitor.stream.send_all(b"\r\n")
                head = f"GET /d/{DEVICE}/{path} HTTP/1.1\r\nHost: d\r\nAuthorization: Bearer {LOGIN}\r\n\r\n"
                await visitor.stream.send_all(b"\r\n" + head.encode())
                assert (await visitor.read()).status == 200
        assert [line["path"][-1] for line in w.logged("forward")] == ["a", "b", "b", "c", "c"]


@pytest.mark.parametrize(
    "fields",
    [
        ("x-request-id: mine",),
        ("traceparent: 00-" + "1" * 32 + "-" + "2" * 16 + "-01",),
        ("Connection: close",),
        ("Transfer-Encoding: chunked",),
        ("Connection: Upgrade", "Upgrade: websocket"),
    ],
)
async def test_what_says_more_than_its_bytes_is_never_kept(fields: tuple[str, ...]) -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        for _ in range(3):
            async with Visitor(w) as visitor:
                await visitor.ask(f"GET /d/{DEVICE}/other")
                await visitor.send(GET, *fields, body=b"0\r\n\r\n" if "chunked" in fields[0] else b"")
                got = await visitor.read()
                assert got.status == 200
                if fields[0].startswith("x-request-id"):
                    assert got.all("x-request-id") == ["mine"]
        assert {len(memo) for memo in w.daemon.parts.lane._memos} <= {0, 1}  # `other` alone
        assert quick(w) == 0


async def test_requests_that_a_front_numbers_keep_their_numbers() -> None:
    heads: list[bytes] = []

    async def handler(wire: Wire) -> None:
        while (head := await wire.head()) is not None:
            heads.append(head)
            await wire.send(ANSWER)

    async with fast_world() as w:
        await box(w, handler)
        async with Visitor(w) as visitor:
            for number in range(6):
                got = await visitor.ask(GET, f"X-Request-ID: front-{number}", "X-B: 1")
                assert got.all("x-request-id") == [f"front-{number}"]
            assert quick(w) == 3
            got = await visitor.ask(GET, "X-Request-ID: no,such", "X-B: 1")
            assert got.all("x-request-id")[0].startswith("req_")
            got = await visitor.ask(GET, "X-Request-ID: ", "X-B: 1")
            assert got.all("x-request-id")[0].startswith("req_")
        assert quick(w) == 3
        for number, head in enumerate(heads[:6]):
            assert head.count(b"X-Request-ID: ") == head.count(b"X-Request-ID: front-%d" % number) == 1
        assert [line["request_id"] for line in w.logged("forward")][:6] == [f"front-{number}" for number in range(6)]


async def test_tickets_are_never_kept() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for _ in range(4):
                assert (await visitor.ask(f"GET /d/{DEVICE}/x?ticket=t", token="")).status == 200
        assert (quick(w), len(w.control.authorizations)) == (0, 4)


async def test_a_reusable_ticket_is_asked_about_once_for_the_same_request_of_the_same_page() -> None:
    async with fast_world() as w:
        w.control.grant = {"reusable": True}
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for _ in range(4):
                assert (await visitor.ask(f"GET /d/{DEVICE}/x?ticket=t&seek=1", token="")).status == 200
            assert len(w.control.authorizations) == 1
            for line, *fields in (
                (f"GET /d/{DEVICE}/y?ticket=t",),
                (f"GET /d/{DEVICE}/x?ticket=u",),
                (f"OPTIONS /d/{DEVICE}/x?ticket=t",),
                (f"GET /d/{DEVICE}/x?ticket=t", "Origin: http://front.example"),
            ):
                before = len(w.control.authorizations)
                for _ in range(2):
                    assert (await visitor.ask(line, *fields, token="")).status == 200
                assert len(w.control.authorizations) == before + 1, (line, fields)
            before = len(w.control.authorizations)
            fast = w.daemon.parts.lane
            fast.invalidate(users=(), logins=(), devices=(DEVICE,))
            assert (await visitor.ask(f"GET /d/{DEVICE}/x?ticket=t", token="")).status == 200
            assert len(w.control.authorizations) == before + 1


async def test_who_shows_no_credential_is_judged_by_the_page() -> None:
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            for origin in ("http://front.example", "http://evil.example", ""):
                for _ in range(4):
                    fields = [f"Origin: {origin}"] if origin else []
                    assert (await visitor.ask(GET, *fields, token="")).status == 200
        assert [one["origin"] for one in w.control.authorizations] == [
            "http://front.example",
            "http://evil.example",
            "",
        ]


async def test_a_kept_connection_without_a_request_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_client, "IDLE_SECONDS", 0.1)
    async with fast_world() as w:
        await box(w, ok(b"x"))
        async with Visitor(w) as visitor:
            assert (await visitor.ask(GET)).status == 200
            assert await visitor.end() == "end"
        async with Visitor(w) as visitor:
            await met(visitor)
            assert (await visitor.ask(GET)).status == 200
            assert await visitor.end() == "end"


async def test_a_drain_ends_connections_that_rest() -> None:
    async with met_world(ok(b"x")) as (w, visitor):
        assert (await visitor.ask(GET)).status == 200
        assert quick(w) == 1
        w.daemon.parts.lane.drain()
        assert await visitor.end() == "end"


async def test_without_the_poller_all_goes_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.lane.lane.AVAILABLE", False)
    async with met_world(ok(b"x")) as (w, visitor):
        for _ in range(3):
            assert (await visitor.ask(GET)).body == b"x"
        assert quick(w) == 0


async def test_a_bug_ends_its_exchange_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    async with met_world(ok(b"x")) as (w, visitor):

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr("tunnel.http.OrdinaryAnswers.read", broken)
            assert (await visitor.ask(GET)).status == 500
        assert w.logged("exchange_crashed")
        async with Visitor(w) as other:
            assert (await other.ask(GET)).status == 200


async def test_a_bug_before_anything_is_sent_leaves_the_request_to_the_long_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with met_world(ok(b"x")) as (w, visitor):

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError("a bug")

        with monkeypatch.context() as patch:
            patch.setattr("tunnel.daemon.upstream.directory.UpstreamDirectory.here", broken)
            assert (await visitor.ask(GET)).body == b"x"
        assert w.logged("request_crashed")
        with monkeypatch.context() as patch:
            patch.setattr("tunnel.daemon.lane.client.Client.served_by", broken)
            await visitor.send(GET)
            assert await visitor.end() == "reset"
        async with Visitor(w) as other:
            assert (await other.ask(GET)).status == 200
        assert len(w.daemon.parts.lane or ()) == 0
