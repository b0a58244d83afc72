"""Dialling for real: refusals, a proxy in between, TLS with a private CA, servers that misbehave."""

from __future__ import annotations

import base64
import contextlib
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.agent.fake_daemon import Admit, Answer, Drop, FakeDaemon, Hang, Refuse, fake_daemon
from tests.tls import Authority, make_authority
from tunnel.agent import dial, link
from tunnel.agent.addresses import parse_url
from tunnel.agent.credentials import Credentials
from tunnel.agent.dial import DialError
from tunnel.agent.link import Admission, Link, RefusedError
from tunnel.agent.settings import AgentSettings, load
from tunnel.websocket import handshake as transport

AT, LATER = "Wed, 01 Jan 2020 00:00:00 GMT", "Wed, 01 Jan 2020 00:00:03 GMT"
TOKEN, SESSION = "vAc_" + "1" * 32, "vAs_" + "3" * 32
STORED = Credentials("instance-1")


def settings_for(url: str, ca_file: Path | None = None) -> AgentSettings:
    flags = {"url": url, "serial": "S 1", "chip": "KL720", "firmware": "2.2"}
    return load(flags | ({"ca_file": str(ca_file)} if ca_file else {}), {"HOME": "/nowhere"}, None)[0]


def link_for(url: str, environ: dict[str, str] | None = None, ca_file: Path | None = None) -> Link:
    return Link(settings_for(url, ca_file), parse_url(url), environ or {})


async def connect(url: str, environ: dict[str, str] | None = None, ca_file: Path | None = None) -> Admission:
    return await link_for(url, environ, ca_file).connect(STORED, TOKEN)


async def test_what_the_agent_says_and_hears() -> None:
    headers = (
        ("X-VisionA-Device-Id", "device-1"),
        ("X-VisionA-Tunnel-Session", "session-1"),
        ("x-visiona-session-token", SESSION),
        ("X-Request-ID", "req_1"),
    )
    async with fake_daemon(Admit(headers)) as daemon:
        admission = await connect(daemon.url)
        await admission.transport.aclose()
    said = daemon.dialled[0]
    assert said.target == "/tunnel/connect"
    assert said.headers["authorization"] == f"Bearer {TOKEN}"
    assert said.headers["x-visiona-agent"].startswith("visiona-agent/")
    assert said.headers["x-visiona-agent"].endswith("; features=keepalive,handover")
    assert said.headers["x-visiona-instance"] == "instance-1"
    assert said.headers["x-visiona-serial"] == "S 1"
    assert said.headers["x-visiona-chip"] == "KL720"
    assert said.headers["x-visiona-firmware"] == "2.2"
    assert said.headers["host"] == f"127.0.0.1:{daemon.port}"
    assert "permessage-deflate" not in str(said.headers)
    heard = (admission.device_id, admission.session, admission.session_token, admission.request_id)
    assert heard == ("device-1", "session-1", SESSION, "req_1")


async def test_a_session_token_that_is_none_is_not_believed() -> None:
    async with fake_daemon(Admit((("X-VisionA-Session-Token", "nonsense"),))) as daemon:
        admission = await connect(daemon.url)
        await admission.transport.aclose()
    assert admission.session_token is None


@pytest.mark.parametrize(
    ("answer", "again", "least"),
    [
        (Refuse(401, "TOKEN_REVOKED"), "refused", 0.0),
        (Refuse(403, "ACCOUNT_DISABLED"), "refused", 0.0),
        (Refuse(409, "SERIAL_TAKEN"), "soon", 30.0),
        (Refuse(429, "RATE_LIMITED", (("Retry-After", "9"),)), "soon", 9.0),
        (Refuse(503, "OVERLOADED", (("retry-after", "4"),)), "soon", 4.0),
        (Refuse(503, "OVERLOADED", (("Retry-After", LATER), ("Date", AT))), "soon", 3.0),
        (Refuse(500, "INTERNAL_ERROR"), "soon", 0.0),
    ],
)
async def test_refusals(answer: Refuse, again: str, least: float) -> None:
    async with fake_daemon(answer) as daemon:
        with pytest.raises(RefusedError) as caught:
            await connect(daemon.url)
    assert (caught.value.verdict.again, caught.value.verdict.at_least) == (again, least)
    assert answer.code in caught.value.verdict.message


