"""One origin: the shipped nginx configuration in front of the real API and daemon; agents come through it too."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.apps.proxy.kit import WAIT, Peer, Wire, reset, until
from tests.system.nginx import SHIPPED, Site, command, configure, need_nginx, running, tls_listen
from tests.system.nginx import site as site
from tests.system.stack import eventually
from tests.system.test_browser import browser as browser

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

MIB = 1 << 20
SIZE = 64 * MIB
BLOCK = bytes(range(256)) * 1024


def test_login_scan_and_console_come_from_one_origin(site: Site) -> None:
    login = {"email": site.stack.email, "password": site.stack.password}
    answer = site.stack.call("POST", "/api/auth/login", login, token="", port=site.nginx.port)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    path = f"/api/devices/scan?device_id={site.demo_device}"
    assert site.stack.call("GET", path, port=site.nginx.port).json["devices"]
    assert b"<html" in site.stack.call("GET", "/", token="", port=site.nginx.port).body
    assert site.stack.call("GET", "/healthz", token="", port=site.nginx.port).json["status"] == "ok"


@pytest.mark.parametrize("lane", ["front", "fast"])
def test_a_camera_moves(site: Site, lane: str) -> None:
    path = f"/api/cameras/0/stream?device_id={site.demo_device}"
    if lane == "fast":
        path = f"/d/{site.demo_device}/api/cameras/0/stream"
    with site.wire() as wire:
        wire.send(site.head("GET", path))
        got = wire.read_head()
        assert got.status == 200
        assert got.one("content-type").startswith("multipart/x-mixed-replace")
        while wire.buffer.count(b"\xff\xd9") < 4:
            assert wire.more()


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
def test_each_event_comes_as_it_is_sent(site: Site, lane: int) -> None:
    """Nothing is held back: the box sends the next event only when the client has had the one before."""
    had = threading.Semaphore(0)

    def events(peer: Peer) -> bool:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(5):
            event = b"data: %d\n\n" % number
            peer.sock.sendall(b"%x\r\n%b\r\n" % (len(event), event))
            if not had.acquire(timeout=10):
                return False
        peer.sock.sendall(b"0\r\n\r\n")
        return True

    site.box.on("/events", events)
    with site.wire() as wire:
        wire.send(site.head("GET", f"{site.prefixes()[lane]}/events"))
        assert wire.read_head().status == 200
        for number in range(5):
            while b"data: %d\n\n" % number not in wire.buffer:
                assert wire.more()
            had.release()
        while not wire.buffer.endswith(b"0\r\n\r\n"):
            assert wire.more()


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
def test_an_upload_is_not_gathered_before_it_goes_on(site: Site, lane: int) -> None:
    """The box sees the first bytes while the client has not sent the last: nothing is put on disk on the way."""
    first = threading.Event()

    def take(peer: Peer) -> bool:
        size = 0
        for part in peer.body():
            size += len(part)
            first.set()
        peer.answer(str(size).encode())
        return True

    site.box.on("/take", take)
    with site.wire() as wire:
        wire.send(site.head("POST", f"{site.prefixes()[lane]}/take", "Content-Length: 200000") + b"x" * 100_000)
        assert first.wait(10)
        wire.send(b"x" * 100_000)
        assert wire.read().body == b"200000"


@pytest.mark.parametrize(
    ("path", "served_by", "gathered"),
    [
        ("/api/auth/login", "api", True),
        ("/api/devices/scan", "api", True),
        ("/api/devices/x/proxying", "api", True),
        ("/api/camerasx", "api", True),
        ("/api/clusters/x/proxy", "api", False),
        ("/storage/a-file?signature=x", "api", False),
        ("/api/devices/x/proxy", "tunnel", False),
        ("/api/devices/x/proxy/take?a", "tunnel", False),
        ("/api/cameras", "tunnel", False),
        ("/api/cameras/0%2Fx", "tunnel", False),
        ("/api/inference/run?device_id=x", "tunnel", False),
        ("/ws/x", "tunnel", False),
        ("/d/x/y", "tunnel", False),
    ],
)
def test_who_serves_a_path_and_which_bodies_are_gathered_first(
    tmp_path: Path, free_port: Callable[[], int], path: str, served_by: str, gathered: bool
) -> None:
    """What is a box's goes to a daemon. A slow client holds nothing of the API; a file goes on as it comes."""
    need_nginx()
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        running(
            tmp_path,
            free_port(),
            api=server.getsockname()[1] if served_by == "api" else free_port(),
            tunnels=[server.getsockname()[1] if served_by == "tunnel" else free_port()],
        ) as nginx,
        Wire(nginx.port) as wire,
    ):
        server.settimeout(0.5 if gathered else 10)
        wire.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n".encode() + b"x" * 500)
        if gathered:
            with pytest.raises(TimeoutError):
                server.accept()
            server.settimeout(10)
            wire.send(b"x" * 500)
        with server.accept()[0] as upstream:
            upstream.settimeout(10)
            got, wanted = b"", b"x" * (1000 if gathered else 500)
            while not got.endswith(b"\r\n\r\n" + wanted):
                part = upstream.recv(65536)
                assert part, got
                got += part
    assert got.startswith(f"POST {path} HTTP/1.1\r\n".encode())


