"""Heads as bytes, before a request is made of them, and the refusals of requests that no view sees.

It knows no sockets, no gunicorn but its parser's errors, and no Django: a refusal is made with the envelope of
`tunnel.contract` alone.
"""

from __future__ import annotations

import json
import re
from typing import Final

from gunicorn.http import errors as parse_errors
from gunicorn.util import http_date

from tunnel.contract import ERROR_STATUS, SECURITY_FIELDS, error_envelope, request_id_from

HEAD_BYTES: Final = 32 * 1024
HEAD_FIELDS: Final = 100
TARGET_BYTES: Final = 8 * 1024
BODY_BYTES: Final = 64 * 1024
"""A body announced with this or less is gathered before a thread gets the request."""
EMPTY_LINES: Final = 2

REASONS: Final = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
_MESSAGES: Final = {
    "BAD_REQUEST": "The request is malformed.",
    "REQUEST_TIMEOUT": "The request did not arrive in time.",
    "URI_TOO_LONG": "The request target is too long.",
    "HEADERS_TOO_LARGE": "The request head is too large.",
    "INTERNAL_ERROR": "Something went wrong on our side.",
    "OVERLOADED": "Too much is going on; try again shortly.",
}
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,6})[ \t]*(?=\r\n)", re.IGNORECASE)
_NOT_GATHERED = re.compile(rb"\r\n(?:transfer-encoding|expect|upgrade):", re.IGNORECASE)
_TOKEN_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")
_REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([A-Za-z0-9._-]{1,64})[ \t]*\r\n", re.IGNORECASE)


class Refusal(Exception):
    """A request that never reaches the view. `code` is one of the public API's codes, `detail` is for the log."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = ERROR_STATUS[code]

    def body(self, request_id: str) -> bytes:
        """The JSON envelope."""
        return json.dumps(error_envelope(self.code, _MESSAGES[self.code], request_id)).encode()

    def response(self, request_id: str, *, head_only: bool = False) -> bytes:
        """The whole answer, after which the connection closes."""
        body = self.body(request_id)
        lines = [f"HTTP/1.1 {self.status} {REASONS[self.status]}", f"Date: {http_date()}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in refusal_headers(self, body, request_id)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


def refusal_headers(refusal: Refusal, body: bytes, request_id: str) -> list[tuple[str, str]]:
    """The fields of an answer that no middleware sees: the request id and the security headers included."""
    retry = [("Retry-After", "1")] if refusal.status == 503 else []
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Request-ID", request_id),
        *SECURITY_FIELDS,
        ("Cache-Control", "no-store"),
        *retry,
    ]


def refusal_of(error: Exception) -> Refusal | None:
    """The refusal for an error of the parser; None for an error that is not the client's fault."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, (parse_errors.InvalidResponseHeader, parse_errors.InvalidResponseHeaderName)):
        return None
    if isinstance(error, parse_errors.LimitRequestLine):
        return Refusal("URI_TOO_LONG", type(error).__name__)
    if isinstance(error, parse_errors.LimitRequestHeaders):
        return Refusal("HEADERS_TOO_LARGE", type(error).__name__)
    if isinstance(error, parse_errors.ConfigurationProblem):
        return None
    if isinstance(error, parse_errors.ParseException):
        return Refusal("BAD_REQUEST", type(error).__name__)  # its text may quote a query
    return None


def inbound_id(head: bytes) -> str:
    """The request id of a head that nobody parsed, as far as it came; else a new one."""
    match = _REQUEST_ID.search(head)
    return request_id_from(match.group(1).decode("ascii") if match else None)


