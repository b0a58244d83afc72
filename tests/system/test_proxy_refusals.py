"""What the proxy must refuse (api.md, "What the proxy must get right"), and what it must take although it is odd.

By each lane, over raw sockets. What it passes of what is well formed is in `test_proxy_rules`.
"""

from __future__ import annotations

import threading

import pytest

from tests.apps.proxy.kit import WAIT, Peer, until
from tests.apps.proxy.stack import EVERY_WAY, Lane

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_WAY


def test_a_local_server_that_refuses(lane: Lane) -> None:
    lane.box.close()
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
    assert got.json["error"]["details"] == {"local_address": [f"127.0.0.1:{lane.box.port}"]}


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 2",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\rSet-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\0Set-Cookie: a=b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\nX-A: 1\n Set-Cookie: a=b\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length : 2\r\n\r\nok",
        b"HTTP/1.1 600 Odd\r\nContent-Length: 5\r\n\r\nwhole",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_a_local_server_that_speaks_no_http(lane: Lane, said: bytes) -> None:
    lane.box.on("/x", lambda peer: peer.sock.sendall(said))
    got = lane.ask("GET", "/x")
    assert (got.status, got.code) == (502, "AGENT_BAD_RESPONSE")


@pytest.mark.parametrize("path", ["//../x", "/../x", "/a/%2e%2e/x", "/a/..%2fx", "/a/%252e%252e/x"])
def test_a_path_that_climbs_is_refused(lane: Lane, path: str) -> None:
    got = lane.ask("GET", path)
    assert (got.status, got.code) == (400, "BAD_REQUEST")
    assert lane.box.heads == []


@pytest.mark.parametrize(
    "raw",
    [
        "Content-Length: 3\r\nTransfer-Encoding: chunked",
        "Content-Length: 3\r\nContent-Length: 4",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "X-A: 1\r\n folded: 2",
        "Content-Length: +3",
        "X-A : 1",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding: chunked\x0b",
        "Transfer-Encoding\x0b: chunked",
        "X-A: 1\nTransfer-Encoding: chunked",
        "X-A: 1\n\nGET /smuggled HTTP/1.1\nX-B: 2",
        "X-A: 1\rTransfer-Encoding: chunked",
        "X-A: 1\r\rGET /smuggled HTTP/1.1",
        "X-A: 1\0Transfer-Encoding: chunked",
        "X\0A: 1",
    ],
)
def test_smuggling_is_refused(lane: Lane, raw: str) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/x", raw) + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n")
        got = wire.read()
        assert (got.status, got.code) == (400, "BAD_REQUEST")
        wire.wait_end()
    assert lane.box.heads == []


@pytest.mark.parametrize("change", [(b"GET", b"get"), (b"GET", b"G#T"), (b" /", b" http://box.example/")])
def test_spellings_of_a_request_line_that_are_refused(lane: Lane, change: tuple[bytes, bytes]) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/x").replace(*change, 1))
        assert wire.read_head().status == 400
    assert lane.box.heads == []


def test_a_bad_chunk_is_refused_and_the_box_never_sees_an_end(lane: Lane) -> None:
    bodies: list[bytes] = []

    def take(peer: Peer) -> None:
        try:
            bodies.extend(peer.body())
            bodies.append(b"END")
        except OSError:
            bodies.append(b"RESET")

    lane.box.on("/x", take)
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/x", "Transfer-Encoding: chunked") + b"3\r\nabc\r\n")
        until(lambda: lane.box.heads)
        wire.send(b"zz\r\n")
        got = wire.read()
        assert (got.status, got.code) == (400, "BAD_REQUEST")
    until(lambda: b"RESET" in bodies)
    assert b"END" not in bodies


