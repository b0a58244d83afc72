"""The little HTTP/1.1 that the daemon speaks itself: one request a connection, JSON answers.

Heads are parsed by the strict parser of `tunnel.http`. It does not know routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import parse_qsl

import orjson
import trio

from tunnel.contract import ERROR_STATUS, H_REQUEST_ID, SECURITY_FIELDS, error_envelope, request_id_from
from tunnel.http import ProxyError, RequestHead, RequestParser
from tunnel.net.sockets import ByteStream

_LINGER_SECONDS: Final = 1.0
_LINGER_BYTES: Final = 1 << 20
_ANSWER_SECONDS: Final = 10.0

_NO_HEAD: Final = RequestHead(b"", b"", [], http11=True)

Lines = Sequence[tuple[str, str]]


class Refusal(Exception):
    """Answer the client with the error envelope. `message` is shown to it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        retry_after: int | None = None,
        headers: Lines = (),
        details: Any = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = ERROR_STATUS.get(code, 500) if status is None else status
        self.retry_after = retry_after
        self.headers = headers
        self.details = details


@dataclass(frozen=True, slots=True)
class Request:
    """A request head. `path` is raw, without the query; header names are lower case, values latin-1 text."""

    method: str
    path: str
    query: dict[str, str]  # the first of each name
    fields: tuple[tuple[str, str], ...]
    request_id: str
    rest: bytes  # what was read behind the head
    raw: RequestHead = _NO_HEAD  # the same as it came

    def header(self, name: str) -> str | None:
        """The first field of that (lower case) name."""
        return next((value for key, value in self.fields if key == name), None)

    def listed(self, name: str) -> set[str]:
        """The members of all fields of a name that holds a comma list, lower case."""
        words = ",".join(value for key, value in self.fields if key == name).split(",")
        return {word.strip().lower() for word in words} - {""}

    def asks_for(self, protocol: str) -> bool:
        """Whether it asks for an upgrade to `protocol`; that of HTTP/1.0 is to be ignored (RFC 9110 §7.8)."""
        return self.raw.http11 and protocol in self.listed("upgrade") and "upgrade" in self.listed("connection")


async def read_request(stream: ByteStream) -> Request | None:
    """The head of the next request, None if the client left before it sent anything.

    Raises ProxyError (400, 405, 414, 431) and trio.BrokenResourceError. The caller sets the deadline.
    """
    parser = RequestParser()
    while True:
        data = await stream.receive_some(16 * 1024)
        if not data:
            if parser.started:
                raise ProxyError("BAD_REQUEST", "the head ended half way")
            return None
        head = parser.feed(data)
        if head is not None:
            return request_of(head, parser.rest)


def request_of(head: RequestHead, rest: bytes) -> Request:
    """A head as the routes read it; `rest` was read behind it."""
    path, _, query = head.target.decode("latin-1").partition("?")
    fields = tuple((name.decode("latin-1").lower(), value.decode("latin-1").strip()) for name, value in head.fields)
    first: dict[str, str] = {}
    for name, value in parse_qsl(query, keep_blank_values=True, max_num_fields=None):
        first.setdefault(name, value)
    request_id = request_id_from(next((v for k, v in fields if k == H_REQUEST_ID.lower()), None))
    return Request(head.method.decode(), path, first, fields, request_id, rest, head)


def answer(status: int, body: bytes, request_id: str, *, kind: str = "application/json", headers: Lines = ()) -> bytes:
    """A whole answer that ends the connection."""
    return (
        head(
            status,
            request_id,
            [
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                *SECURITY_FIELDS,
                ("Cache-Control", "no-store"),
                ("Connection", "close"),
                *headers,
            ],
        )
        + body
    )


def head(status: int, request_id: str, headers: Lines) -> bytes:
    """The head of an answer; the caller's values are checked to hold no line break."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Refused"
    lines = [f"{name}: {value}" for name, value in [*headers, (H_REQUEST_ID, request_id)]]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError("a header with a line break")
    return "\r\n".join([f"HTTP/1.1 {status} {reason}", *lines, "", ""]).encode("latin-1")


def success(data: Any, request_id: str, *, meta: Any = None) -> bytes:
    """200 with the success envelope."""
    body = {"success": True, "data": data} | ({"meta": meta} if meta is not None else {})
    return answer(200, orjson.dumps(body), request_id)


HSTS: Final = (("Strict-Transport-Security", "max-age=31536000"),)
"""As the API's answers have it (`SECURE_HSTS_SECONDS`)."""


def refusal(error: Refusal, request_id: str, ours: Lines = ()) -> bytes:
    """The answer that tells `error`; `ours` are what every answer of its port carries."""
    headers = [*error.headers, *ours]
    if error.retry_after is not None:
        headers.append(("Retry-After", str(error.retry_after)))
    body = orjson.dumps(error_envelope(error.code, error.message, request_id, error.details))
    return answer(error.status, body, request_id, headers=headers)


_PARSE_MESSAGES: Final = {
    "BAD_REQUEST": "The request is malformed.",
    "METHOD_NOT_ALLOWED": "This method is not allowed here.",
    "URI_TOO_LONG": "The request target is too long.",
    "HEADERS_TOO_LARGE": "The request head is too large.",
}


def unreadable(error: ProxyError) -> Refusal:
    """What is told for a head that the parser refused."""
    return Refusal(error.code, _PARSE_MESSAGES.get(error.code, "The request cannot be served."), status=error.status)


async def send_and_close(stream: ByteStream, data: bytes) -> None:
    """Write an answer and close, so that the client can read it even if it is still sending. Bounded in time."""
    with trio.move_on_after(_ANSWER_SECONDS):
        try:
            await stream.send_all(data)
            stream.send_eof()
            # Closing with unread bytes would reset the connection, and the reset could overtake the answer.
            with trio.move_on_after(_LINGER_SECONDS):
                left = _LINGER_BYTES
                while left > 0 and (more := await stream.receive_some()):
                    left -= len(more)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client did not wait for it, or gave way
    stream.close()
