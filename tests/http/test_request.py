"""The request side: what of a client's head reaches the box, and what is refused."""

from __future__ import annotations

import pytest

from tests.http.helpers import DEVICE, MOUNT, head, sent_fields, via
from tunnel.http import CHUNKED, METHODS, Exchange, Field, Limits, ProxyError, RequestHead


def exchange(*fields: Field, method: bytes = b"GET", **facts: object) -> Exchange:
    return Exchange(head(method, b"/x", *fields), via(**facts))


OURS = [
    (b"X-Forwarded-For", b"192.0.2.7"),
    (b"X-Forwarded-Proto", b"http"),
    (b"X-Forwarded-Host", b"cloud"),
    (b"X-Request-ID", b"req_1"),
]


def test_the_whole_head() -> None:
    request = head(
        b"GET",
        MOUNT + b"/a%2Fb/?ticket=t&b=1",
        (b"Accept", b"*/*"),
        (b"X-Twice", b"1"),
        (b"x-twice", b"2"),
        (b"X_Under_Score", b"3"),
        (b"X-Empty", b""),
        (b"X-Bytes", b"\xe4\xff"),
    )
    sent = Exchange(request, via(mount=MOUNT, traceparent="00-aa-bb-01")).start()
    assert sent == (
        b"GET /a%2Fb/?b=1 HTTP/1.1\r\nHost: cloud\r\nAccept: */*\r\nX-Twice: 1\r\nx-twice: 2\r\nX_Under_Score: 3\r\n"
        b"X-Empty: \r\nX-Bytes: \xe4\xff\r\nX-Forwarded-For: 192.0.2.7\r\nX-Forwarded-Proto: http\r\n"
        b"X-Forwarded-Host: cloud\r\nX-Forwarded-Prefix: " + MOUNT + b"\r\nX-Request-ID: req_1\r\n"
        b"traceparent: 00-aa-bb-01\r\n\r\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        b"Authorization",
        b"Cookie",
        b"Proxy-Authorization",
        b"Proxy-Connection",
        b"PROXY-anything",
        b"X-Device-Id",
        b"Keep-Alive",
        b"TE",
        b"Trailer",
        b"Upgrade",
        b"HTTP2-Settings",
        b"X-Request-ID",
        b"traceparent",
        b"X-Forwarded-For",
        b"X-Forwarded-Proto",
        b"X-Forwarded-Host",
        b"X-Forwarded-Port",
        b"X-Forwarded-Anything",
        b"Forwarded",
        b"X_Forwarded_For",
        b"X_Device_Id",
        b"Proxy_Authorization",
        b"Content_Length",
        b"Transfer_Encoding",
    ],
)
@pytest.mark.parametrize("spelling", [bytes.lower, bytes.upper, bytes])
def test_what_stays_behind(name: bytes, spelling: type[bytes]) -> None:
    sent = sent_fields(exchange((spelling(name), b"secret"), (b"X-Kept", b"1")))
    assert sent == [(b"Host", b"cloud"), (b"X-Kept", b"1"), *OURS]


@pytest.mark.parametrize(
    "name",
    [b"X-Forward", b"X-Real", b"Origin", b"Referer", b"Accept", b"Range", b"If-Match", b"Via", b"Proxy", b"DNT"],
)
def test_what_passes(name: bytes) -> None:
    assert (name, b"v") in sent_fields(exchange((name, b"v")))


def test_fields_named_in_connection_stay_behind() -> None:
    sent = sent_fields(
        exchange(
            (b"X-One", b"1"),
            (b"Connection", b"x-one, keep-alive"),
            (b"Connection", b" ,X-TWO ,"),
            (b"X-Two", b"2"),
            (b"X-Three", b"3"),
        )
    )
    assert sent == [(b"Host", b"cloud"), (b"X-Three", b"3"), *OURS]


def test_connection_cannot_take_away_framing_or_host() -> None:
    sent = exchange(
        (b"Connection", b"content-length, host, transfer-encoding"), (b"Content-Length", b"3"), method=b"POST"
    )
    assert (b"Content-Length", b"3") in sent_fields(sent)
    assert (b"Host", b"cloud") in sent_fields(sent)


def test_a_trusted_proxy_keeps_its_word_and_is_appended() -> None:
    sent = sent_fields(
        exchange(
            (b"X-Forwarded-For", b"203.0.113.9"),
            (b"X-Forwarded-For", b"203.0.113.10"),
            (b"X-Forwarded-Proto", b"https"),
            (b"X-Forwarded-Host", b"public.example"),
            (b"X-Forwarded-Port", b"443"),
            (b"Forwarded", b"for=203.0.113.9"),
            trusted=True,
        )
    )
    assert sent == [
        (b"Host", b"cloud"),
        (b"X-Forwarded-Port", b"443"),
        (b"Forwarded", b"for=203.0.113.9"),
        (b"X-Forwarded-For", b"203.0.113.9, 203.0.113.10, 192.0.2.7"),
        (b"X-Forwarded-Proto", b"https"),
        (b"X-Forwarded-Host", b"public.example"),
        (b"X-Request-ID", b"req_1"),
    ]


