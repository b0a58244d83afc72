"""What is seen of a request that passes: its id, however the head is cut, and nothing of what is no request."""

from __future__ import annotations

import pytest

from tunnel.http.sniffer import LIMIT, RequestIdSniffer

HEAD = b"GET /a/b?token=secret HTTP/1.1\r\nHost: box\r\nX-Request-ID: req_1.2-3\r\nAccept: */*\r\n\r\n"


def fed(*chunks: bytes) -> list[str | None]:
    """What each chunk told; those after the last that was wanted are left out."""
    peek, told = RequestIdSniffer(), []
    for chunk in chunks:
        if peek.looking:
            told.append(peek.feed(memoryview(bytearray(chunk))))
    return told


def test_a_head_in_one_piece() -> None:
    assert fed(HEAD, b"a body that is not looked at") == ["req_1.2-3"]
    assert fed(HEAD + b"a body\r\nX-Request-ID: of-the-body\r\n\r\n") == ["req_1.2-3"]


@pytest.mark.parametrize("cut", range(1, len(HEAD)))
def test_a_head_in_two_pieces(cut: int) -> None:
    """Wherever it is cut, the field itself included."""
    assert [one for one in fed(HEAD[:cut], HEAD[cut:]) if one is not None] == ["req_1.2-3"]


def test_a_head_byte_by_byte() -> None:
    assert [one for one in fed(*(HEAD[n : n + 1] for n in range(len(HEAD)))) if one is not None] == ["req_1.2-3"]


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: box\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: box\r\n\r\nX-Request-ID: of-the-body\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: box\r\nX-Request-ID: \r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: box\r\nX-Request-ID: two words\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: box\r\nX-Request-ID: " + b"x" * 65 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nNot-X-Request-ID: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * LIMIT + b"\r\nX-Request-ID: too-late\r\n\r\n",
    ],
)
def test_a_request_without_an_id(head: bytes) -> None:
    assert fed(head) == [""]


@pytest.mark.parametrize(
    "chunk",
    [
        b"\x81\x05hello",
        b"hello",
        b"POST",  # so far
        b"X-Request-ID: not-a-head\r\n\r\n",
        b"GET the HTTP\r\nX-Request-ID: not-a-head\r\n\r\n",
        b"\r\n\r\n",
        b"A" * LIMIT * 2,
    ],
)
def test_what_is_no_request(chunk: bytes) -> None:
    assert fed(chunk) == [None]


def test_the_name_in_any_case() -> None:
    assert fed(HEAD.replace(b"X-Request-ID: ", b"x-request-id:")) == ["req_1.2-3"]


def test_it_listens_again_when_the_direction_turns() -> None:
    peek = RequestIdSniffer()
    assert peek.feed(HEAD) == "req_1.2-3"
    assert not peek.looking
    peek.turned()
    assert peek.feed(b"a body after 100 Continue") is None
    assert not peek.looking
    peek.turned()
    assert peek.feed(HEAD[:20]) is None
    assert peek.halfway
    peek.turned()
    assert not peek.halfway
    assert peek.feed(HEAD) == "req_1.2-3"


def test_it_holds_no_more_than_its_limit() -> None:
    peek = RequestIdSniffer()
    told = peek.feed(b"GET / HTTP/1.1\r\n")
    while peek.looking:
        told = peek.feed(b"A: b\r\n" * 100)
        assert len(peek._held) <= LIMIT
    assert told == ""
