"""What the tests of tunnel.http share: a request to start from and the three ways of delivery."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tunnel.http import AnswerCut, Exchange, ExchangeError, Field, RequestHead, ResponseReader, Via

DEVICE = "11111111-2222-3333-4444-555555555555"
MOUNT = f"/d/{DEVICE}".encode()


def via(**changes: Any) -> Via:
    facts: dict[str, Any] = {"scheme": "http", "address": "192.0.2.7", "request_id": "req_1"}
    return Via(**(facts | changes))


def head(
    method: bytes = b"GET", target: bytes = b"/x", *fields: Field, http11: bool = True, host: bytes | None = b"cloud"
) -> RequestHead:
    given = list(fields)
    if host is not None:
        given.insert(0, (b"Host", host))
    return RequestHead.unchecked(method, target, given, http11=http11)


def sent_fields(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """The fields of the head for the box."""
    lines = exchange.request.head.split(b"\r\n")
    assert lines[-2:] == [b"", b""]
    return [(name, value) for name, _, value in (line.partition(b": ") for line in lines[1:-2])]


def whole(data: bytes) -> Iterator[bytes]:
    yield data


def byte_by_byte(data: bytes) -> Iterator[bytes]:
    for index in range(len(data)):
        yield data[index : index + 1]


def halves(data: bytes) -> Iterator[bytes]:
    middle = len(data) // 2
    yield data[:middle] or data
    if middle:
        yield data[middle:]


Delivery = Callable[[bytes], Iterator[bytes]]
DELIVERIES: list[Delivery] = [whole, byte_by_byte, halves]


def read(
    raw: bytes, *, delivery: Delivery = whole, end: bool = True, method: bytes = b"GET", **options: Any
) -> tuple[ResponseReader, bytes, ExchangeError | None]:
    """What comes of an answer: its reader, the body bytes given out, the error that ended it."""
    reader = ResponseReader(method, **options)
    body = b""
    try:
        for part in delivery(raw):
            body += b"".join(reader.receive(part))
        if end and not reader.complete:
            reader.receive_end()
    except ExchangeError as raised:
        error: ExchangeError | None = raised
    else:
        error = None
    assert error is None or (reader.head is not None) == isinstance(error, AnswerCut)
    return reader, body, error


def feed_all(feed: Callable[[bytes], object], parts: Iterable[bytes]) -> int:
    """Call `feed` with each part; how many bytes were taken."""
    return sum(len(part) for part in parts if feed(part) is not NotImplemented)


def refusal(call: Callable[[], object]) -> ExchangeError | None:
    """The error of ours that `call` raises, if any."""
    try:
        call()
    except ExchangeError as error:
        return error
    return None