@pytest.mark.parametrize(
    "host", [b"cloud", b"cloud.example:3721", b"[::1]:80", b"192.0.2.1", b"", b"a_b.example", b"x:"]
)
def test_host_passes_as_sent(host: bytes) -> None:
    assert sent_fields(Exchange(head(host=host), via()))[0] == (b"Host", host)


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"Host", b"a"), (b"Host", b"a")],
        [(b"Host", b"a"), (b"host", b"b")],
        [(b"Host", b"a b")],
        [(b"Host", b"a/b")],
        [(b"Host", b"user@a")],
        [(b"Host", b"a,b")],
        [(b"Host", b"a:port")],
        [(b"Host", b"a:123456")],
        [(b"Host", b"\xe4")],
    ],
)
def test_a_doubtful_host_is_refused(fields: list[Field]) -> None:
    with pytest.raises(ProxyError) as caught:
        Exchange(RequestHead.unchecked(b"GET", b"/x", fields, http11=True), via())
    assert caught.value.status == 400


def test_http10_may_come_without_a_host() -> None:
    assert sent_fields(Exchange(head(host=None, http11=False), via()))[0] == (b"Host", b"localhost")


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ((b"X Y", b"1"), "space in name"),
        ((b"", b"1"), "empty name"),
        ((b"X:", b"1"), "colon"),
        ((b"X\r\nY", b"1"), "break in name"),
        ((b"X\xe4", b"1"), "byte over 7e in name"),
        ((b"X", b"a\r\nY: 1"), "break in value"),
        ((b"X", b"a\rb"), "bare CR"),
        ((b"X", b"a\nb"), "bare LF"),
        ((b"X", b"a\0b"), "NUL"),
        ((b"X", b"a\x7f"), "DEL"),
        ((b"X", b"a\n"), "LF at the end"),
    ],
)
def test_header_injection_is_refused(field: Field, name: str) -> None:
    with pytest.raises(ProxyError) as caught:
        head(b"GET", b"/x", field)
    assert caught.value.code == "BAD_REQUEST", name


def test_a_break_is_refused_even_where_nobody_checked() -> None:
    for raw in (
        RequestHead(b"GET", b"/x", [(b"Host", b"a"), (b"X", b"1\r\nY: 2")], True),
        RequestHead(b"GET", b"/x", [(b"Host", b"a"), (b"X", b"1\nY: 2")], True),
        RequestHead(b"GET", b"/x", [(b"Host", b"a"), (b"X\r", b"1")], True),
    ):
        with pytest.raises(ProxyError):
            Exchange(raw, via())


# --- framing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "fields", "length", "sent"),
    [
        (b"GET", [], 0, []),
        (b"GET", [(b"Content-Length", b"0")], 0, []),
        (b"POST", [], 0, [(b"Content-Length", b"0")]),
        (b"PUT", [(b"Content-Length", b"5")], 5, [(b"Content-Length", b"5")]),
        (b"PUT", [(b"content-length", b"0005 ")], 5, [(b"Content-Length", b"5")]),
        (b"GET", [(b"Content-Length", b"5")], 5, [(b"Content-Length", b"5")]),
        (b"POST", [(b"Transfer-Encoding", b"Chunked")], CHUNKED, [(b"Transfer-Encoding", b"chunked")]),
        (b"POST", [(b"Content-Length", b"%d" % (1 << 30))], 1 << 30, [(b"Content-Length", b"%d" % (1 << 30))]),
    ],
)
def test_framing(method: bytes, fields: list[Field], length: int, sent: list[Field]) -> None:
    made = exchange(*fields, method=method)
    assert made.request.body_length == length
    framing = [field for field in sent_fields(made) if field[0] in (b"Content-Length", b"Transfer-Encoding")]
    assert framing == sent


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([(b"Content-Length", b"4"), (b"Transfer-Encoding", b"chunked")], 400),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"4")], 400),
        ([(b"Content-Length", b"4"), (b"Content-Length", b"4")], 400),
        ([(b"Content-Length", b"4"), (b"content-length", b"5")], 400),
        ([(b"Content-Length", b"4, 4")], 400),
        ([(b"Content-Length", b"+4")], 400),
        ([(b"Content-Length", b"-4")], 400),
        ([(b"Content-Length", b"0x4")], 400),
        ([(b"Content-Length", b"4_0")], 400),
        ([(b"Content-Length", b"")], 400),
        ([(b"Content-Length", b"\xb2")], 400),
        ([(b"Content-Length", b"9" * 30)], 400),
        ([(b"Content-Length", b"%d" % ((1 << 30) + 1))], 413),
        ([(b"Transfer-Encoding", b"gzip")], 400),
        ([(b"Transfer-Encoding", b"gzip, chunked")], 400),
        ([(b"Transfer-Encoding", b"chunked, chunked")], 400),
        ([(b"Transfer-Encoding", b"identity")], 400),
        ([(b"Transfer-Encoding", b"xchunked")], 400),
        ([(b"Transfer-Encoding", b"")], 400),
        ([(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], 400),
        ([(b"Transfer-Encoding", b"chunked"), (b"transfer-encoding", b"identity")], 400),
        ([(b"Expect", b"200-ok")], 400),
    ],
)
def test_a_doubtful_body_is_refused(fields: list[Field], status: int) -> None:
    with pytest.raises(ProxyError) as caught:
        exchange(*fields, method=b"POST")
    assert caught.value.status == status