class HeadGate:
    """Gathers bytes until a request's head, and the small body that it announces, are whole, or cannot become so.

    Never blocks, holds 32 KiB of a head and BODY_BYTES behind it. It decides when a thread is worth its wait, and
    nothing about framing: that is the parser's.
    """

    __slots__ = ("_buffer", "_counted", "_empty", "_scanned", "_whole", "ready", "refusal")

    def __init__(self) -> None:
        self._buffer: bytes | bytearray = b""
        self._scanned = 0
        self._empty = 0  # lines dropped before the request
        self._whole = 0  # bytes of head and body, once the head is whole
        self._counted = 0
        self.ready = False
        """Head and announced body are whole: a thread may read them without waiting."""
        self.refusal: Refusal | None = None

    @property
    def begun(self) -> bool:
        """Whether the first byte of a request has arrived."""
        return bool(self._buffer)

    @property
    def head_came(self) -> bool:
        """Whether the head is whole."""
        return self._whole > 0

    def gathered(self) -> int:
        """Bytes that came since this was asked last."""
        more, self._counted = len(self._buffer) - self._counted, len(self._buffer)
        return more

    def feed(self, data: bytes) -> bool:
        """Add received bytes. Returns whether a thread should serve the connection (`ready`, or `refusal` is set)."""
        buffer: bytes | bytearray = data
        if self._buffer:  # in pieces: a bytearray grows without being copied for each of them
            buffer = self._buffer if isinstance(self._buffer, bytearray) else bytearray(self._buffer)
            buffer += data
        self._buffer = buffer
        if self._whole:
            self.ready = len(buffer) >= self._whole
            return self.ready
        while buffer.startswith(b"\r\n") and self._empty < EMPTY_LINES:  # before a request (RFC 9112 §2.2)
            self._empty += 1
            buffer = self._buffer = buffer[2:]
        if buffer.startswith(b"\r\n"):
            self.refusal = Refusal("BAD_REQUEST", "empty lines and no request")
            return True
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), HEAD_BYTES)
        self._scanned = min(len(buffer), HEAD_BYTES)
        if end >= 0:
            self._whole = end + 4 + _announced(buffer, end)
            self.ready = len(buffer) >= self._whole
            self.refusal = self._too_large(bytes(buffer[:end]))
        elif buffer and buffer != b"\r":
            self.refusal = self._hopeless(bytes(buffer))
        return self.ready or self.refusal is not None

    def take(self) -> bytes:
        """All bytes gathered, for the parser; the gate is fresh for the next request."""
        buffer, self._buffer = bytes(self._buffer), b""
        self._scanned = self._empty = self._whole = self._counted = 0
        self.ready = False
        self.refusal = None
        return buffer

    def _too_large(self, head: bytes) -> Refusal | None:
        line = head.partition(b"\r\n")[0]
        if _target(line) > TARGET_BYTES:
            return Refusal("URI_TOO_LONG", f"a request line of {len(line)} bytes")
        if head.count(b"\r\n") > HEAD_FIELDS:
            return Refusal("HEADERS_TOO_LARGE", "too many fields")
        return None

    def _hopeless(self, buffer: bytes) -> Refusal | None:
        if _TOKEN_START.match(buffer) is None:
            return Refusal("BAD_REQUEST", "no request line")
        newline = buffer.find(b"\n")
        if newline >= 0 and (buffer[newline - 1] != 13 or b"\n\n" in buffer):
            return Refusal("BAD_REQUEST", "a bare LF in the head")
        if newline < 0 and len(buffer) > TARGET_BYTES + 64:
            return Refusal("URI_TOO_LONG", "a request line without an end")
        if len(buffer) >= HEAD_BYTES:
            line = buffer[: newline - 1]
            if _target(line) > TARGET_BYTES:
                return Refusal("URI_TOO_LONG", f"a request line of {len(line)} bytes")
            return Refusal("HEADERS_TOO_LARGE", "a head over the limit")
        return None


def _announced(buffer: bytes | bytearray, end: int) -> int:
    """Bytes of the body that the head before `end` announces; 0 where there is none, or none to be gathered.

    That is one of unknown or greater length, one that its client sends only when it is asked, and that of a GET.
    """
    if buffer.startswith((b"GET ", b"HEAD ")):
        return 0
    lengths = _LENGTH.findall(buffer, 0, end + 2)
    if len(lengths) != 1 or _NOT_GATHERED.search(buffer, 0, end) is not None:
        return 0
    length = int(lengths[0])
    return length if length <= BODY_BYTES else 0


def _target(line: bytes) -> int:
    """Bytes of the target in a request line."""
    parts = line.split(b" ")
    return len(parts[1]) if len(parts) > 1 else len(line)