def test_a_body_that_is_too_large_to_be_gathered_is_refused_in_the_envelope(site: Site) -> None:
    with site.wire() as wire:
        wire.send(site.head("POST", "/api/auth/login", "Content-Type: application/json", f"Content-Length: {3 * MIB}"))
        got = wire.read()
    assert (got.status, got.json["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert got.json["error"]["request_id"] == got.one("x-request-id")


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
def test_64_mib_each_way(site: Site, lane: int) -> None:
    digest = hashlib.sha256(BLOCK * (SIZE // len(BLOCK))).hexdigest()

    def send(peer: Peer) -> bool:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % SIZE)
        for _ in range(SIZE // len(BLOCK)):
            peer.sock.sendall(BLOCK)
        return True

    site.box.on("/down", send)
    with site.wire() as wire:
        wire.send(site.head("PUT", f"{site.prefixes()[lane]}/up", f"Content-Length: {SIZE}"))
        for _ in range(SIZE // len(BLOCK)):
            wire.send(BLOCK)
        got = wire.read()
        assert (got.json["size"], got.json["sha256"]) == (SIZE, digest)
        wire.send(site.head("GET", f"{site.prefixes()[lane]}/down"))
        got = wire.read()
        assert (got.complete, hashlib.sha256(got.body).hexdigest()) == (True, digest)
    assert not any(
        path.is_file() for name in ("proxy", "client_body") for path in (site.nginx.folder / name).rglob("*")
    )


def test_a_model_goes_up_by_its_presigned_url(site: Site) -> None:
    model = {"name": "m", "version": "1", "filename": "m.nef", "size": SIZE, "chips": ["KL520"]}
    made = site.stack.call("POST", "/api/models/init", model, port=site.nginx.port)
    if made.status == 404:
        pytest.skip("models are not there yet")
    upload = made.data["upload"]
    path = upload["url"].partition(f":{site.nginx.port}")[2]
    assert path.startswith("/storage/")
    with site.wire() as wire:
        fields = [f"{name}: {value}" for name, value in upload["headers"].items() if name.lower() != "content-length"]
        head = site.head("PUT", path, f"Content-Length: {SIZE}", *fields, token="")
        # The API itself serves its own hosts alone: the one that stands in the URL.
        wire.send(head.replace(b"visiona.example", f"127.0.0.1:{site.nginx.port}".encode()))
        for _ in range(SIZE // len(BLOCK)):
            wire.send(BLOCK)
        assert wire.read().status == 201


def test_a_websocket_reaches_the_box_by_the_daemon(site: Site) -> None:
    def echo(peer: Peer) -> bool:
        peer.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: x\r\n\r\n" + peer.buffer
        )
        while data := peer.sock.recv(1 << 16):
            peer.sock.sendall(data)
        return False

    site.box.on("/ws/echo", echo)
    upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: eA==")
    with site.wire() as wire:
        wire.send(site.head("GET", f"/ws/echo?device_id={site.device}", *upgrade))
        assert wire.read_head().status == 101
        for _ in range(3):
            wire.buffer = b""
            wire.send(b"some frame")
            while wire.buffer != b"some frame":
                assert wire.more()
    with site.wire() as wire:
        wire.send(site.head("GET", f"/ws/echo?device_id={site.device}"))
        assert wire.read().status == 426


@pytest.mark.parametrize(
    "path",
    [
        "/internal",
        "/internal/",
        "/internal/tunnel/heartbeat",
        "/internal/authorize",
        "/internal/metrics?x=1",
        "/%69nternal/metrics",
        "/internal%2fmetrics",
        "//internal//metrics",
        "/x/../internal/metrics",
        "/api/..%2finternal/metrics",
        "/./internal/metrics",
    ],
)
def test_what_is_internal_is_not_there(site: Site, path: str) -> None:
    """Even with the right secret, in whatever spelling."""
    secret = site.stack.plan.settings["INTERNAL_SECRET"][0]
    with site.wire() as wire:
        wire.send(site.head("GET", path, "X-Request-ID: from-outside", token=secret))
        got = wire.read()
    assert (got.status, got.code, got.one("x-request-id")) == (404, "NOT_FOUND", "from-outside")
    assert got.one("content-type") == "application/json"


def test_one_request_id_on_every_hop(site: Site) -> None:
    for number, prefix in enumerate(site.prefixes()):
        for sent in (f"mine-{number}.a_B", None, "not well formed!"):
            site.box.heads.clear()
            with site.wire() as wire:
                wire.send(site.head("GET", f"{prefix}/who?ticket=secret", *([f"X-Request-ID: {sent}"] if sent else [])))
                got = wire.read()
            (seen,) = [value for name, value in got.json["fields"] if name.lower() == "x-request-id"]
            assert got.one("x-request-id") == seen
            assert (seen == sent) is (sent == f"mine-{number}.a_B")
            line = eventually(lambda seen=seen: _line(site, seen), 5, "the access log's line")
            assert (line["path"], line["status"]) == (f"{prefix}/who", 200)
            eventually(lambda seen=seen: _logged(site, seen), 5, "a line of the API or the daemon")


def _logged(site: Site, request_id: str) -> bool:
    return f'"{request_id}"' in site.stack.log("api") + site.stack.log("tunnel")


def _line(site: Site, request_id: str) -> dict[str, object] | None:
    lines = [json.loads(line) for line in site.nginx.log().splitlines()]
    return next((line for line in reversed(lines) if line["request_id"] == request_id), None)


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
def test_the_box_learns_who_called_and_nothing_that_the_caller_made_up(site: Site, lane: int) -> None:
    made_up = (
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil",
        "Forwarded: for=6.6.6.6",
    )
    with site.wire() as wire:
        wire.send(site.head("GET", f"{site.prefixes()[lane]}/who", *made_up))
        fields = wire.read().json["fields"]
    seen = {name.lower(): value for name, value in fields}
    assert seen["x-forwarded-for"].startswith("127.0.0.1")
    assert (seen["x-forwarded-proto"], seen["x-forwarded-host"]) == ("http", "visiona.example")
    assert "6.6.6.6" not in str(fields)
    assert "evil" not in str(fields)
    assert seen["host"] == "visiona.example"


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
def test_paths_and_headers_pass_unchanged_and_command_nothing_on_the_way(site: Site, lane: int) -> None:
    """A box's `X-Accel-Redirect` must not make nginx fetch something else with the caller's credentials."""

    def answer(peer: Peer) -> bool:
        fields = ("X-Accel-Redirect: /api/auth/sessions", "X-Accel-Buffering: yes", "X-Accel-Limit-Rate: 1")
        peer.answer(peer.path.encode(), "200 OK", *fields, "Server: box/1", "X-Same: a", "X-Same: b")
        return True

    path = site.box.on("/a%2Fb//c;d=%20", answer)
    with site.wire() as wire:
        wire.send(site.head("GET", f"{site.prefixes()[lane]}{path}?q=%2F&format=x"))
        got = wire.read()
    assert (got.status, got.body) == (200, f"{path}?q=%2F&format=x".encode())
    assert (got.all("server"), got.all("x-same")) == (["box/1"], ["a", "b"])


def test_refusals_of_nginx_itself_are_envelopes(site: Site) -> None:
    cases = {
        b"TRACE / HTTP/1.1\r\nHost: x\r\n\r\n": (405, "METHOD_NOT_ALLOWED"),
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n": (400, "BAD_REQUEST"),
        b"GET / HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 50_000 + b"\r\n\r\n": (431, "HEADERS_TOO_LARGE"),
        b"GET /" + b"a" * 50_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n": (414, "URI_TOO_LONG"),
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n": (400, "BAD_REQUEST"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": (400, "BAD_REQUEST"),
    }
    for sent, (status, code) in cases.items():
        with site.wire() as wire:
            wire.send(sent)
            got = wire.read()
        assert (got.status, got.code) == (status, code), sent[:60]


def test_a_large_head_is_for_the_api_to_refuse(site: Site) -> None:
    with site.wire() as wire:
        wire.send(site.head("GET", "/api/devices", "X-Big: " + "a" * 33_000))
        got = wire.read()
    assert (got.status, got.code) == (431, "HEADERS_TOO_LARGE")


def test_nobody_behind_it_is_told_as_such_and_no_query_is_logged(tmp_path: Path, free_port: Callable[[], int]) -> None:
    need_nginx()
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        dead = one.getsockname()[1]
        with running(tmp_path, free_port(), api=dead, tunnels=[dead]) as nginx:
            for path, code in (
                ("/api/devices", "OVERLOADED"),
                ("/d/x/y", "TUNNEL_UNAVAILABLE"),
                ("/ws/x", "TUNNEL_UNAVAILABLE"),
                ("/api/cameras/0", "TUNNEL_UNAVAILABLE"),
            ):
                with Wire(nginx.port) as wire:
                    wire.send(
                        f"GET {path}?ticket=a-secret HTTP/1.1\r\nHost: x\r\nReferer: http://x/?ticket=a-secret\r\n\r\n".encode()
                    )
                    got = wire.read()
                assert (got.status, got.code, got.one("retry-after")) == (503, code, "5")
    lines = [json.loads(line) for line in nginx.log().splitlines()]
    assert {line["path"] for line in lines} == {"/api/devices", "/d/x/y", "/ws/x", "/api/cameras/0"}
    assert "a-secret" not in nginx.log()


@pytest.mark.parametrize("listen", ["listen.conf", "tls.conf.example"])
def test_nginx_accepts_the_shipped_files(tmp_path: Path, listen: str) -> None:
    need_nginx()
    text = tls_listen(tmp_path, "8443") if listen.startswith("tls") else (SHIPPED / listen).read_text()
    config = configure(tmp_path, listen=text, api=1, tunnels=[2, 3])
    done = subprocess.run(command(config, "-t"), capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr


# --- an abort is never a clean end ------------------------------------------------------------------------------------
@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
@pytest.mark.parametrize(
    ("kind", "version"), [("length", "1.1"), ("chunks", "1.1"), ("neither", "1.1"), ("length", "1.0")]
)
def test_a_box_that_dies_within_a_body_does_not_look_whole(site: Site, lane: int, kind: str, version: str) -> None:
    """Of HTTP/1.0 without a length it would: nginx closes where we reset (docs/proxy.md)."""
    had = threading.Event()
    begun = {
        "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello",
        "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        "neither": b"HTTP/1.1 200 OK\r\n\r\nhello",
    }[kind]

    def die(peer: Peer) -> bool:
        peer.sock.sendall(begun)
        had.wait(WAIT)
        reset(peer.sock)
        return False

    site.box.on("/dies", die)
    with site.wire() as wire:
        wire.send(site.head("GET", f"{site.prefixes()[lane]}/dies").replace(b"HTTP/1.1", b"HTTP/" + version.encode()))
        while b"hello" not in wire.buffer:  # begun, and in part with the client
            assert wire.more()
        had.set()
        got = wire.read()
    assert (got.status, got.body, got.complete) == (200, b"hello", False)
    assert got.all("content-length") or got.all("transfer-encoding"), "its end would be the connection's"


@pytest.mark.parametrize("lane", [0, 1], ids=["front", "fast"])
@pytest.mark.parametrize("moment", ["body", "upload"])
def test_a_client_that_leaves_looks_to_the_box_as_what_it_is(site: Site, lane: int, moment: str) -> None:
    reached, ends = threading.Event(), []

    def wait(peer: Peer) -> bool:
        if moment == "body":
            peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        reached.set()
        ends.append(told(peer) if moment == "body" else peer.wait_gone())
        return False

    def told(peer: Peer) -> str:
        """nginx ends its side, as who waits for an answer does: what is said then shows that nobody listens."""
        while (gone := peer.wait_gone(0.2)) == "still there":
            peer.sock.sendall(b"5\r\nhello\r\n")
        return gone

    site.box.on("/waits", wait)
    with site.wire() as wire:
        length = ["Content-Length: 100000"] if moment == "upload" else []
        wire.send(site.head("POST", f"{site.prefixes()[lane]}/waits", *length) + b"x" * len(length))
        assert reached.wait(WAIT)
        while moment == "body" and b"hello" not in wire.buffer:
            assert wire.more()
    until(lambda: ends)
    assert ends == ["reset"]


# --- a page with many cameras -----------------------------------------------------------------------------------------
CAMERAS = 9
SHOW = """([path, count]) => {
  for (let n = 0; n < count; n += 1) {
    const picture = document.createElement("img");
    picture.src = path + "&n=" + n;
    document.body.append(picture);
  }
}"""
SHOWN = "() => [...document.images].filter((picture) => picture.naturalWidth > 0).length"
TALK = """(path) => new Promise((resolve, reject) => {
  const socket = new WebSocket(location.origin.replace("http", "ws") + path);
  socket.onerror = () => reject(new Error("error"));
  socket.onopen = () => socket.send("a word");
  socket.onmessage = (event) => { resolve(event.data); socket.close(); };
})"""


FETCH = """([path, token]) => fetch(path, {headers: {Authorization: "Bearer " + token}})
  .then((answer) => answer.text()).catch(() => "cut")"""


def die(peer: Peer) -> bool:
    """Break off within a body."""
    peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    time.sleep(0.2)  # it is on its way to the page
    reset(peer.sock)
    return False


@pytest.mark.browser
@pytest.mark.parametrize(("tls", "shown", "protocol"), [(True, CAMERAS, "h2"), (False, 6, "http/1.1")])
def test_how_many_cameras_a_page_shows_at_once(
    site: Site, browser: Browser, tmp_path: Path, free_port: Callable[[], int], tls: bool, shown: int, protocol: str
) -> None:
    """By the front end's own URLs. A WebSocket is a connection beside the pictures', by HTTP/1.1, either way."""
    ports = (site.stack.port, site.stack.tunnel_port)
    with running(tmp_path, free_port(), api=ports[0], tunnels=[ports[1]], tls=tls) as nginx:
        context = browser.new_context(ignore_https_errors=True, bypass_csp=True)
        page = context.new_page()
        page.goto(f"http{'s' * tls}://127.0.0.1:{nginx.port}/healthz")
        assert page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol") == protocol
        site.box.on("/dies", die)
        for path, told in (("/whole", f'["Host", "127.0.0.1:{nginx.port}"]'), ("/dies", "cut")):
            assert told in page.evaluate(FETCH, [site.prefixes()[0] + path, site.stack.token])
        wanted = {"device_id": site.demo_device, "path_prefix": "/api/cameras", "reusable": True}
        ticket = site.stack.call("POST", "/api/ws/ticket", wanted).data["ticket"]
        path = f"/api/cameras/0/stream?device_id={site.demo_device}&ticket={ticket}"
        page.evaluate(SHOW, [path, CAMERAS])
        eventually(lambda: page.evaluate(SHOWN) >= shown, 20, "the pictures are there")
        once = site.stack.call("POST", "/api/ws/ticket", {"device_id": site.demo_device}).data["ticket"]
        assert page.evaluate(TALK, f"/ws/inference?mode=echo&ticket={once}") == "a word"
        assert page.evaluate(SHOWN) == shown
        context.close()
