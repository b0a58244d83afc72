"""The daemon's client to the API: what a cancelled call leaves, whose turn it is, and every shape of an answer."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.tls import make_authority
from tunnel.contract import AuthorizeRequest, Credential, Crowded, Heartbeat
from tunnel.daemon.control import calls, http_client
from tunnel.daemon.control.client import ControlPlane, ControlUnavailable
from tunnel.daemon.control.http_client import MAX_BODY, MAX_HEAD, Origin
from tunnel.net.places import Places

ASKED = AuthorizeRequest(
    node="n", kind="bearer", token="t", device="", method="GET", path="/", websocket=False, origin="", host="",
    address="", request_id="",
)  # fmt: skip
CREDENTIAL = Credential(token="t", session="s", address="a")  # type: ignore[typeddict-item]  # the rest may be absent
BEAT = Heartbeat(
    node="n", url="u", version="v", started_at="", sessions_count=0, streams_count=0, draining=False, sessions=None
)
REFUSED = b'{"success":true,"data":{"allowed":false,"code":"UNAUTHENTICATED","message":"x","status":401}}'
FAULT = b'{"error":{"code":"A_CODE"}}'
QUIET = b'{"success":true,"data":{"close":[],"send_sessions":false}}'


def answer(body: bytes = REFUSED, *fields: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + b"".join(fields) + b"Content-Length: %d\r\n\r\n" % len(body) + body


class Server:
    """What is done with each request on each connection: bytes to answer, None to end the connection."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.answer: Callable[[bytes], Awaitable[bytes | None]]
        self.port = 0

    def url(self, host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}"

    async def serve(self, stream: trio.abc.Stream) -> None:
        self.connections += 1
        data = b""
        try:
            while True:
                while b"\r\n\r\n" not in data:
                    more = await stream.receive_some()
                    if not more:
                        return
                    data += more
                head, _, data = data.partition(b"\r\n\r\n")
                size = int(next(line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")).split()[1])
                while len(data) < size:
                    data += await stream.receive_some()
                data = data[size:]
                self.heads.append(head)
                told = await self.answer(head)
                if told is None:
                    return
                await stream.send_all(told)
                if b"Connection: close" in told:
                    return
        except trio.BrokenResourceError:
            pass


@asynccontextmanager
async def server(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    made = Server()
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host=host)
        made.port = listeners[0].socket.getsockname()[1]
        serving = (
            listeners
            if context is None
            else [trio.SSLListener(one, context, https_compatible=True) for one in listeners]
        )
        await nursery.start(trio.serve_listeners, made.serve, serving)
        yield made
        nursery.cancel_scope.cancel()


def plane(url: str, seconds: float = 10) -> ControlPlane:
    return ControlPlane(url, "secret", call_seconds=seconds)


# --- calls that are given up ------------------------------------------------------------------------------------------
async def test_calls_that_are_given_up_leave_no_place_taken() -> None:
    """A crowd while the API is slow, cancelled and timed out in every state; it is fast again: all are served."""
    fast = trio.Event()

    async def told(head: bytes) -> bytes:
        with trio.move_on_after(0.03):
            await fast.wait()
        return answer()

    async with server() as api, plane(api.url(), 0.1) as control:
        api.answer = told
        failed = 0

        async def one(patience: float) -> None:
            nonlocal failed
            with trio.move_on_after(patience):
                try:
                    await control.authorize(ASKED)
                except ControlUnavailable:
                    failed += 1

        for _ in range(3):
            async with trio.open_nursery() as burst:
                for _ in range(150):
                    burst.start_soon(one, random.choice([0.0, 0.01, 0.02, 0.05, 10.0]))
        assert failed > 0, "nothing was given up: this shows nothing"
        fast.set()
        for _ in range(50):
            assert (await control.authorize(ASKED))["allowed"] is False


async def test_an_api_that_stands_still_under_500_callers_serves_all_when_it_is_back() -> None:
    """Each kind of call by itself: what waits is given up in time, and the first call afterwards is answered."""
    back = trio.Event()

    async def told(head: bytes) -> bytes:
        await back.wait()
        return answer(QUIET if b"heartbeat" in head else REFUSED)

    async with server() as api, plane(api.url(), 0.5) as control:
        api.answer = told
        ends: list[str] = []

        async def ask(known: bool, party: str) -> None:
            try:
                await control.authorize(ASKED, known=known, party=party)
            except ControlUnavailable as error:
                ends.append(str(error))

        async with trio.open_nursery() as callers:
            for number in range(500):
                callers.start_soon(ask, bool(number % 2), str(number % 7))
            with pytest.raises(ControlUnavailable, match="no answer within"):
                await control.heartbeat(BEAT)
        assert ends == ["no answer within 0.5 s"] * 500
        back.set()
        assert await control.heartbeat(BEAT) == {"close": [], "send_sessions": False}
        async with trio.open_nursery() as callers:
            for number in range(100):
                callers.start_soon(ask, bool(number % 2), "")
        assert len(ends) == 500


async def test_each_kind_of_call_has_connections_of_its_own() -> None:
    """Look-ups stand still, those of strangers and those of known callers: heartbeats and admissions are answered."""

    async def told(head: bytes) -> bytes:
        if b"/internal/authorize" in head:
            await trio.sleep_forever()
        if b"/authenticate" in head:
            return answer(b'{"success":true,"data":{"results":[{"ok":false,"code":"C","message":"m","status":401}]}}')
        return answer(QUIET)

    async with server() as api, plane(api.url(), 30) as control, trio.open_nursery() as nursery:
        api.answer = told
        for number in range(100):
            nursery.start_soon(lambda known: control.authorize(ASKED, known=known), bool(number % 2))
        while len(api.heads) < 22:
            await trio.sleep(0.001)
        with trio.fail_after(10):
            await control.heartbeat(BEAT)
            await control.events("n", [])
            assert (await control.authenticate("n", [CREDENTIAL]))[0]["ok"] is False
        nursery.cancel_scope.cancel()


async def test_more_than_the_queue_holds_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tunnel.daemon.control.client._QUEUE", 3)

    async def never(head: bytes) -> bytes:
        await trio.sleep_forever()
        raise AssertionError

    async with server() as api, plane(api.url(), 30) as control, trio.open_nursery() as nursery:
        api.answer = never
        for _ in range(9):
            nursery.start_soon(control.authorize, ASKED)
        while len(api.heads) < 6:
            await trio.sleep(0.001)
        with pytest.raises(ControlUnavailable) as caught:
            await control.authorize(ASKED)
        assert (caught.value.code, caught.value.retry_after) == ("OVERLOADED", 1)
        nursery.cancel_scope.cancel()


# --- places -----------------------------------------------------------------------------------------------------------
async def test_parties_take_turns_and_a_crowd_pushes_out_itself() -> None:
    places = Places(1, 4)
    order: list[str] = []

    async def wait(party: str, number: int) -> None:
        try:
            async with places.place(party):
                order.append(f"{party}{number}")
        except Crowded:
            order.append(f"{party}{number} crowded")

    async with trio.open_nursery() as nursery, places.place("holder"):
        for party, number in (("a", 1), ("a", 2), ("a", 3), ("a", 4), ("a", 5), ("b", 1), ("c", 1)):
            nursery.start_soon(wait, party, number)
            await trio.testing.wait_all_tasks_blocked()
        assert order == ["a5 crowded", "a4 crowded", "a3 crowded"]
        assert (places.taken, places.waiting) == (1, 4)
    assert order[3:] == ["a1", "b1", "c1", "a2"]
    assert (places.taken, places.waiting) == (0, 0)


async def test_however_calls_end_every_place_comes_back(autojump_clock: trio.testing.MockClock) -> None:
    """Cancelled before, in and after the queue, in the same moment as a place comes free, with faults inside."""
    choose = random.Random(10)
    for _ in range(50):
        places = Places(choose.randint(1, 4), choose.randint(0, 8))

        async def one(places: Places, party: str, patience: float, held: float) -> None:
            with trio.move_on_after(patience):
                try:
                    async with places.place(party):
                        await trio.sleep(held)
                        raise LookupError
                except (Crowded, LookupError):
                    pass

        async with trio.open_nursery() as nursery:
            for _ in range(60):
                await trio.sleep(choose.randint(0, 2))
                nursery.start_soon(one, places, choose.choice("abc"), choose.randint(0, 9), choose.randint(0, 4))
        assert (places.taken, places.waiting, repr(places)) == (0, 0, repr(Places(places.limit, 0)))


# --- connections that break -------------------------------------------------------------------------------------------
async def test_a_look_up_whose_connection_broke_is_made_once_more() -> None:
    breaks = 1

    async def told(head: bytes) -> bytes | None:
        nonlocal breaks
        breaks -= 1
        return None if breaks >= 0 else answer()

    async with server() as api, plane(api.url()) as control:
        api.answer = told
        assert (await control.authorize(ASKED))["allowed"] is False
        assert api.connections == 2
        breaks = 2
        with pytest.raises(ControlUnavailable, match="ended before"):
            await control.authorize(ASKED)
        breaks = 1
        with pytest.raises(ControlUnavailable):  # an admission may be done by now: its caller decides
            await control.authenticate("n", [CREDENTIAL])


async def test_a_kept_connection_is_used_again_unless_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "_KEPT_SECONDS", 1000.0)

    async def told(head: bytes) -> bytes:
        return answer()

    async with server() as api, plane(api.url()) as control:
        api.answer = told
        for _ in range(5):
            await control.authorize(ASKED)
        assert api.connections == 1

        async def last(head: bytes) -> bytes:  # ends the connection without having said so
            return answer() + b"HTTP/1.1 408 Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

        api.answer = last
        await control.authorize(ASKED)
        api.answer = told
        assert (await control.authorize(ASKED))["allowed"] is False
        assert api.connections == 2


async def test_nobody_listens() -> None:
    async with plane("http://127.0.0.1:1") as control:
        with pytest.raises(ControlUnavailable, match="cannot connect"):
            await control.heartbeat(BEAT)


# --- answers ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "told",
    [
        answer(),
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + answer(),
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + REFUSED,
        b"HTTP/1.0 200 OK\r\nConnection: close\r\n\r\n" + REFUSED,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n" + REFUSED[:5]
        + b"\r\n%x\r\n" % len(REFUSED[5:]) + REFUSED[5:] + b"\r\n0\r\n\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_answers_however_framed_and_in_whatever_pieces(told: bytes, size: int) -> None:
    async with plane("http://api.example") as control:
        reader = http_client._Reader()
        for start in range(0, len(told), size):
            reader.feed(told[start : start + size])
        if not reader.done:
            reader.feed(b"")
        assert (reader.answer.status, reader.answer.body) == (200, REFUSED)
        assert control is not None


@pytest.mark.parametrize(
    "told,problem",
    [
        (b"SSH-2.0-OpenSSH\r\n\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD + b"\r\n", "head of the answer is too long"),
        (answer(b"a" * (MAX_BODY + 1)), "answer is too long"),
        (b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "switched"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nab", "ended before"),
        (b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n", "answered 302 without JSON"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", "answered 502 without JSON"),
        (b"HTTP/1.1 503 X\r\nRetry-After: 7\r\nContent-Length: 27\r\n\r\n" + FAULT, "answered 503 A_CODE"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_says_why(told: bytes, problem: str) -> None:
    async def tell(head: bytes) -> bytes:
        return told

    async with server() as api, plane(api.url()) as control:
        api.answer = tell
        with pytest.raises(ControlUnavailable, match=problem) as caught:
            await control.events("n", [])
        assert caught.value.retry_after == (7 if "503" in problem else None)


async def test_one_that_drips_is_given_up_in_time() -> None:
    async with plane("http://127.0.0.1:1", 0.1) as control, trio.open_nursery() as nursery:

        async def drip(stream: trio.SocketStream) -> None:
            try:
                await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
                while True:
                    await stream.send_all(b" ")
                    await trio.sleep(0.02)
            except trio.BrokenResourceError:
                pass

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, drip, listeners)
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(ControlUnavailable, match=r"no answer within 0\.1 s"):
            await control.close_elsewhere(f"http://127.0.0.1:{port}", "s", 1012)
        nursery.cancel_scope.cancel()


# --- where ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "url,host,port,authority,base",
    [
        ("http://api:3721", "api", 3721, "api:3721", ""),
        ("http://api", "api", 80, "api", ""),
        ("https://api/base/", "api", 443, "api", "/base"),
        ("http://[::1]:3721", "::1", 3721, "[::1]:3721", ""),
        ("https://[2001:db8::1]", "2001:db8::1", 443, "[2001:db8::1]", ""),
    ],
)
def test_urls(url: str, host: str, port: int, authority: str, base: str) -> None:
    origin = Origin.of(url)
    assert (origin.host, origin.port, origin.authority, origin.base) == (host, port, authority, base)


@pytest.mark.parametrize("url", ["api:3721", "ftp://api", "http://", "http://api:port", "http://[::1"])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Origin.of(url)


async def test_an_ipv6_address_is_called_by_its_name_in_brackets() -> None:
    async def told(head: bytes) -> bytes:
        return answer(QUIET)

    async with server("::1") as api, plane(api.url("[::1]")) as control:
        api.answer = told
        await control.heartbeat(BEAT)
        assert f"Host: [::1]:{api.port}".encode() in api.heads[0].split(b"\r\n")


async def test_tls_with_a_private_ca_that_the_system_trusts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = make_authority(tmp_path)

    async def told(head: bytes) -> bytes:
        return answer(QUIET)

    http_client._context.cache_clear()
    try:
        async with server(context=authority.context) as api:
            api.answer = told
            async with plane(api.url("localhost", "https")) as control:
                with pytest.raises(ControlUnavailable, match="no TLS with localhost"):
                    await control.heartbeat(BEAT)
            http_client._context.cache_clear()
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
            async with plane(api.url("localhost", "https")) as control:
                await control.heartbeat(BEAT)
                await control.heartbeat(BEAT)
            assert len(api.heads) == 2
    finally:
        http_client._context.cache_clear()
