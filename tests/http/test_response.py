"""The response side: honest and hostile boxes, each answer whole, byte by byte and in halves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http.helpers import DELIVERIES, Delivery, byte_by_byte, feed_all, read
from tunnel.http import NO_LENGTH, Field, MisuseError, ProxyError, ResponseReader
from tunnel.http.response import client_head

OK = b"HTTP/1.1 200 OK\r\n"
ADDED: list[Field] = [
    (b"Cache-Control", b"private"),
    (b"Vary", b"Authorization, Origin"),
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"same-origin"),
    (b"Content-Security-Policy", b"sandbox"),
]


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("raw", "method", "body", "length", "keep"),
    [
        (OK + b"Content-Length: 2\r\n\r\nhi", b"GET", b"hi", 2, True),
        (OK + b"Content-Length: 0\r\n\r\n", b"GET", b"", 0, True),
        (OK + b"content-length: 2 \r\nConnection: close\r\n\r\nhi", b"GET", b"hi", 2, False),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"GET", b"hi", NO_LENGTH, True),
        (OK + b"Transfer-Encoding: CHUNKED\r\n\r\n2;x\r\nhi\r\n0\r\nT: 1\r\n\r\n", b"GET", b"hi", NO_LENGTH, True),
        (OK + b"\r\nuntil the end", b"GET", b"until the end", NO_LENGTH, False),
        (b"HTTP/1.0 200 OK\r\n\r\nold", b"GET", b"old", NO_LENGTH, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nold", b"GET", b"old", 3, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\nConnection: Keep-Alive\r\n\r\nold", b"GET", b"old", 3, True),
        (OK + b"Content-Length: 5\r\n\r\n", b"HEAD", b"", 5, True),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b"HEAD", b"", NO_LENGTH, True),
        (OK + b"\r\n", b"HEAD", b"", NO_LENGTH, True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b"GET", b"", NO_LENGTH, True),
        (b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", b"GET", b"", NO_LENGTH, True),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b"GET", b"", 5, True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 2\r\n\r\nhi", b"PUT", b"hi", 2, True),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 3 + OK + b"\r\n", b"HEAD", b"", NO_LENGTH, True),
        (b"HTTP/1.1 102 P\n\n" + OK + b"Content-Length: 2\r\n\r\nhi", b"GET", b"hi", 2, True),
        (OK + b"Content-Length: 2\n\nhi", b"GET", b"hi", 2, True),
        (OK + b"Content-Length: 2\n\r\nhi", b"GET", b"hi", 2, True),
        (OK + b"Content-Length: 2\r\n\nhi", b"GET", b"hi", 2, True),
        (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", b"GET", b"hi", 2, True),
        (b"HTTP/1.1 200 OK\nA: b\nTransfer-Encoding : chunked\n\n2\r\nhi\r\n0\r\n\r\n", b"GET", b"hi", NO_LENGTH, True),
        (OK + b"Content-Length \t: 2\r\n\r\nhi", b"GET", b"hi", 2, True),
        (OK + b"A: b\n\nX: 1\r\n\r\n", b"GET", b"X: 1\r\n\r\n", NO_LENGTH, False),
        (OK + b"A: b\r\n" * 199 + b"Content-Length: 2\r\n\r\nhi", b"GET", b"hi", 2, True),
        (OK + b"A: " + b"b" * 65_000 + b"\r\nContent-Length: 2\r\n\r\nhi", b"GET", b"hi", 2, True),
    ],
)
def test_an_honest_answer(raw: bytes, method: bytes, body: bytes, length: int, keep: bool, delivery: Delivery) -> None:
    reader, seen, error = read(raw, delivery=delivery, method=method)
    assert error is None
    assert reader.head is not None
    assert (seen, reader.complete, reader.extra) == (body, True, False)
    assert (reader.head.length, reader.head.keep_alive) == (length, keep)


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        (b"HTTP/1.1 200 OK", 200, b"OK"),
        (b"HTTP/1.1 200", 200, b""),
        (b"HTTP/1.1 200 ", 200, b""),
        (b"HTTP/1.1 299 All \tis \xe4 well", 299, b"All \tis \xe4 well"),
        (b"HTTP/1.0 404 Gone fishing", 404, b"Gone fishing"),
        (b"HTTP/1.1 599 x", 599, b"x"),
    ],
)
def test_status_and_reason_pass(line: bytes, status: int, reason: bytes) -> None:
    reader, _, error = read(line + b"\r\nContent-Length: 0\r\n\r\n")
    assert error is None
    assert reader.head is not None
    assert (reader.head.status, reader.head.reason) == (status, reason)


HOSTILE = {
    "not HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "garbage": b"\x00\xff\x80" * 20,
    "HTTP/2": b"HTTP/2.0 200 OK\r\n\r\n",
    "HTTP/1.2": b"HTTP/1.2 200 OK\r\n\r\n",
    "ICY": b"ICY 200 OK\r\n\r\n",
    "lower case": b"http/1.1 200 OK\r\n\r\n",
    "a line before": b"\r\nHTTP/1.1 200 OK\r\n\r\n",
    "status of two digits": b"HTTP/1.1 99 X\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 X\r\n\r\n",
    "status 0": b"HTTP/1.1 000 X\r\n\r\n",
    "control byte in the reason": b"HTTP/1.1 200 O\x01K\r\n\r\n",
    "status 600": b"HTTP/1.1 600 X\r\n\r\n",
    "status 999": b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n",
    "folded behind a bare LF": OK + b"A: b\n c\r\n\r\n",
    "folded behind a blank before the colon": OK + b"A : b\r\n\tc\r\n\r\n",
    "blanks in a name": OK + b"A B : c\r\n\r\n",
    "bare CR beside a bare LF": OK + b"A: b\rC: d\nE: f\r\n\r\n",
    "CR CR LF": OK + b"A: b\r\r\n\r\n",
    "NUL beside a bare LF": OK + b"A: b\0\nC: d\r\n\r\n",
    "two lengths, one with a blank": OK + b"Content-Length: 2\r\nContent-Length : 3\r\n\r\nhi!",
    "length and chunks with a blank": OK + b"Content-Length: 2\nTransfer-Encoding : chunked\n\n0\r\n\r\n",
    "folded": OK + b"A: b\r\n c\r\n\r\n",
    "NUL": OK + b"A: b\0c\r\n\r\n",
    "bare CR": OK + b"A: b\rc\r\n\r\n",
    "no name": OK + b": b\r\n\r\n",
    "no colon": OK + b"A\r\n\r\n",
    "name over 7e": OK + b"\xe4: 1\r\n\r\n",
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!",
    "the same length twice": OK + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi",
    "a list of lengths": OK + b"Content-Length: 2, 2\r\n\r\nhi",
    "a signed length": OK + b"Content-Length: +2\r\n\r\nhi",
    "an empty length": OK + b"Content-Length: \r\n\r\nhi",
    "a huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\nhi",
    "length and chunks": OK + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and length": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n",
    "gzip": OK + b"Transfer-Encoding: gzip\r\n\r\n",
    "gzip, chunked": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "xchunked": OK + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unasked switch": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "201 fields": OK + b"A: b\r\n" * 201 + b"\r\n",
    "201 fields by bare LFs": OK + b"A: b\n" * 201 + b"\n",
    "a head without end": OK + b"A: " + b"b" * 70_000,
    "many small fields": OK + b"Aaa: bbbbbbbb\r\n" * 5000,
    "a storm of interim answers": b"HTTP/1.1 102 P\r\n\r\n" * 4097 + OK + b"\r\n",
}


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_bad_head_is_502(name: str, delivery: Delivery) -> None:
    reader, body, error = read(HOSTILE[name], delivery=delivery)
    assert isinstance(error, ProxyError)
    assert (error.code, error.status) == ("AGENT_BAD_RESPONSE", 502)
    assert (body, reader.head, reader.complete) == (b"", None, False)


def test_a_hundred_megabytes_of_head_are_not_kept() -> None:
    whole = ResponseReader(b"GET")
    with pytest.raises(ProxyError):
        whole.receive(OK + b"A: b\r\n" * 20_000)
    reader = ResponseReader(b"GET")
    taken: list[int] = []

    def parts() -> Iterator[bytes]:
        yield OK
        for _ in range(100_000):
            part = b"A: " + b"b" * 1000 + b"\r\n"
            taken.append(len(part))
            yield part

    with pytest.raises(ProxyError):
        feed_all(reader.receive, parts())
    assert sum(taken) <= 65 * 1024


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize("raw", [b"H", b"HTTP/1.1 200 OK", OK, OK + b"A: b\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_dying_within_the_head(raw: bytes, delivery: Delivery) -> None:
    _, _, error = read(raw, delivery=delivery)
    assert isinstance(error, ProxyError)
    assert error.code == "AGENT_BAD_RESPONSE"


def test_ending_without_a_byte() -> None:
    reader = ResponseReader(b"GET")
    with pytest.raises(ProxyError) as caught:
        reader.receive_end()
    assert caught.value.code == "AGENT_UNREACHABLE"
    assert not reader.answered


@pytest.mark.parametrize("delivery", DELIVERIES)
@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhi", b"hi"),
        (OK + b"Content-Length: 5\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", b""),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhi", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nT: 1\r\n", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\nzz\r\n", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi!\r\n", b"hi"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\nhi\n0\n\n", b""),
    ],
)
def test_dying_within_the_body_is_never_complete(raw: bytes, body: bytes, delivery: Delivery) -> None:
    reader, seen, error = read(raw, delivery=delivery)
    assert error is not None
    assert error.code == "AGENT_BAD_RESPONSE"
    assert not reader.complete
    assert body.startswith(seen)  # a bad chunk takes the good bytes of its own delivery with it, never adds any
    if delivery is byte_by_byte:
        assert seen == body


@pytest.mark.parametrize(
    ("raw", "method"),
    [
        (OK + b"Content-Length: 2\r\n\r\nhi", b"GET"),
        (OK + b"Content-Length: 5\r\n\r\n", b"HEAD"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", b"GET"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", b"GET"),
    ],
)
def test_bytes_behind_the_end_are_extra(raw: bytes, method: bytes) -> None:
    reader, body, error = read(raw + b"HTTP/1.1 200 OK\r\n", method=method)
    assert error is None
    assert body == (b"" if method == b"HEAD" or b"304" in raw else b"hi")
    assert reader.complete
    assert reader.extra
    late, _, _ = read(raw, method=method)
    assert not late.extra
    assert late.receive(b"x") == []
    assert late.extra


# --- fields -----------------------------------------------------------------------------------------------------------


def passed(*lines: bytes, **options: Any) -> list[Field]:
    reader, _, error = read(OK + b"".join(line + b"\r\n" for line in (*lines, b"Content-Length: 0", b"")), **options)
    assert error is None
    assert reader.head is not None
    return reader.head.fields


def test_end_to_end_fields_pass_in_their_order() -> None:
    assert passed(b"Server: box/1", b"X-A: 1", b"x-a: 2", b"Date: d", b"X_b: 3", b"X-Empty:", b"ETag: \xe4") == [
        (b"Server", b"box/1"),
        (b"X-A", b"1"),
        (b"x-a", b"2"),
        (b"Date", b"d"),
        (b"X_b", b"3"),
        (b"X-Empty", b""),
        (b"ETag", b"\xe4"),
        *ADDED,
    ]


def test_connection_nominates() -> None:
    assert passed(b"X-One: 1", b"Connection: X-One, keep-alive", b"X-Two: 2") == [(b"X-Two", b"2"), *ADDED]


# --- upgrades ---------------------------------------------------------------------------------------------------------

SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: a\r\n\r\n"
)


@pytest.mark.parametrize("delivery", DELIVERIES)
def test_a_switch_hands_bytes_on(delivery: Delivery) -> None:
    reader, body, error = read(SWITCH + b"\x81\x02hi", delivery=delivery, upgrade=True)
    assert error is None
    assert (body, reader.complete) == (b"\x81\x02hi", False)
    assert reader.head is not None
    assert (reader.head.status, reader.head.upgrade, reader.head.keep_alive) == (101, b"websocket", False)
    assert (b"Sec-WebSocket-Accept", b"a") in reader.head.fields
    raw, chunked = client_head(reader.head, request_id="r", http11=True, keep_alive=True)
    assert raw.endswith(b"X-Request-ID: r\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
    assert not chunked


def test_a_refused_upgrade_is_an_answer() -> None:
    reader, body, error = read(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno", upgrade=True)
    assert (error, body, reader.complete) == (None, b"no", True)


def test_a_switch_to_nothing_is_502() -> None:
    _, _, error = read(b"HTTP/1.1 101 Switching Protocols\r\n\r\n", upgrade=True)
    assert isinstance(error, ProxyError)


def test_misuse() -> None:
    with pytest.raises(MisuseError):
        ResponseReader(b"GET").receive(b"")


# --- interim answers --------------------------------------------------------------------------------------------------


def test_interim_answers_are_counted_and_a_storm_of_them_is_none() -> None:
    said = b"HTTP/1.1 102 Processing\r\nX: 1\r\n\r\n"
    reader = ResponseReader(b"GET")
    for number in range(1, 1001):  # one now and then, for as long as the box is at work
        assert reader.receive(said) == []
        assert reader.interim == number
    assert reader.receive(OK + b"Content-Length: 2\r\n\r\nhi") == [b"hi"]
    burst = ResponseReader(b"GET")
    burst.receive(said * 64)
    with pytest.raises(ProxyError, match="at once"):
        burst.receive(said * 65)


def test_a_head_that_comes_byte_by_byte_is_looked_at_once() -> None:
    """Each byte in a delivery of its own must cost what it costs in one piece, not what came before it over again."""
    seen = 0

    class Counted(bytearray):
        def find(self, sub: Any, start: Any = 0, end: Any = None, /) -> int:
            nonlocal seen
            seen += max(0, min(len(self), len(self) if end is None else end) - start)
            return super().find(sub, start, len(self) if end is None else end)

    reader = ResponseReader(b"GET")
    reader.receive(OK)
    assert reader._held is not None
    reader._held = Counted(reader._held)
    raw = b"A: " + b"b" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n"
    for index in range(len(raw)):
        reader.receive(raw[index : index + 1])
    assert reader.complete
    assert seen < 10 * len(raw)


# --- property ---------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=2000), st.booleans(), st.integers(0, 3), st.data())
def test_any_split_reads_the_same(body: bytes, chunks: bool, interim: int, data: st.DataObject) -> None:
    if chunks:
        sizes = data.draw(st.lists(st.integers(1, 300), max_size=6))
        raw, rest = b"", body
        for size in sizes:
            part, rest = rest[:size], rest[size:]
            raw += b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        raw = OK + b"Transfer-Encoding: chunked\r\n\r\n" + raw + (b"%X\r\n%b\r\n" % (len(rest), rest) if rest else b"")
        raw += b"0\r\n\r\n"
    else:
        raw = OK + b"Content-Length: %d\r\n\r\n" % len(body) + body
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" * interim + raw
    cuts = sorted(data.draw(st.lists(st.integers(1, len(raw) - 1), max_size=8, unique=True)))
    reader = ResponseReader(b"GET")
    seen = b""
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        assert not reader.complete
        seen += b"".join(reader.receive(raw[start:stop]))
    assert reader.complete
    assert seen == body
