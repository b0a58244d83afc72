"""Heads as raw bytes: which are read, which are refused, and how a body's reader follows them."""

from __future__ import annotations

import pytest

from tests.http.helpers import DELIVERIES, Delivery, feed_all, head
from tunnel.http import ProxyError, RequestParser


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n"])
def test_a_raw_head_is_read(before: bytes, delivery: Delivery) -> None:
    raw = b"POST /a%2Fb?x HTTP/1.1\r\nHost: a\r\nX_y: 1\r\nX-Y:2\r\nContent-Length: 2\r\n\r\n"
    parser = RequestParser()
    assert not parser.started
    results = [parser.feed(part) for part in delivery(before + raw)]
    assert results[-1] is parser.head is not None
    assert parser.head == (
        b"POST",
        b"/a%2Fb?x",
        [(b"Host", b"a"), (b"X_y", b"1"), (b"X-Y", b"2"), (b"Content-Length", b"2")],
        True,
    )
    assert parser.rest == b""
    tailed = RequestParser()
    assert tailed.feed(before + raw + b"hiGET / HTTP/1.1\r\n") == parser.head
    assert tailed.rest == b"hiGET / HTTP/1.1\r\n"


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("target", "host", "read"),
    [
        (b"http://cloud/x?y", b"cloud", b"/x?y"),
        (b"HTTP://Cloud:80/x", b"cloud", b"/x"),
        (b"http://cloud/x", b"cloud:80", b"/x"),
        (b"https://cloud/x", b"cloud:443", b"/x"),
        (b"http://my_cloud:3800", b"my_cloud:3800", b"/"),
        (b"http://[::1]:3800?a", b"[::1]:3800", b"/?a"),
        (b"http://cloud//x", b"cloud", b"//x"),
        ("http://cloud/相機".encode(), b"cloud", "/相機".encode()),
        ("/相機?q=ä".encode(), b"cloud", "/相機?q=ä".encode()),
    ],
)
def test_targets_that_other_servers_take(target: bytes, host: bytes, read: bytes, delivery: Delivery) -> None:
    parser = RequestParser()
    for part in delivery(b"GET %b HTTP/1.1\r\nHost: %b\r\nX: 1\r\n\r\n" % (target, host)):
        parser.feed(part)
    assert parser.head == (b"GET", read, [(b"Host", host), (b"X", b"1")], True)


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://other/ HTTP/1.1\r\nHost: cloud",
        b"GET http://cloud:81/ HTTP/1.1\r\nHost: cloud",
        b"GET https://cloud:80/ HTTP/1.1\r\nHost: cloud",
        b"GET http://cloud@other/ HTTP/1.1\r\nHost: cloud",
        b"GET http://user@cloud/ HTTP/1.1\r\nHost: cloud",
        b"GET http:///x HTTP/1.1\r\nHost:",
        b"GET ftp://cloud/ HTTP/1.1\r\nHost: cloud",
        b"GET cloud/ HTTP/1.1\r\nHost: cloud",
        b"GET http://cloud/#a HTTP/1.1\r\nHost: cloud",
        b"GET http://cloud/a b HTTP/1.1\r\nHost: cloud",
        b"GET http://cloud/ HTTP/1.1\r\nHost: cloud\r\nHost: cloud",
        b"GET http://cloud/ HTTP/1.1\r\nX: 1",
        b"GET http://cloud/\xff HTTP/1.1\r\nHost: cloud",
        b"GET /\xe4 HTTP/1.1\r\nHost: cloud",
        b"GET /\xc3\xa4\x7f HTTP/1.1\r\nHost: cloud",
        b"GET /\xc3\xa4 /x HTTP/1.1\r\nHost: cloud",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: cloud\r\nX : 1",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: cloud\r\nX: 1\n\nY: 2",
    ],
)
def test_targets_of_another_host_or_of_no_encoding(head: bytes) -> None:
    with pytest.raises(ProxyError) as caught:
        RequestParser().feed(head + b"\r\n\r\n")
    assert caught.value.status == 400


def test_an_upgrade_head_is_read() -> None:
    parser = RequestParser()
    read = parser.feed(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00")
    assert read is not None
    assert parser.rest == b"\x81\x00"


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\r\n" * 65536, 400),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\n\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding:\x0bchunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/0.9\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"G<T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"\x16\x03\x01\x00\xf1\x01\x00\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /" + b"a" * 40000, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 101 + b"\r\n", 431),
    ],
)
def test_a_bad_raw_head_is_refused(raw: bytes, status: int, delivery: Delivery) -> None:
    parser = RequestParser()
    with pytest.raises(ProxyError) as caught:
        feed_all(parser.feed, delivery(raw))
    assert caught.value.status == status
    assert parser.head is None


def test_the_largest_head_passes() -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\n"
    raw = start + b"X: " + b"a" * (32 * 1024 - len(start) - 7) + b"\r\n\r\n"
    assert len(raw) == 32 * 1024
    assert RequestParser().feed(raw) is not None
    fields = b"Host: a\r\n" + b"X: 1\r\n" * 99
    assert RequestParser().feed(b"GET / HTTP/1.1\r\n" + fields + b"\r\n") is not None
    with pytest.raises(ProxyError):
        RequestParser().feed(raw.replace(b"X: a", b"X: aa"))


def test_more_fields_than_allowed_from_another_parser() -> None:
    with pytest.raises(ProxyError) as caught:
        head(b"GET", b"/x", *[(b"X", b"1")] * 101)
    assert caught.value.code == "HEADERS_TOO_LARGE"
