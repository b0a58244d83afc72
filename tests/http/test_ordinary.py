"""What is told at once of requests and answers that were met before: the same as by the long way, or nothing."""

from __future__ import annotations

import pytest

from tests.http.helpers import MOUNT, head, via
from tunnel.http import Exchange, OrdinaryAnswers, ProxyError, outline
from tunnel.http.ordinary import HEAD_BYTES, KEPT, Whole
from tunnel.http.request import prepare


def long_way(data: bytes, method: bytes = b"GET") -> bytes:
    """What the client gets of a whole answer."""
    exchange = Exchange(head(method), via())
    exchange.start()
    pieces = exchange.receive(data)
    return exchange.client_head() + b"".join(exchange.client_body(pieces)) + exchange.client_end()


ORDINARY = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nSet-Cookie: a=b\r\nX-A: 1\r\nX-A: 2\r\n\r\n",
    b"HTTP/1.1 404 Nothing here\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\nno\n",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 9\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nConnection: close, X-B\r\nX-B: 1\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 200 \r\nContent-Security-Policy: sandbox\r\nContent-Length: 1\r\n\r\nx",
]


def read(answers: OrdinaryAnswers, data: bytes, *, head_only: bool = False) -> Whole | None:
    return answers.read(data, request_id=b"req_1", fields=b"", head_only=head_only)


@pytest.mark.parametrize("data", ORDINARY)
def test_an_ordinary_answer_comes_to_the_same_as_by_the_long_way(data: bytes) -> None:
    answers = OrdinaryAnswers()
    exchange = Exchange(head(), via())
    exchange.start()
    body = sum(map(len, exchange.receive(data)))
    for _ in range(2):
        answer = read(answers, data)
        assert answer is not None
        assert answer.out == long_way(data)
        assert (answer.keep_alive, answer.body) == (exchange.reusable, body)
        assert exchange.answer is not None
        assert answer.status == exchange.answer.status
    assert len(answers) == 1


@pytest.mark.parametrize("name", [b"Content-Length", b"content-length"])
def test_the_length_is_told_anew_each_time(name: bytes) -> None:
    answers = OrdinaryAnswers()
    for digits, body in ((b"2", b"hi"), (b"0", b""), (b"007", b"1234567"), (b"12", b"x" * 12), (b"2", b"no")):
        data = b"HTTP/1.1 200 OK\r\nA: b\r\n" + name + b": " + digits + b"\r\nC: d\r\n\r\n" + body
        answer = read(answers, data)
        assert answer is not None
        assert answer.out == long_way(data)
        for bad in (b"", b"+2", b"2 ", b" 2", b"0x2", b"2,2", b"-1", b"9" * 19):
            assert read(answers, data.replace(b": " + digits, b": " + bad)) is None
        assert read(answers, data + b"x") is None
        assert read(answers, data.replace(b"\r\nC: d", b"\r\nContent-Length: 2\r\ncontent-length: 2")) is None
    assert len(answers) == 1
    shown = b"HTTP/1.1 304 Not Modified\r\nContent-Length: %d\r\n\r\n"
    for length in (5, 6):
        answer = read(answers, shown % length)
        assert answer is not None
        assert answer.out == long_way(shown % length)
    assert len(answers) == 2


def test_the_lanes_own_fields_stand_behind_the_id() -> None:
    data = ORDINARY[0]
    answer = OrdinaryAnswers().read(data, request_id=b"one", fields=b"\r\nVary: Origin", head_only=False)
    exchange = Exchange(head(), via(request_id="one"))
    exchange.start()
    exchange.receive(data)
    assert answer is not None
    assert answer.out == exchange.client_head([(b"Vary", b"Origin")]) + b"hi"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nh",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi!",
        b"HTTP/1.1 200 OK\r\n\r\nuntil the end",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nA: b\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/2 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_BYTES + b"\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_any_other_answer_is_left_to_the_long_way(data: bytes) -> None:
    answers = OrdinaryAnswers()
    assert read(answers, data) is None
    assert read(answers, data) is None


def test_the_answer_to_head_has_no_body_whatever_its_length() -> None:
    answers = OrdinaryAnswers()
    data = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    answer = read(answers, data, head_only=True)
    assert answer is not None
    assert answer.out == long_way(data, b"HEAD")
    assert read(answers, data) is None  # the same head, and a body is to come
    assert read(answers, data + b"hello", head_only=True) is None


def test_heads_that_are_kept_are_bounded() -> None:
    answers = OrdinaryAnswers()
    for number in range(KEPT + 10):
        data = b"HTTP/1.1 200 OK\r\nX: %d\r\nContent-Length: 0\r\n\r\n" % number
        assert read(answers, data) is not None
        assert len(answers) <= KEPT


def test_what_a_head_comes_to_can_be_sent_again_with_other_ids() -> None:
    given = head(b"POST", MOUNT + b"/x?a=b", (b"Content-Length", b"3"), (b"Authorization", b"Bearer x"), (b"X-A", b"1"))
    prepared = outline(given, via(mount=MOUNT, request_id="", address=""))
    assert prepared.line == b"POST /x?a=b HTTP/1.1"
    for request_id, address, trace in (("one", "192.0.2.1", None), ("two", "192.0.2.2", "00-a-b-00")):
        other = via(mount=MOUNT, request_id=request_id, address=address, traceparent=trace)
        sent = prepared.head(address.encode(), request_id.encode(), None if trace is None else trace.encode())
        assert sent == prepare(given, other).head
        assert sent.startswith(b"POST /x?a=b HTTP/1.1\r\n")
        assert b"Bearer" not in sent


@pytest.mark.parametrize("bad", [b"a\r\nb", b"a\nb", b"a\rb"])
def test_no_id_brings_a_line_of_its_own(bad: bytes) -> None:
    prepared = outline(head(), via())
    for parts in ((bad, b"r", None), (b"a", bad, None), (b"a", b"r", bad)):
        with pytest.raises(ProxyError, match="line break"):
            prepared.head(*parts)


def test_an_exchange_can_be_gone_on_with_after_all_of_the_request_went_out() -> None:
    prepared = outline(head(b"POST", b"/x", (b"Content-Length", b"3")), via())
    exchange = Exchange(prepared.request._replace(head=b"sent"), via())
    exchange.sent_whole(3)
    assert exchange.request_done
    assert not exchange.may_retry(reused=True)
    exchange.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert exchange.complete
    assert exchange.reusable

    again = Exchange(outline(head(), via()).request, via())
    again.sent_whole(0)
    assert again.may_retry(reused=True)
    again.restart()
    assert again.start() == b""