def test_chunks_of_http10_are_refused() -> None:
    with pytest.raises(ProxyError):
        Exchange(head(b"POST", b"/x", (b"Transfer-Encoding", b"chunked"), http11=False), via())


@pytest.mark.parametrize(
    ("fields", "http11", "expects"),
    [
        ([(b"Expect", b"100-Continue"), (b"Content-Length", b"3")], True, True),
        ([(b"Expect", b"100-continue"), (b"Transfer-Encoding", b"chunked")], True, True),
        ([(b"Expect", b"100-continue")], True, False),
        ([(b"Expect", b"100-continue"), (b"Content-Length", b"3")], False, False),
        ([(b"Content-Length", b"3")], True, False),
    ],
)
def test_expect_is_ours_to_answer(fields: list[Field], http11: bool, expects: bool) -> None:
    made = Exchange(head(b"POST", b"/x", *fields, http11=http11), via())
    assert made.request.expects_continue is expects
    assert not any(name.lower() == b"expect" for name, _ in sent_fields(made))


@pytest.mark.parametrize(
    ("fields", "http11", "keep"),
    [
        ([], True, True),
        ([(b"Connection", b"close")], True, False),
        ([(b"Connection", b"x, Close")], True, False),
        ([(b"Connection", b"keep-alive")], True, True),
        ([], False, False),
        ([(b"Connection", b"Keep-Alive")], False, True),
    ],
)
def test_the_client_says_whether_it_stays(fields: list[Field], http11: bool, keep: bool) -> None:
    assert Exchange(head(b"GET", b"/x", *fields, http11=http11), via()).request.client_keep_alive is keep


def test_close_towards_the_box() -> None:
    assert sent_fields(exchange(close=True))[-1] == (b"Connection", b"close")


def test_methods() -> None:
    for method in METHODS:
        assert exchange(method=method).start().startswith(method + b" /x HTTP/1.1\r\n")
    for method in (b"CONNECT", b"get", b"FOO", b"", b"GET /evil", b"PRI"):
        with pytest.raises(ProxyError) as caught:
            exchange(method=method)
        assert caught.value.status == 405


# --- upgrades ---------------------------------------------------------------------------------------------------------

WEBSOCKET = [
    (b"Connection", b"keep-alive, Upgrade"),
    (b"Upgrade", b"WebSocket"),
    (b"Sec-WebSocket-Key", b"k"),
    (b"Sec-WebSocket-Protocol", b"a, b"),
]


def test_an_upgrade_passes_where_the_lane_can_carry_it() -> None:
    made = exchange(*WEBSOCKET, upgrade=True)
    assert made.request.upgrade == b"websocket"
    assert sent_fields(made)[-2:] == [(b"Connection", b"Upgrade"), (b"Upgrade", b"WebSocket")]
    assert (b"Sec-WebSocket-Key", b"k") in sent_fields(made)


def test_an_upgrade_is_dropped_elsewhere() -> None:
    made = exchange(*WEBSOCKET)
    assert made.request.upgrade == b""
    assert not {b"Connection", b"Upgrade"} & {name for name, _ in sent_fields(made)}


def test_an_upgrade_needs_both_fields_and_no_body() -> None:
    assert exchange((b"Upgrade", b"websocket"), upgrade=True).request.upgrade == b""
    assert exchange((b"Connection", b"upgrade"), upgrade=True).request.upgrade == b""
    assert Exchange(head(b"GET", b"/x", *WEBSOCKET, http11=False), via(upgrade=True)).request.upgrade == b""
    with pytest.raises(ProxyError):
        exchange(*WEBSOCKET, (b"Content-Length", b"1"), upgrade=True)


def test_a_device_named_in_a_header_or_query_never_reaches_the_box() -> None:
    made = Exchange(head(b"GET", f"/x?device_id={DEVICE}".encode(), (b"X-Device-Id", DEVICE.encode())), via())
    assert DEVICE.encode() not in made.start()
    assert made.request.own.device_id == DEVICE


def test_a_table_of_names_stays_bounded() -> None:
    for number in range(4000):
        exchange((b"X-Made-Up-%d" % number, b"1"))
    sent = sent_fields(exchange((b"X-Another", b"1"), (b"cOOkie", b"secret")))
    assert sent == [(b"Host", b"cloud"), (b"X-Another", b"1"), *OURS]


def test_a_body_reader_for_raw_bytes() -> None:
    limits = Limits()
    assert exchange().request.body_reader(limits).done
    reader = exchange((b"Content-Length", b"2"), method=b"POST").request.body_reader()
    assert reader.feed(b"hi") == [b"hi"]
    reader = exchange((b"Transfer-Encoding", b"chunked"), method=b"POST").request.body_reader()
    assert b"".join(reader.feed(b"2\r\nhi\r\n0\r\n\r\n")) == b"hi"
    assert reader.done
