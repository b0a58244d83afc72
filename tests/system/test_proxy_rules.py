"""api.md, "What the proxy must get right", rule by rule, over raw sockets against real processes and a scripted box.

The cases know only `lane`: where to connect, the prefix, the credential. So they hold for each lane alike. What is
refused is in `test_proxy_refusals`.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from dataclasses import replace

import pytest

from tests.apps.proxy.kit import WAIT, Got, Peer, reset, until
from tests.apps.proxy.stack import EVERY_WAY, Lane
from tests.http.answer_names import DROPPED, PASSES
from tunnel.contract import SECURITY_FIELDS

pytestmark = pytest.mark.system
pytest_plugins = ["tests.apps.proxy.fixtures"]
LANES = EVERY_WAY
SOON = 15.0
"""Seconds. It is one where nobody else is at work; any timeout of ours is longer than this."""

REQUEST_ID = "X-Request-ID: test-7.a_b"


# --- what passes unchanged --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"])
def test_method_path_query_and_body_pass(lane: Lane, method: str) -> None:
    body = b"\0\xffbytes"
    got = lane.ask(method, "/a%2Fb/./c;v=1//d?x=1&format=api&x=2&y=%20", body=body)
    assert (got.status, got.complete) == (200, True)
    said = got.json
    assert said["line"] == f"{method} /a%2Fb/./c;v=1//d?x=1&format=api&x=2&y=%20 HTTP/1.1"
    assert (said["size"], said["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())


def test_status_reason_and_repeated_fields_pass(lane: Lane) -> None:
    lane.box.on(
        "/odd",
        lambda peer: peer.answer(b"tea", "418 I'm a teapot", "X-Two: a", "X-Two: b", "Server: box/1", 'ETag: "x"'),
    )
    got = lane.ask("GET", "/odd")
    assert (got.status, got.reason, got.body) == (418, "I'm a teapot", b"tea")
    assert got.all("x-two") == ["a", "b"]
    assert (got.one("server"), got.one("etag")) == ("box/1", '"x"')


def test_request_fields_pass_and_ours_are_added(lane: Lane) -> None:
    got = lane.ask(
        "GET", "/f", REQUEST_ID, "X-Two: a", "X-Two: b", "Accept: text/x-odd", "X_Under: 1", "Accept-Encoding: br",
        "Cookie: a=b", "Proxy-Authorization: x", "X-Device-Id: " + lane.device_id,
        "X-Forwarded-For: 6.6.6.6", "X-Forwarded-Prefix: /evil", "Forwarded: for=6.6.6.6",
        "Connection: close, X-Drop", "X-Drop: 1", "TE: trailers",
        "traceparent: 00-" + "a" * 32 + "-" + "b" * 16 + "-01",
        close=False,
    )  # fmt: skip
    fields = [(name.lower(), value) for name, value in got.json["fields"]]
    names = [name for name, _ in fields]
    assert [value for name, value in fields if name == "x-two"] == ["a", "b"]
    assert ("accept", "text/x-odd") in fields
    assert ("accept-encoding", "br") in fields
    assert ("x-request-id", "test-7.a_b") in fields
    assert ("host", f"127.0.0.1:{lane.port}") in fields
    assert ("x-forwarded-for", "127.0.0.1") in fields
    assert ("x-forwarded-proto", "http") in fields
    assert [value for name, value in fields if name == "x-forwarded-prefix"] == [lane.prefix]
    for gone in ("authorization", "cookie", "proxy-authorization", "x-device-id", "forwarded", "x-drop", "te"):
        assert gone not in names
    (trace,) = [value for name, value in fields if name == "traceparent"]
    assert trace.startswith("00-" + "a" * 32 + "-")
    assert "b" * 16 not in trace
    assert got.one("x-request-id") == "test-7.a_b"


def test_our_own_query_parameters_are_taken_out(lane: Lane) -> None:
    """A box's own `access_token` passes (Home Assistant's is a JWT); ours does not, by whatever name it goes."""
    ours = f"device_id={lane.device_id}&ticket=t&access_token={lane.token}&access%5Ftoken=vAs_{'0' * 32}"
    said = lane.ask("GET", f"/q?a=1&{ours}&access_token=eyJh.eyJp.c2ln&device_id=cam&b").json
    assert said["line"] == "GET /q?a=1&access_token=eyJh.eyJp.c2ln&device_id=cam&b HTTP/1.1"


def test_what_a_client_says_of_itself_and_of_us_does_not_reach_a_box(lane: Lane) -> None:
    own = [
        "X-Real-IP",
        "True-Client-IP",
        "CF-Connecting-IP",
        "X-Client-IP",
        "X-Original-Forwarded-For",
        "X-Remote-Addr",
    ]
    own += ["X-VisionA-Device-Id", "X-VisionA-Anything", "X_VisionA_Box_Authorization"]
    page = f"http://127.0.0.1:{lane.port}{lane.prefix}/page"
    fields = [f"{name}: 6.6.6.6" for name in own]
    said = lane.ask("GET", "/x", *fields, f"Referer: {page}?a=1&ticket=secret&b#c").json["fields"]
    assert {name.lower() for name, _ in said} & {name.lower() for name in own} == set()
    assert ["Referer", f"{page}?a=1&b#c"] in said
    assert ["Referer", page] in lane.ask("GET", "/x", f"Referer: {page}?ticket=secret").json["fields"]


def test_a_credential_for_the_box(lane: Lane) -> None:
    """`X-VisionA-Box-Authorization` becomes the box's `Authorization`, whatever the client nominates."""
    with lane.wire() as wire:
        for number in range(6):  # on one connection: what is kept of heads must not hold it, nor lend it to others
            mine = f"Basic bWU6c2VjcmV0{number % 2}"
            fields = [f"X-VisionA-Box-Authorization: {mine}", "Connection: keep-alive, X-VisionA-Box-Authorization"]
            wire.send(lane.head("GET", "/x", *fields, "Connection: authorization"))
            said = wire.read().json["fields"]
            assert [value for name, value in said if name.lower() == "authorization"] == [mine]
            assert not [name for name, _ in said if name.lower().startswith("x-visiona-")]
            wire.send(lane.head("GET", "/x"))
            assert not [name for name, _ in wire.read().json["fields"] if name.lower() == "authorization"]
    assert "bWU6c2VjcmV0" not in lane.log()
    twice = ["X-VisionA-Box-Authorization: Basic YTph", "x-visiona-box-authorization: Basic YjpiCg=="]
    assert lane.ask("GET", "/x", *twice).code == "BAD_REQUEST"
    long = "X-VisionA-Box-Authorization: Basic " + "a" * 8187
    assert lane.ask("GET", "/x", long).code == "HEADERS_TOO_LARGE"
    assert lane.ask("GET", "/x", long[:-1]).status == 200
    assert lane.ask("GET", "/x", "X-VisionA-Box-Authorization:").json["size"] == 0


