"""A whole exchange: both sides together, what goes to the client, and the decisions about retry and reuse."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest

from tests.http.helpers import MOUNT, head, via
from tunnel.contract import ERROR_STATUS
from tunnel.http import (
    AfterAnswer,
    AnswerCut,
    Exchange,
    Field,
    Limits,
    MisuseError,
    ProxyError,
    ReusePolicy,
    error_body,
    error_response,
)
from tunnel.http.errors import RETRY_AFTER, Language

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n3\r\nyou\r\n0\r\nT: 1\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.0 200 OK\r\n\r\nhi"


def make(method: bytes = b"GET", *fields: Field, http11: bool = True, **facts: object) -> Exchange:
    return Exchange(head(method, MOUNT + b"/x", *fields, http11=http11), via(mount=MOUNT, **facts))


def through(exchange: Exchange, answer: bytes, *, end: bool = False) -> bytes:
    """Everything that goes to the client."""
    exchange.start()
    exchange.end_body()
    pieces = exchange.receive(answer)
    out = exchange.client_head()
    if end:
        exchange.receive_end()
    return out + b"".join(exchange.client_body(pieces)) + exchange.client_end()


FIELDS = (
    b"Cache-Control: private\r\nVary: Authorization, Origin\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Frame-Options: DENY\r\nReferrer-Policy: same-origin\r\n"
    b"Content-Security-Policy: sandbox\r\nX-Request-ID: req_1\r\n"
)


@pytest.mark.parametrize(
    ("client", "answer", "sent", "reusable"),
    [
        ({}, ANSWER, b"Content-Length: 2\r\n\r\nhi", True),
        ({"http11": False}, ANSWER, b"Content-Length: 2\r\nConnection: close\r\n\r\nhi", True),
        ({}, CHUNKS, b"Transfer-Encoding: chunked\r\n\r\n5\r\nhiyou\r\n0\r\n\r\n", True),
        ({"http11": False}, CHUNKS, b"Connection: close\r\n\r\nhiyou", True),
        ({"method": b"HEAD"}, CHUNKS[: CHUNKS.index(b"\r\n\r\n") + 4], b"\r\n", True),
        ({"method": b"HEAD"}, ANSWER[:-2], b"Content-Length: 2\r\n\r\n", True),
        ({"close": True}, ANSWER, b"Content-Length: 2\r\n\r\nhi", False),
        ({}, ANSWER + b"x", b"Content-Length: 2\r\n\r\nhi", False),
        ({}, ANSWER.replace(b"1.1", b"1.0"), b"Content-Length: 2\r\n\r\nhi", False),
    ],
)
def test_what_the_client_gets(client: dict[str, Any], answer: bytes, sent: bytes, reusable: bool) -> None:
    exchange = make(**client)
    assert through(exchange, answer) == b"HTTP/1.1 200 OK\r\n" + FIELDS + sent
    assert exchange.reusable is reusable


def test_an_answer_until_close_becomes_chunks() -> None:
    exchange = make()
    assert through(exchange, UNTIL_CLOSE, end=True).endswith(b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    assert not exchange.reusable
    assert exchange.client_keep_alive


def test_keep_alive_of_an_http10_client() -> None:
    stays = make(b"GET", (b"Connection", b"keep-alive"), http11=False)
    assert b"\r\nConnection: keep-alive\r\n" in through(stays, ANSWER)
    leaves = make(b"GET", (b"Connection", b"keep-alive"), http11=False)
    assert b"\r\nConnection: close\r\n" in through(leaves, CHUNKS)
    assert not leaves.client_keep_alive


def test_extra_fields_of_ours() -> None:
    exchange = make()
    exchange.start()
    exchange.receive(ANSWER)
    assert b"\r\nVary: Origin\r\n" in exchange.client_head([(b"Vary", b"Origin")])
    with pytest.raises(MisuseError):
        exchange.client_head([(b"X", b"a\r\nb")])


@pytest.mark.parametrize(
    ("answer", "end"), [(ANSWER[:-1], True), (CHUNKS[:-1], True), (CHUNKS[:-20], True), (UNTIL_CLOSE, False)]
)
def test_an_incomplete_answer_has_no_end(answer: bytes, end: bool) -> None:
    exchange = make()
    exchange.start()
    pieces = exchange.receive(answer)
    sent = exchange.client_head() + b"".join(exchange.client_body(pieces))
    assert not sent.endswith(b"0\r\n\r\n")
    with pytest.raises(MisuseError):
        exchange.client_end()
    if end:
        with pytest.raises(AnswerCut):
            exchange.receive_end()
    assert not exchange.reusable
    assert isinstance(exchange.reset_by_box(), AnswerCut)


# --- the request's body -----------------------------------------------------------------------------------------------


def test_a_body_of_known_length() -> None:
    exchange = make(b"PUT", (b"Content-Length", b"5"))
    exchange.start()
    data = b"hel"
    assert exchange.send_body(data)[0] is data
    assert not exchange.request_done
    assert exchange.send_body(b"") == []
    assert exchange.send_body(b"lo") == [b"lo"]
    assert exchange.request_done
    assert exchange.end_body() == b""


def test_a_short_body_is_told() -> None:
    exchange = make(b"PUT", (b"Content-Length", b"5"))
    exchange.start()
    exchange.send_body(b"hel")
    with pytest.raises(ProxyError) as caught:
        exchange.end_body()
    assert caught.value.code == "BAD_REQUEST"
    assert not exchange.request_done


def test_a_body_in_chunks() -> None:
    exchange = make(b"PUT", (b"Transfer-Encoding", b"chunked"))
    exchange.start()
    assert b"".join(exchange.send_body(b"x" * 17)) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert exchange.send_body(b"") == []
    assert not exchange.request_done
    assert exchange.end_body() == b"0\r\n\r\n"
    assert exchange.request_done
    assert exchange.end_body() == b""


def test_the_limit_of_a_body_is_inclusive() -> None:
    limits = Limits(request_body=10)
    chunked = head(b"PUT", b"/x", (b"Transfer-Encoding", b"chunked"))
    exchange = Exchange(chunked, via(), limits)
    exchange.start()
    exchange.send_body(b"x" * 10)
    with pytest.raises(ProxyError) as caught:
        exchange.send_body(b"x")
    assert (caught.value.code, caught.value.status) == ("PAYLOAD_TOO_LARGE", 413)
    Exchange(head(b"PUT", b"/x", (b"Content-Length", b"10")), via(), limits)
    with pytest.raises(ProxyError) as caught:
        Exchange(head(b"PUT", b"/x", (b"Content-Length", b"11")), via(), limits)
    assert caught.value.status == 413


def test_an_answer_before_the_request_ended_leaves_nothing_reusable() -> None:
    exchange = make(b"PUT", (b"Content-Length", b"5"))
    exchange.start()
    exchange.send_body(b"h")
    exchange.receive(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert exchange.complete
    assert not exchange.reusable
    assert b"Connection: close\r\n" in exchange.client_head()


def test_misuse() -> None:
    exchange = make(b"PUT", (b"Content-Length", b"1"))
    for call in (lambda: exchange.send_body(b"x"), exchange.client_head, exchange.client_end):
        with pytest.raises(MisuseError):
            call()
    exchange.start()
    with pytest.raises(MisuseError):
        exchange.start()
    with pytest.raises(MisuseError):
        exchange.send_body(b"xy")
    exchange.send_body(b"x")
    with pytest.raises(MisuseError):
        exchange.restart()


def test_an_upgrade() -> None:
    exchange = make(b"GET", (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"), upgrade=True)
    exchange.start()
    assert exchange.receive(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nabc") == [b"abc"]
    assert exchange.upgraded
    assert exchange.client_body(exchange.receive(b"def")) == [b"def"]
    exchange.receive_end()
    assert not exchange.reusable
    assert not exchange.client_keep_alive


# --- retry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "started", "body", "answered", "reused", "retry"),
    [
        (b"POST", False, False, False, False, True),
        (b"POST", False, False, False, True, True),
        (b"GET", True, False, False, True, True),
        (b"GET", True, False, False, False, False),
        (b"GET", True, False, True, True, False),
        (b"POST", True, False, False, True, False),
        (b"PATCH", True, False, False, True, False),
        (b"PUT", True, False, False, True, True),
        (b"PUT", True, True, False, True, False),
        (b"DELETE", True, False, False, True, True),
    ],
)
def test_when_a_request_may_be_made_again(
    method: bytes, started: bool, body: bool, answered: bool, reused: bool, retry: bool
) -> None:
    exchange = make(method, *([(b"Content-Length", b"1")] if method == b"PUT" else []))
    if started:
        exchange.start()
    if body:
        exchange.send_body(b"x")
    if answered:
        exchange.receive(b"H")
    assert exchange.may_retry(reused=reused) is retry
    if retry:
        exchange.restart()
        exchange.start()
        if method == b"PUT":
            exchange.send_body(b"x")
        exchange.receive(ANSWER)
        assert exchange.reusable


@pytest.mark.parametrize("method,again", [(b"PUT", True), (b"POST", False)])
def test_a_body_that_the_driver_kept_may_be_given_again(method: bytes, again: bool) -> None:
    exchange = make(method, (b"Content-Length", b"3"))
    exchange.start()
    exchange.send_body(b"abc")
    assert exchange.request_done
    assert exchange.may_retry(reused=True, kept=True) is again
    assert not exchange.may_retry(reused=True)
    with pytest.raises(MisuseError):
        exchange.restart()
    if again:
        exchange.restart(kept=True)
        assert exchange.start() == exchange.request.head
        assert exchange.send_body(b"abc") == [b"abc"]
        assert exchange.request_done


def test_a_chunked_body_that_was_not_begun_may_be_made_again() -> None:
    exchange = make(b"PUT", (b"Transfer-Encoding", b"chunked"))
    exchange.start()
    exchange.restart()
    exchange.start()
    assert exchange.send_body(b"x")
    assert exchange.end_body() == b"0\r\n\r\n"


@pytest.mark.parametrize("code", ["TUNNEL_TIMEOUT", "TUNNEL_DISCONNECTED", "OVERLOADED"])
def test_a_failure_is_told_while_it_can_be(code: str) -> None:
    exchange = make()
    early = exchange.failure(code, "seen")
    assert isinstance(early, ProxyError)
    assert early.status == ERROR_STATUS[code]
    assert (early.retry_after is not None) is (early.status == 503)
    assert exchange.reset_by_box().code == "AGENT_UNREACHABLE"
    exchange.receive(b"HTTP/1.1 200")
    assert exchange.reset_by_box().code == "AGENT_BAD_RESPONSE"
    exchange.receive(b" OK\r\n\r\n")
    assert isinstance(exchange.failure(code, "seen"), AnswerCut)


def test_repr_shows_the_state() -> None:
    exchange = make()
    exchange.start()
    exchange.receive(ANSWER)
    assert repr(exchange) == (
        "<Exchange GET sent=True body=0 request_done=True answered=True answer=<AnswerHead 200 OK length=2>"
        " complete=True>"
    )


# --- reuse ------------------------------------------------------------------------------------------------------------


def test_an_agent_that_announces_is_reused_at_once() -> None:
    policy = ReusePolicy(announced=True)
    assert policy.may_reuse(idempotent=False)
    assert policy.after_answer(reusable=True) is AfterAnswer.KEEP
    assert policy.after_answer(reusable=False) is AfterAnswer.CLOSE
    policy.reused_stream_unanswered()
    assert policy.may_reuse(idempotent=False)
    assert policy.after_answer(reusable=True) is AfterAnswer.KEEP


def test_a_silent_agent_must_show_it_and_may_fail_once() -> None:
    policy = ReusePolicy(announced=False)
    assert not policy.may_reuse(idempotent=True)
    assert policy.after_answer(reusable=False) is AfterAnswer.CLOSE
    assert policy.after_answer(reusable=True) is AfterAnswer.PROBE
    policy.still_open()
    assert policy.may_reuse(idempotent=True)
    assert not policy.may_reuse(idempotent=False)
    assert policy.after_answer(reusable=True) is AfterAnswer.KEEP
    policy.reused_stream_unanswered()
    policy.still_open()
    assert not policy.may_reuse(idempotent=True)
    assert policy.after_answer(reusable=True) is AfterAnswer.CLOSE
    assert repr(policy) == "<ReusePolicy announced=False shown=True refuted=True>"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ERROR_STATUS)
def test_every_code_makes_an_envelope(code: str) -> None:
    error = ProxyError(code, "for the log only")
    for language in get_args(Language):
        body = orjson.loads(error_body(error, "req_1", language))
        assert body["success"] is False
        assert body["error"]["code"] == code
        assert body["error"]["request_id"] == "req_1"
        assert body["error"]["message"]
        assert "details" not in body["error"]
        assert b"for the log" not in error_body(error, "req_1")
    assert (error.retry_after is not None) is (code in RETRY_AFTER)


def test_an_answer_of_ours() -> None:
    error = ProxyError("AMBIGUOUS_DEVICE", "two", details={"devices": ["a", "b"]})
    raw = error_response(error, "req_1", extra=b"Vary: Origin\r\n")
    start, _, body = raw.partition(b"\r\n\r\n")
    assert orjson.loads(body)["error"]["details"] == {"devices": ["a", "b"]}
    lines = start.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 409 Conflict"
    assert {b"Content-Type: application/json", b"X-Request-ID: req_1", b"Vary: Origin", b"Connection: close"} < set(
        lines
    )
    assert b"Content-Length: %d" % len(body) in lines
    quiet = error_response(error, "req_1", head_only=True, keep_alive=True)
    assert quiet.endswith(b"\r\n\r\n")
    assert b"Connection: keep-alive" in quiet
    assert b"Retry-After: 5\r\n" in error_response(ProxyError("TUNNEL_DISCONNECTED", ""), "r")
    assert b"Retry-After: 9\r\n" in error_response(ProxyError("OVERLOADED", "", retry_after=9), "r")