# --- what is odd, and taken -------------------------------------------------------------------------------------------
MEANT = {
    "a blank before a colon": b"HTTP/1.1 200 OK\r\nX-Odd : 1\r\nContent-Length \t: 5\r\n\r\nwhole",
    "bare line feeds": b"HTTP/1.0 200 OK\nX-Odd: 1\nContent-Length: 5\n\nwhole",
    "both ends of lines": b"HTTP/1.1 200 OK\r\nConnection: close\r\nX-Odd: 1\n\nwhole",
    "200 fields": b"HTTP/1.1 200 OK\r\nX-Odd: 1\r\n" + b"X-A: 1\r\n" * 198 + b"Content-Length: 5\r\n\r\nwhole",
    "64 KiB": b"HTTP/1.1 200 OK\r\nX-Odd: 1\r\nX-A: " + b"a" * 65_400 + b"\r\nContent-Length: 5\r\n\r\nwhole",
}


@pytest.mark.parametrize("name", MEANT)
def test_a_head_that_boxes_send_is_taken(lane: Lane, name: str) -> None:
    lane.box.on("/odd", lambda peer: peer.sock.sendall(MEANT[name]))
    got = lane.ask("GET", "/odd")
    assert (got.status, got.body, got.complete, got.one("x-odd")) == (200, b"whole", True, "1")


def test_what_a_box_nominates_takes_nothing_of_ours_off(lane: Lane) -> None:
    """On one connection again and again: the ways in few steps say the same as the long one."""
    lane.box.on(
        "/page",
        lambda peer: peer.answer(
            b"<script>", "200 OK", "Content-Type: text/html", "Content-Security-Policy: sandbox",
            "X-Content-Type-Options: nosniff", "Cache-Control: public, max-age=5", "WWW-Authenticate: Basic realm=us",
            "Connection: keep-alive, Content-Security-Policy, X-Content-Type-Options, Cache-Control, Vary",
        ) or True,
    )  # fmt: skip
    with lane.wire() as wire:
        for _ in range(4):
            wire.send(lane.head("GET", "/page"))
            got = wire.read()
            assert (got.status, got.body) == (200, b"<script>")
            assert got.all("content-security-policy") == ["sandbox"]
            assert got.all("x-content-type-options") == ["nosniff"]
            assert got.all("cache-control") == ["max-age=5, private"]
            assert "authorization" in got.one("vary").lower()
            assert not got.all("www-authenticate")


def test_every_viewer_of_a_camera_gets_ours(lane: Lane) -> None:
    """An answer that many share, with a head that has to be mended."""
    go_on = threading.Event()

    def camera(peer: Peer) -> None:
        peer.sock.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type : multipart/x-mixed-replace; boundary=b\n"
            b"Content-Security-Policy: sandbox\nConnection: content-security-policy, x-content-type-options\n\n"
            b"--b\r\nContent-Length: 5\r\n\r\nframe\r\n--b\r\n"
        )
        assert go_on.wait(WAIT)

    lane.box.on("/camera", camera)
    with lane.wire() as first, lane.wire() as second:
        for wire in (first, second):
            wire.send(lane.head("GET", "/camera"))
            got = wire.read_head()
            assert (got.status, got.all("content-security-policy")) == (200, ["sandbox"])
            assert (got.all("x-content-type-options"), got.all("cache-control")) == (["nosniff"], ["private"])
            until(lambda: b"frame" in wire.buffer or wire.more())  # noqa: B023 - used at once
        go_on.set()


def test_where_a_box_leads_lies_below_the_prefix(lane: Lane) -> None:
    """It calls us by the name that it was given, and by http although the client came by whatever it came by."""

    def lead(peer: Peer) -> None:
        (host,) = peer.fields("host")
        peer.answer(
            b"", "302 Found", f"Location: http://{host}/next?a", "Refresh: 0; url=/next", f"Content-Location: //{host}",
            'WWW-Authenticate: Basic realm="session expired"',
        )  # fmt: skip

    lane.box.on("/back", lead)
    got = lane.ask("GET", "/back")
    assert got.one("location") == lane.prefix + "/next?a"
    assert got.one("refresh") == f"0; url={lane.prefix}/next"
    assert got.one("content-location") == lane.prefix + "/"
    assert not got.all("www-authenticate")


