"""Seeded mutations of good heads and answers: only our own errors, no growth, and never a lie about the end."""

from __future__ import annotations

import random

import pytest

from tests.http.helpers import read, refusal, via
from tunnel.http import Exchange, ExchangeError, ProxyError, RequestParser
from tunnel.http.body import FramingError

REQUEST = (
    b"POST /a/b?c=d&ticket=x HTTP/1.1\r\nHost: cloud\r\nX-A: 1\r\nConnection: x-a, upgrade\r\nUpgrade: websocket\r\n"
    b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nT: 1\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: x-b\r\nX-B: 2\r\n"
    b"Location: /x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
)
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\0", b" ", b"\t", b":", b"chunked", b"Content-Length: 5\r\n", b"0\r\n\r\n", b"\xff", b"..",
    b"%2e", b"Transfer-Encoding: gzip\r\n", b"HTTP/1.1", b"HTTP/1.0", b"101", b"//", b"\r\n ", b"ffffffff", b";",
]  # fmt: skip


def mutate(raw: bytes, rng: random.Random) -> bytes:
    data = bytearray(raw)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at:at] = rng.choice(TOKENS)
        elif kind == 1:
            del data[at : at + rng.randint(1, 12)]
        elif kind == 2 and at < len(data):
            data[at] = rng.randrange(256)
        else:
            data[at:at] = data[at : at + rng.randint(1, 30)]
    return bytes(data)


def parts(raw: bytes, rng: random.Random) -> list[bytes]:
    out = []
    while raw:
        size = rng.randint(1, max(1, len(raw)))
        out.append(raw[:size])
        raw = raw[size:]
    return out


@pytest.mark.parametrize("seed", range(20))
def test_mutated_requests(seed: int) -> None:
    rng = random.Random(seed)
    refused: set[int] = set()
    for _ in range(150):
        raw = mutate(REQUEST, rng)
        parser = RequestParser()
        try:
            for part in parts(raw, rng):
                if parser.feed(part) is not None:
                    break
            if parser.head is None:
                continue
            exchange = Exchange(parser.head, via(upgrade=True))
        except ProxyError as error:
            refused.add(error.status)
            continue
        sent = exchange.start()
        assert sent.endswith(b"\r\n\r\n")
        assert sent.count(b"\r\n\r\n") == 1
        assert sent.count(b"\n") == sent.count(b"\r") == sent.count(b"\r\n")
        assert b"\0" not in sent
        reader = exchange.request.body_reader()
        try:
            reader.feed(parser.rest)
        except FramingError:
            continue
    assert refused <= {400, 405, 413, 414, 431}


@pytest.mark.parametrize("seed", range(20))
def test_mutated_answers(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(150):
        raw = mutate(ANSWER, rng)
        reader, body, error = read(raw, delivery=lambda data: iter(parts(data, rng)), mount=b"/d/x", upgrade=True)
        assert error is None or isinstance(error, ExchangeError)
        if error is not None and reader.head is not None:
            assert not reader.complete
        assert len(body) <= len(raw)
        again, other, _ = read(raw, delivery=lambda data: iter([data]), mount=b"/d/x", upgrade=True)
        assert again.complete == reader.complete
        if reader.complete:
            assert other == body


@pytest.mark.parametrize("seed", range(5))
def test_random_bytes(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(200):
        raw = rng.randbytes(rng.randint(1, 200))
        _, body, error = read(raw)
        assert isinstance(error, ProxyError)
        assert body == b""
        refused = refusal(lambda: RequestParser().feed(raw))  # noqa: B023 - called at once
        assert refused is None or refused.code in ("BAD_REQUEST", "METHOD_NOT_ALLOWED")