def test_whoever_shows_the_box_a_credential_shares_with_nobody(lane: Lane) -> None:
    """Not what a camera shows him, nor a connection that the box takes for his."""
    go_on, connections = threading.Event(), []

    def camera(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
        who = (peer.fields("authorization") or ["nobody"])[0].encode()
        peer.sock.sendall(b"--b\r\nContent-Length: %d\r\n\r\n%b\r\n--b\r\n" % (len(who), who))
        assert go_on.wait(WAIT)

    def note(peer: Peer) -> bool:
        connections.append(id(peer))
        peer.answer(b"x")
        return True

    lane.box.on("/camera", camera)
    lane.box.on("/note", note)
    with lane.wire() as first, lane.wire() as second, lane.wire() as third:
        for wire, who in ((first, "Basic bWU="), (second, ""), (third, "Basic eW91")):
            wire.send(lane.head("GET", "/camera", *([f"X-VisionA-Box-Authorization: {who}"] if who else [])))
            assert wire.read_head().status == 200
            until(lambda: (who or "nobody").encode() in wire.buffer or wire.more())  # noqa: B023 - used at once
        go_on.set()
    assert lane.ask("GET", "/note", "X-VisionA-Box-Authorization: Negotiate YQ==").status == 200
    assert lane.ask("GET", "/note").status == 200
    assert len(set(connections)) == 2


def security(got: Got) -> dict[str, list[str]]:
    return {name: got.all(name) for name, _ in SECURITY_FIELDS if got.all(name)}


def test_security_fields_are_the_same_on_every_lane(lane: Lane) -> None:
    lane.box.on("/page", lambda peer: peer.answer(b"x", "200 OK", "X-Frame-Options: ALLOWALL", "Referrer-Policy: a"))
    ours = {name: [value] for name, value in SECURITY_FIELDS}
    boxes = ours | {"Content-Security-Policy": ["sandbox"]}
    del boxes["Cross-Origin-Opener-Policy"]  # a sandboxed page that has one is not shown at all (HTML standard)
    assert security(lane.ask("GET", "/page")) == boxes
    with lane.wire() as wire:
        for _ in range(2):  # what is kept of a head says the same
            wire.send(lane.head("GET", "/page"))
            assert security(wire.read()) == boxes
    stranger = replace(lane, token="vAu_" + "0" * 32)
    refused = stranger.ask("GET", "/page")
    assert (refused.status, security(refused)) == (401, ours)
    preflight = lane.ask("OPTIONS", "/page", "Origin: http://front.example", "Access-Control-Request-Method: GET")
    assert (preflight.status, set(security(preflight))) == (200, set(ours))


OF_ALL = {
    "access-control-allow-origin", "connection", "content-length", "content-security-policy", "referrer-policy", "vary",
    "x-content-type-options", "x-frame-options", "x-request-id", "cache-control",
}  # fmt: skip
OF_OURS = OF_ALL | {"cross-origin-opener-policy", "date"}


def test_every_way_adds_the_same_fields(lane: Lane) -> None:
    """To what a box says, to a refusal, to a preflight; and none that only one way knows."""
    asked = ["Accept-Language: zh-Hant", "Origin: http://front.example"]
    lane.box.on("/plain", lambda peer: peer.answer(b"x", "200 OK", "Content-Type: text/plain"))
    said = lane.ask("GET", "/plain", *asked)
    assert {name.lower() for name, _ in said.fields} == OF_ALL | {"content-type", "access-control-expose-headers"}
    preflight = lane.ask("OPTIONS", "/plain", "Access-Control-Request-Method: GET", *asked)
    told = {name.lower() for name, _ in preflight.fields}
    assert told == OF_OURS | {"access-control-allow-methods", "access-control-max-age"}
    stranger = replace(lane, token="vAu_" + "0" * 32)
    refused = stranger.ask("GET", "/plain", *asked)
    told = {name.lower() for name, _ in refused.fields}
    own = {"content-type", "access-control-expose-headers", "content-language", "www-authenticate"}
    assert told == OF_OURS | own
    assert (refused.one("content-language"), refused.one("www-authenticate")) == ("zh-hant", 'Bearer realm="visiona"')
    assert refused.one("vary") == "Origin, Accept-Language"
    assert {got.one("content-security-policy") for got in (preflight, refused)} == {
        "default-src 'none'; frame-ancestors 'none'"
    }
    lane.box.close()
    (broken,) = [lane.ask("GET", "/plain")]
    assert (broken.status, broken.one("content-language"), broken.all("www-authenticate")) == (502, "en", [])


def test_what_an_answer_may_not_say_is_dropped_and_ours_is_added(lane: Lane) -> None:
    lane.box.on(
        "/bad",
        lambda peer: peer.answer(
            b"", "200 OK", "Set-Cookie: a=b", "Clear-Site-Data: *", "Strict-Transport-Security: max-age=1",
            "Service-Worker-Allowed: /", "Access-Control-Allow-Origin: *", "Connection: keep-alive, X-Hop", "X-Hop: 1",
            "Cache-Control: max-age=5", "Vary: Accept",
        ),
    )  # fmt: skip
    got = lane.ask("GET", "/bad", "Origin: http://front.example")
    names = [name.lower() for name, _ in got.fields]
    for gone in ("set-cookie", "clear-site-data", "strict-transport-security", "service-worker-allowed", "x-hop"):
        assert gone not in names
    assert got.one("access-control-allow-origin") == "http://front.example"
    assert got.one("access-control-expose-headers") == "X-Request-ID"
    assert got.all("content-security-policy") == ["sandbox"]
    assert got.all("x-content-type-options") == ["nosniff"]
    assert got.all("cache-control") == ["max-age=5, private"]
    assert sorted(", ".join(got.all("vary")).lower().split(", ")) == ["accept", "authorization", "origin"]
    assert len(got.all("x-request-id")) == 1


def test_each_field_of_an_answer_passes_or_does_not(lane: Lane) -> None:
    """The list of api.md, name by name. Ours may stand under a name that is dropped, but not with what the box said."""
    said = [name.decode() for name in (*PASSES, *DROPPED) if name not in (b"Content-Type", b"Date", b"Server")]
    lane.box.on("/all", lambda peer: peer.answer(b"", "200 OK", *[f"{name}: boxes" for name in said]))
    got = lane.ask("GET", "/all")
    told = [name for name, value in got.fields if value == "boxes"]
    assert told == [name for name in said if name.encode() in PASSES]


CACHED = {
    "max-age=5": "max-age=5, private",
    "public, max-age=5, s-maxage=9, must-revalidate, proxy-revalidate": "max-age=5, private",
    "no-store": "no-store",
    "private, max-age=5": "private, max-age=5",
    'private="x-a", max-age=5': "max-age=5, private",
    "no list, of = directives": "private",
    "": "private",
}
"""What a box says of caches, and what the client is told."""


def test_no_cache_that_many_share_may_keep_an_answer(lane: Lane) -> None:
    for number, (said, told) in enumerate(CACHED.items()):
        fields = [f"Cache-Control: {said}", "Vary: Accept, authorization"]
        lane.box.on(f"/{number}", lambda peer, fields=fields: peer.answer(b"", "200 OK", *fields))
        got = lane.ask("GET", f"/{number}")
        assert got.all("cache-control") == [told], said
        assert ", ".join(got.all("vary")).lower().count("authorization") == 1


@pytest.mark.parametrize("inbound", ["a b", "x" * 65, "a/b", "\xe4"])
def test_a_request_id_that_is_none_is_replaced(lane: Lane, inbound: str) -> None:
    got = lane.ask("GET", "/x", f"X-Request-ID: {inbound}")
    (made,) = got.all("x-request-id")
    assert re.fullmatch("req_[0-9a-f]{20}", made)
    assert ["X-Request-ID", made] in got.json["fields"]


def test_a_preflight_is_ours_and_never_forwarded(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(
            f"OPTIONS {lane.prefix}/x HTTP/1.1\r\nHost: h\r\nOrigin: http://front.example\r\n"
            "Access-Control-Request-Method: PUT\r\nConnection: close\r\n\r\n".encode()
        )
        got = wire.read()
    assert (got.status, got.one("access-control-allow-origin")) == (200, "http://front.example")
    assert lane.box.heads == []


PAGES = ["http://front.example", "http://tunnel.example", "http://localhost:5173", "http://[::1]:8000"]
"""That are listed, of the site's own, and in development of any local server."""


@pytest.mark.parametrize("page", [*PAGES, "http://evil.example", "null"])
def test_a_page_may_send_a_box_what_it_knows_and_read_what_it_says(lane: Lane, page: str) -> None:
    asked = ["Access-Control-Request-Method: PROPFIND", "Access-Control-Request-Headers: authorization,upload-offset"]
    preflight = lane.ask("OPTIONS", "/x", f"Origin: {page}", *asked)
    assert preflight.status == 200
    assert lane.box.heads == []
    told = {name.lower(): value for name, value in preflight.fields if name.lower().startswith("access-control-")}
    may = page in PAGES
    assert told.pop("access-control-max-age", "") == ("86400" if may else "")
    assert told == (
        {
            "access-control-allow-origin": page,
            "access-control-allow-methods": "PROPFIND",
            "access-control-allow-headers": "authorization,upload-offset",
        }
        if may
        else {}
    )
    said = [
        "Upload-Offset: 5",
        "X-Odd: 1",
        "Content-Type: text/plain",
        "ETag: x",
        "Access-Control-Expose-Headers: evil",
    ]
    lane.box.on("/up", lambda peer: peer.answer(b"x", "200 OK", *said) or True)
    with lane.wire() as wire:
        for _ in range(4):  # the ways in few steps say the same as the long one
            wire.send(lane.head("GET", "/up", f"Origin: {page}"))
            got = wire.read()
            assert got.all("access-control-allow-origin") == ([page] if may else [])
            assert not got.all("access-control-allow-credentials")
            exposed = {
                name.strip().lower() for value in got.all("access-control-expose-headers") for name in value.split(",")
            }
            assert exposed == ({"x-request-id", "upload-offset", "x-odd", "etag"} if may else set())
    lane.box.on("/go", lambda peer: peer.answer(b"", "302 Found", "Location: /x", "Link: </y>"))
    led = lane.ask("GET", "/go", f"Origin: {page}").all("access-control-expose-headers")
    assert led == (["X-Request-ID, Location, Link"] if may else [])
    lane.token = ""
    refused = lane.ask("GET", "/up", f"Origin: {page}")
    assert (refused.status, refused.all("access-control-allow-origin")) == (401, [page] if may else [])
    assert ("Retry-After" in "".join(refused.all("access-control-expose-headers"))) == may


def test_a_root_relative_location_gets_the_prefix(lane: Lane) -> None:
    lane.box.on("/go", lambda peer: peer.answer(b"", "302 Found", "Location: /there?x=/y"))
    lane.box.on("/away", lambda peer: peer.answer(b"", "302 Found", "Location: https://else.example/"))
    assert lane.ask("GET", "/go").one("location") == f"{lane.prefix}/there?x=/y"
    assert lane.ask("GET", "/away").one("location") == "https://else.example/"


# --- where a message ends ---------------------------------------------------------------------------------------------
def test_head_204_and_304_have_no_body(lane: Lane) -> None:
    lane.box.on("/h", lambda peer: peer.answer(b"12345") if peer.method == "GET" else peer.sock.sendall(
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"))  # fmt: skip
    lane.box.on("/204", lambda peer: peer.sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n"))
    lane.box.on(
        "/304", lambda peer: peer.sock.sendall(b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 9\r\n\r\n")
    )
    with lane.wire() as wire:  # one connection: each answer must end where it ends
        for method, path, status in (
            ("HEAD", "/h", 200),
            ("GET", "/204", 204),
            ("GET", "/304", 304),
            ("GET", "/h", 200),
        ):
            wire.send(lane.head(method, path))
            got = wire.read(head_only=method == "HEAD")
            assert (got.status, got.complete, wire.buffer) == (status, True, b"")
            if path == "/h":
                assert got.one("content-length") == "5"
        assert got.body == b"12345"


def test_chunks_pass_and_trailers_and_interim_answers_do_not(lane: Lane) -> None:
    def chunked(peer: Peer) -> None:
        peer.sock.sendall(
            b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\n5\r\ndefgh\r\n0\r\nX-Trailer: 1\r\n\r\n"
        )

    lane.box.on("/chunked", chunked)
    got = lane.ask("GET", "/chunked")
    assert (got.status, got.body, got.complete) == (200, b"abcdefgh", True)
    assert b"trailer" not in got.head.lower()
    assert not got.all("link")


def test_a_chunked_request_passes_as_one(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/c", "Transfer-Encoding: chunked", "Trailer: X-T") + b"4\r\nab")
        wire.send(b"cd\r\n3\r\nefg\r\n0\r\nX-T: 1\r\n\r\n")
        wire.send(lane.head("GET", "/next"))
        first, second = wire.read(), wire.read()
    assert first.json["sha256"] == hashlib.sha256(b"abcdefg").hexdigest()
    assert ["Transfer-Encoding", "chunked"] in first.json["fields"]
    assert second.json["line"] == "GET /next HTTP/1.1"


def test_an_answer_of_http_1_0_ends_by_closing(lane: Lane) -> None:
    lane.box.on("/old", lambda peer: peer.sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nuntil the end"))
    got = lane.ask("GET", "/old")
    assert (got.body, got.complete) == (b"until the end", True)


def test_a_client_of_http_1_0_is_served(lane: Lane) -> None:
    lane.box.on("/s", lambda peer: peer.sock.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"))  # fmt: skip
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/s").replace(b"HTTP/1.1", b"HTTP/1.0"))
        got = wire.read()
    assert not got.all("transfer-encoding")
    assert (got.body, got.complete) == (b"abc", True)


def test_expect_100_continue(lane: Lane) -> None:
    with lane.wire() as wire:
        wire.send(lane.head("PUT", "/up", "Content-Length: 4", "Expect: 100-continue"))
        assert wire.read_head().status == 100
        wire.send(b"data")
        got = wire.read()
        assert (got.status, got.json["size"]) == (200, 4)
        wire.send(lane.head("GET", "/next"))
        assert wire.read().json["line"] == "GET /next HTTP/1.1"
    assert b"expect" not in lane.box.heads[0].lower()


@pytest.mark.parametrize(
    "said",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
    ],
)
@pytest.mark.parametrize("version", [b"HTTP/1.1", b"HTTP/1.0"])
def test_an_upstream_that_dies_within_the_body_does_not_look_complete(lane: Lane, said: bytes, version: bytes) -> None:
    lane.box.on("/cut", lambda peer: peer.sock.sendall(said))
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/cut").replace(b"HTTP/1.1", version))
        got = wire.read()
        assert (got.status, got.complete) == (200, False)
        assert got.ended == "reset"


def test_a_body_that_breaks_its_framing_does_not_look_complete(lane: Lane) -> None:
    head_read = threading.Event()

    def nonsense(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n")
        assert head_read.wait(WAIT)
        peer.sock.sendall(b"nonsense\r\n")
        peer.wait_gone()

    lane.box.on("/cut", nonsense)
    lane.box.on("/at-once", lambda peer: peer.sock.sendall(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"))  # fmt: skip
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/cut"))
        assert wire.read_head().status == 200
        head_read.set()
        assert wire.wait_end() == "reset"
    assert lane.ask("GET", "/at-once").code == "AGENT_BAD_RESPONSE"  # nothing was told yet, so it can be


def test_a_daemon_that_dies_within_a_body_without_length_does_not_look_complete(lane: Lane) -> None:
    def endless(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.0 200 OK\r\n\r\nsome")
        peer.wait_gone()

    lane.box.on("/endless", endless)
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/endless").replace(b"HTTP/1.1", b"HTTP/1.0"))
        wire.read_head()
        until(lambda: wire.buffer == b"some" or wire.more())
        died_at = time.monotonic()
        lane.cut_tunnel()
        assert wire.wait_end() == "reset"
        assert time.monotonic() - died_at < SOON


# --- streaming --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["text/event-stream", "multipart/x-mixed-replace; boundary=b"])
def test_the_first_byte_is_out_as_soon_as_it_is_in(lane: Lane, kind: str) -> None:
    go_on = threading.Event()
    # parts that say their length: without it a part's end is known by the next one's beginning only
    before, after = (b"--b\r\nContent-Length: 9\r\n\r\n", b"\r\n") if "multipart" in kind else (b"", b"")

    def events(peer: Peer) -> None:
        peer.sock.sendall(f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\n\r\n".encode())
        for number in range(3):
            peer.sock.sendall(before + b"data: %d\n\n" % number + after)
            assert go_on.wait(WAIT)
            go_on.clear()

    lane.box.on("/events", events)
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/events"))
        got = wire.read_head()
        assert got.one("content-type") == kind
        for number in range(3):
            until(lambda: b"data: %d\n\n" % number in wire.buffer or wire.more())  # noqa: B023 - used at once
            go_on.set()
        until(lambda: b"0\r\n\r\n" in wire.buffer or wire.more())


def test_whoever_asks_for_all_of_a_stream_is_a_viewer_as_others_are(lane: Lane) -> None:
    """`Range: bytes=0-` is what ffmpeg and OpenCV send, whatever they open."""
    go_on = threading.Event()

    def camera(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n")
        peer.sock.sendall(b"--b\r\nContent-Length: 5\r\n\r\nframe\r\n--b\r\n")
        assert go_on.wait(WAIT)

    lane.box.on("/camera", camera)
    with lane.wire() as first, lane.wire() as second, lane.wire() as third:
        for wire, fields in ((first, ["Range: bytes=0-"]), (second, []), (third, ["range:  Bytes = 0-"])):
            wire.send(lane.head("GET", "/camera", *fields))
            assert wire.read_head().status == 200
            until(lambda: b"frame" in wire.buffer or wire.more())  # noqa: B023 - used at once
        assert len(lane.box.heads) == 1
        go_on.set()


def test_both_directions_at_once(lane: Lane) -> None:
    def mirror(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in peer.body():
            peer.sock.sendall(b"%x\r\n%b\r\n" % (len(part), part.upper()))
        peer.sock.sendall(b"0\r\n\r\n")

    lane.box.on("/mirror", mirror)
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/mirror", "Transfer-Encoding: chunked"))
        assert wire.read_head().status == 200  # before a byte of the body was sent
        for word in (b"one", b"two", b"three"):
            wire.send(b"%x\r\n%b\r\n" % (len(word), word))
            until(lambda: word.upper() in wire.buffer or wire.more())  # noqa: B023 - used at once
        wire.send(b"0\r\n\r\n")
        until(lambda: wire.buffer.endswith(b"0\r\n\r\n") or wire.more())


def test_the_box_rejects_within_the_upload(lane: Lane) -> None:
    def reject(peer: Peer) -> None:
        next(peer.body())
        peer.answer(b"no", "403 Forbidden", "Connection: close")

    lane.box.on("/reject", reject)
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/reject", "Content-Length: 50000000") + b"x" * 1000)
        got = wire.read()
        assert (got.status, got.body, got.one("connection")) == (403, b"no", "close")


# --- who leaves -------------------------------------------------------------------------------------------------------
def test_who_has_asked_and_ends_his_side_gets_his_answer(lane: Lane) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def answer(peer: Peer) -> None:
        asked.set()
        go_on.wait(WAIT)
        peer.answer(b"late")

    lane.box.on("/late", answer)
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/late", "Content-Length: 5") + b"12345")
        wire.sock.shutdown(socket.SHUT_WR)
        assert asked.wait(WAIT)
        go_on.wait(0.7)  # longer than between two looks at those who may have left
        go_on.set()
        assert wire.read().body == b"late"


def test_who_watches_what_has_no_end_leaves_by_ending_his_side(lane: Lane) -> None:
    gone = []

    def stream(peer: Peer) -> None:
        peer.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        gone.append(peer.wait_gone())

    lane.box.on("/events", stream)
    with lane.wire() as wire:
        wire.send(lane.head("GET", "/events"))
        assert wire.read_head().status == 200
        wire.sock.shutdown(socket.SHUT_WR)
        until(lambda: gone)


@pytest.mark.parametrize("moment", ["head", "body", "upload"])
def test_the_client_leaves_and_the_stream_is_reset_within_a_second(lane: Lane, moment: str) -> None:
    reached, gone = threading.Event(), []

    def wait(peer: Peer) -> None:
        if moment == "body":
            peer.sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nx")
        reached.set()
        gone.append((peer.wait_gone(), time.monotonic()))

    lane.box.on("/wait", wait)
    with lane.wire() as wire:
        length = ["Content-Length: 100000"] if moment == "upload" else []
        wire.send(lane.head("POST", "/wait", *length) + b"x" * len(length))
        assert reached.wait(WAIT)
        if moment == "body":
            wire.read_head()
        if moment != "upload":  # whose request is whole may end its side, and wait for the answer
            reset(wire.sock)
        left_at = time.monotonic()
    until(lambda: gone)
    assert gone[0][0] == "reset"
    assert gone[0][1] - left_at < SOON


def test_the_agent_leaves_and_the_client_has_its_answer_within_a_second(lane: Lane) -> None:
    reached = threading.Event()
    lane.box.on("/wait", lambda peer: (reached.set(), peer.wait_gone())[0])
    with lane.wire() as wire:
        wire.send(lane.head("POST", "/wait", "Content-Length: 0"))
        assert reached.wait(WAIT)
        left_at = time.monotonic()
        lane.cut_tunnel()
        got = wire.read()
        assert time.monotonic() - left_at < SOON
        assert (got.status, got.code) == (502, "AGENT_UNREACHABLE")
        wire.send(lane.head("GET", "/next"))  # the client's connection is none the worse
        assert wire.read().status in (200, 503)  # 503: a killed agent is not back yet