def test_where_a_client_leads_is_told_as_the_box_knows_it(lane: Lane) -> None:
    """`Destination` of WebDAV, which a client makes of the URLs that it sees."""
    own = f"127.0.0.1:{lane.port}"
    for said, seen in (
        (f"http://{own}{lane.prefix}/new%2F/b?c", "/new%2F/b?c"),
        (f"https://{own.upper()}{lane.prefix}", "/"),
        (f"{lane.prefix}/new", "/new"),
        ("http://other.example/new", "http://other.example/new"),
    ):
        got = lane.ask("MOVE", "/old", f"Destination: {said}")
        assert ["Destination", seen] in got.json["fields"]
    for outside in (f"http://{own}/api/auth/me", "/new", f"{lane.prefix}x/new", f"http://{own}{lane.prefix}/../x"):
        assert lane.ask("COPY", "/old", f"Destination: {outside}").code == "BAD_REQUEST"
    assert ["destination", "/new"] in lane.ask("POST", "/old", "destination: /new").json["fields"]  # no WebDAV


@pytest.mark.parametrize("climbs", ["../../api/auth/me", "/../x/%2e%2e/api/auth/me", "http://{host}/..\\api/auth/me"])
def test_where_a_box_leads_does_not_climb_out_of_the_prefix(lane: Lane, climbs: str) -> None:
    """With 307 a viewer's own `fetch` would take its method, body and credential to another route of ours.

    Asked by GET: this box ends each connection, and what is not idempotent is not sent again on another.
    """

    def lead(peer: Peer) -> None:
        where = climbs.format(host=peer.fields("host")[0])
        peer.answer(
            b"", "307 Elsewhere", f"Location: {where}", f"Refresh: 0; url={where}", f"Content-Location: {where}"
        )

    lane.box.on("/a/b", lead)
    got = lane.ask("GET", "/a/b")
    for name in ("location", "content-location"):
        assert got.one(name) == lane.prefix + "/api/auth/me"
    assert got.one("refresh") == f"0; url={lane.prefix}/api/auth/me"
    lane.box.on("/api/cameras/0", lead)  # where paths pass as they are
    got = lane.ask("GET", "/api/cameras/0", f"X-Device-Id: {lane.device_id}", prefix="")
    assert got.one("location") == f"/api/devices/{lane.device_id}/proxy/api/auth/me"


@pytest.mark.parametrize("host", ["my_cloud:80", "my_cloud", "", "other.example", "[::1]:80"])
def test_a_host_of_any_name_is_taken(lane: Lane, host: str) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/x").replace(b"Host: 127.0.0.1:%d" % lane.port, f"Host: {host}".encode()))
        got = wire.read()
    assert got.status == 200
    assert [
        value.strip()
        for name, value in (line.split(":", 1) for line in lane.box.heads[0].decode().split("\r\n")[1:])
        if name == "Host"
    ] == [host]


@pytest.mark.parametrize("path", ["//x", "//x//y?a=//b", "/相機", "/x?q=相機"])
def test_a_path_passes_raw(lane: Lane, path: str) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "@").replace(b"@ ", path.encode() + b" "))
        got = wire.read()
    assert got.status == 200
    assert lane.box.heads[0].startswith(b"GET " + path.encode() + b" HTTP/1.1\r\n")


def test_the_absolute_form_of_our_own_host_is_taken(lane: Lane) -> None:
    own = b"http://127.0.0.1:%d/" % lane.port
    with lane.wire() as wire:
        for path in ("/x?a", "//x"):
            wire.send(lane.head("GET", path).replace(b"GET /", b"GET " + own, 1))
            assert wire.read().json["line"] == f"GET {path} HTTP/1.1"
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/x").replace(b"GET /", b"GET http://127.0.0.1:1/", 1))
        assert wire.read_head().status == 400


def test_raw_bytes_that_are_no_utf_8_are_refused(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/\xe4"))
        assert wire.read_head().status == 400
    assert lane.box.heads == []