async def answered(answer: bytes, *, scheme: str = "ws", close: bool = True) -> Exception:
    """What becomes of an attempt at a server that answers so to whatever it is sent."""

    async def server(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.receive_some()
                await stream.send_all(answer)
                if not close:
                    await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server, 0)
        with pytest.raises((DialError, RefusedError)) as caught:
            await connect(f"{scheme}://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()
    return caught.value


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 16\r\n\r\n<html>portal</h>", "forbids it"),
        (b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n", "password"),
        (b'HTTP/1.1 403 No\r\n\r\n{"success": false, "error": {"code": "DENIED", "message": ""}}', "forbids it"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/login\r\n\r\n", "portal.example"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60000, "not the daemon's"),
    ],
)
async def test_a_portal_or_a_proxy_cannot_refuse_us(answer: bytes, words: str) -> None:
    error = await answered(answer)
    assert isinstance(error, RefusedError)
    assert (error.verdict.again, error.verdict.at_least) == ("soon", 0.0)
    assert words in error.verdict.message


async def test_a_refusal_whose_body_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "REFUSAL_BODY_SECONDS", 0.1)
    error = await answered(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", close=False)
    assert isinstance(error, RefusedError)
    assert error.status == 403


async def test_interim_heads_before_the_answer() -> None:
    """A proxy that passes the upgrade may say 100, 102 or 103 before the server's answer."""
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    error = await answered(interim + b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
    assert isinstance(error, RefusedError)
    assert error.status == 502
    async with fake_daemon() as daemon, http_proxy(interim + b"HTTP/1.1 200 OK\r\n\r\n" + interim) as proxy:
        admission = await connect(daemon.url, {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"})
        await admission.transport.aclose()
    assert len(daemon.dialled) == 1
    without_end = b"HTTP/1.1 100 Continue\r\n\r\n" * 4000
    assert isinstance(await answered(without_end, close=False), DialError)
    async with http_proxy(without_end) as proxy:
        with pytest.raises(DialError, match="did not answer"):
            await connect("ws://127.0.0.1:9", {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"})


TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"


@pytest.mark.parametrize(
    ("scheme", "answer", "words"),
    [
        ("wss", b"HTTP/1.1 400 Bad Request\r\n\r\n", r"speaks no TLS; use ws://127\.0\.0\.1:"),
        ("wss", b"SSH-2.0-OpenSSH_9.6\r\n", "speaks no TLS; use ws://"),
        ("wss", b"", "(no TLS|speak TLS).*ws://"),
        ("wss", TLS_ALERT, "TLS failed: "),
        ("ws", TLS_ALERT, "speaks TLS; use wss://"),
        ("ws", b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "wss://"),
        (
            "ws",
            b"HTTP/1.1 301 Moved\r\nLocation: https://h/tunnel/connect\r\n\r\n",
            "'https://h/tunnel/connect'.*wss://",
        ),
    ],
)
async def test_a_wrong_scheme_is_told_in_words(scheme: str, answer: bytes, words: str) -> None:
    error = await answered(answer, scheme=scheme)
    assert re.search(words, str(error)), error
    assert "_" not in str(error).split(": ", 1)[-1], "OpenSSL's own name for it"


async def test_servers_that_misbehave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "UPGRADE_SECONDS", 0.2)
    misbehaviours: tuple[Answer, ...] = (Drop(), Hang())
    async with fake_daemon(*misbehaviours) as daemon:
        for _ in misbehaviours:
            with pytest.raises(DialError):
                await connect(daemon.url)


@pytest.mark.parametrize(
    "answer",
    [b"SSH-2.0-OpenSSH_9\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", b"\x00" * 70000],
)
async def test_servers_that_speak_something_else(answer: bytes) -> None:
    async def server(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, server, 0)
        with pytest.raises(DialError):
            await connect(f"ws://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


async def test_nobody_listens() -> None:
    async with fake_daemon() as daemon:
        url = daemon.url
    with pytest.raises(DialError, match="cannot be reached"):
        await connect(url)


# --- a proxy ---------------------------------------------------------------------------------------------------------
@dataclass
class TestProxy:
    __test__ = False
    port: int = 0
    answer: bytes = b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n"
    heads: list[str] = field(default_factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += await stream.receive_some(1) or b"\r\n\r\n"
            self.heads.append(head.decode())
            if b" 200 " not in self.answer:
                await stream.send_all(self.answer)
                return
            host, _, port = head.split()[1].decode().rpartition(":")
            async with await trio.open_tcp_stream(host.strip("[]"), int(port)) as far, trio.open_nursery() as nursery:
                await stream.send_all(self.answer)
                nursery.start_soon(_copy, stream, far)
                await _copy(far, stream)
                nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@asynccontextmanager
async def http_proxy(answer: bytes | None = None) -> AsyncIterator[TestProxy]:
    proxy = TestProxy()
    if answer is not None:
        proxy.answer = answer
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, proxy.serve, 0)
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()


async def test_through_a_proxy_with_a_password() -> None:
    async with fake_daemon() as daemon, http_proxy() as proxy:
        environ = {"HTTPS_PROXY": f"http://me:s%3Acret@127.0.0.1:{proxy.port}"}
        admission = await connect(daemon.url, environ)
        await admission.transport.aclose()
    assert proxy.heads[0].startswith(f"CONNECT 127.0.0.1:{daemon.port} HTTP/1.1\r\n")
    assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:s:cret').decode()}\r\n" in proxy.heads[0]
    assert TOKEN not in proxy.heads[0], "the proxy must not learn the token"
    assert "proxy-authorization" not in daemon.dialled[0].headers


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\nHTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", "407"),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "403"),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", "502"),
        (b"nonsense\r\n\r\n", "does not speak"),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", "does not speak"),
        (b"", "did not answer"),
        (b"HTTP/1.1 301 Moved\r\nX: " + b"x" * 20000, "did not answer"),
    ],
)
async def test_a_proxy_that_refuses_is_no_refusal_of_the_daemon(answer: bytes, words: str) -> None:
    """Tried again for ever: a proxy's 403 says nothing about our credential."""
    async with http_proxy(answer) as proxy:
        with pytest.raises(DialError, match=words):
            await connect("ws://127.0.0.1:9", {"HTTPS_PROXY": f"http://127.0.0.1:{proxy.port}"})


async def test_a_proxy_that_cannot_be_reached() -> None:
    async with http_proxy() as proxy:
        port = proxy.port
    with pytest.raises(DialError, match="cannot be reached"):
        await connect("ws://127.0.0.1:9", {"HTTPS_PROXY": f"http://127.0.0.1:{port}"})


# --- TLS -------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private CA."""
    return make_authority(tmp_path_factory.mktemp("ca"))


@asynccontextmanager
async def tls_front(daemon: FakeDaemon | TestProxy, authority: Authority) -> AsyncIterator[int]:
    """A TLS terminator in front of the daemon, or of a proxy."""

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, authority.context, server_side=True, https_compatible=True)
        try:
            await stream.do_handshake()
            async with await trio.open_tcp_stream("127.0.0.1", daemon.port) as far, trio.open_nursery() as nursery:
                nursery.start_soon(_copy, far, stream)
                await _copy(stream, far)
                nursery.cancel_scope.cancel()
        except trio.BrokenResourceError:
            pass
        finally:
            await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_private_ca(authority: Authority, host: str) -> None:
    async with fake_daemon() as daemon, tls_front(daemon, authority) as port:
        admission = await connect(f"wss://{host}:{port}", ca_file=authority.file)
        connection = await daemon.connection()
        await admission.transport.send_all(b"\x00\x02\x00\x01\x00\x00\x00\x00\x00\x00\x00\x07")
        with trio.fail_after(5):
            pong = await admission.transport.receive_some()
        assert bytes(pong)[:4] == b"\x00\x02\x00\x02"
        await admission.transport.aclose()
        assert connection.name == "test"


async def test_an_unknown_ca_is_not_trusted_and_the_token_never_sent(authority: Authority) -> None:
    async with fake_daemon() as daemon, tls_front(daemon, authority) as port:
        with pytest.raises(DialError, match="--ca-file"):
            await connect(f"wss://127.0.0.1:{port}")
        assert daemon.attempts == 0


@pytest.mark.skipif(sys.platform != "linux", reason="127.0.0.2 is an address of this machine on Linux only")
async def test_a_certificate_for_another_name(authority: Authority) -> None:
    async with fake_daemon() as daemon, tls_front(daemon, authority) as port:
        with pytest.raises(DialError, match="not trusted"):
            await connect(f"wss://127.0.0.2:{port}", ca_file=authority.file)


async def test_tls_through_a_proxy(authority: Authority) -> None:
    async with fake_daemon() as daemon, tls_front(daemon, authority) as port, http_proxy() as proxy:
        environ = {"https_proxy": f"http://127.0.0.1:{proxy.port}"}
        admission = await connect(f"wss://localhost:{port}", environ, authority.file)
        await admission.transport.aclose()
    assert proxy.heads[0].startswith(f"CONNECT localhost:{port} ")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_proxy_that_is_reached_by_tls(authority: Authority, scheme: str) -> None:
    async with (
        fake_daemon() as daemon,
        tls_front(daemon, authority) as secure,
        http_proxy() as proxy,
        tls_front(proxy, authority) as port,
    ):
        environ = {"https_proxy": f"https://localhost:{port}"}
        url = f"wss://localhost:{secure}" if scheme == "wss" else daemon.url
        admission = await connect(url, environ, authority.file)
        await admission.transport.aclose()
    assert len(daemon.dialled) == len(proxy.heads) == 1
    assert TOKEN not in repr(admission)


async def test_tls_towards_a_plain_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "DIAL_SECONDS", 0.3)
    async with fake_daemon() as daemon:
        with pytest.raises(DialError):
            await connect(f"wss://127.0.0.1:{daemon.port}")


def test_a_ca_file_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("not a certificate")
    with pytest.raises(DialError, match="certificates"):
        link_for("wss://h", ca_file=tmp_path / "ca.pem")


async def test_a_dial_that_hangs_is_bounded(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(link, "dial", never)
    began = trio.current_time()
    with pytest.raises(DialError, match="within 15 s"):
        await connect("ws://127.0.0.1:9")
    assert trio.current_time() - began == pytest.approx(link.DIAL_SECONDS)


def test_the_kernel_gives_a_dead_link_up_within_forty_seconds() -> None:
    assert dial.KEEPALIVE_IDLE + dial.KEEPALIVE_INTERVAL * dial.KEEPALIVE_COUNT <= 40
