"""What the API's worker class reads and writes differently from gunicorn: heads, bodies, answers, refusals.

No sockets are waited for here, but the one of a request's body. It does not know Django: a refusal before the view is
made with the envelope of `tunnel.contract` alone. `cloud.gunicorn_worker` drives it.
"""

from __future__ import annotations

import json
import re
import socket
import time
from typing import Any, Final

from gunicorn.http import errors as parse_errors
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.message import Request
from gunicorn.http.wsgi import HEADER_VALUE_RE, Response
from gunicorn.util import http_date

from tunnel.contract import ERROR_STATUS, error_envelope, request_id_from

HEAD_BYTES: Final = 32 * 1024
HEAD_FIELDS: Final = 100
TARGET_BYTES: Final = 8 * 1024
CHUNK_LINE: Final = 1024
BODY_MIN_RATE: Final = 512
"""Bytes a second that a body must come at, once its grace is over: one byte now and then holds no thread for ever."""

_REASONS: Final = {
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
}
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
        lines = [f"HTTP/1.1 {self.status} {_REASONS[self.status]}", f"Date: {http_date()}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in refusal_headers(body, request_id)]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


def refusal_headers(body: bytes, request_id: str) -> list[tuple[str, str]]:
    """The fields of an answer that no middleware sees: the request id and the security headers included."""
    return [
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))),
        ("X-Request-ID", request_id),
        ("X-Content-Type-Options", "nosniff"),
        ("X-Frame-Options", "DENY"),
        ("Referrer-Policy", "same-origin"),
        ("Cross-Origin-Opener-Policy", "same-origin"),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
        ("Cache-Control", "no-store"),
    ]


def refusal_of(error: Exception) -> Refusal | None:
    """What a parser's error means in the public API's codes; None for one that is no fault of the client."""
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
    """Gathers bytes until a request's head is whole or can no longer become one. Never blocks, holds 32 KiB."""

    __slots__ = ("_buffer", "_scanned", "ready", "refusal")

    def __init__(self) -> None:
        self._buffer = b""
        self._scanned = 0
        self.ready = False
        """The head is whole: a thread may read it without waiting."""
        self.refusal: Refusal | None = None

    @property
    def begun(self) -> bool:
        """Whether a byte of a request came."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> bool:
        """Take bytes; whether the connection is a thread's business now (`ready`, or `refusal` is set)."""
        buffer = self._buffer + data if self._buffer else data
        while buffer.startswith(b"\r\n"):  # empty lines before a request (RFC 9112 §2.2)
            buffer = buffer[2:]
        self._buffer = buffer
        end = buffer.find(b"\r\n\r\n", max(0, self._scanned - 3), HEAD_BYTES)
        self._scanned = min(len(buffer), HEAD_BYTES)
        if end >= 0:
            self.ready = True
            self.refusal = self._too_large(buffer[:end])
        elif buffer and buffer != b"\r":
            self.refusal = self._hopeless(buffer)
        return self.ready or self.refusal is not None

    def take(self) -> bytes:
        """All bytes gathered, for the parser; the gate is fresh for the next request."""
        buffer, self._buffer = self._buffer, b""
        self._scanned = 0
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


def _target(line: bytes) -> int:
    """Bytes of the target in a request line."""
    parts = line.split(b" ")
    return len(parts[1]) if len(parts) > 1 else len(line)


class BodyFault(OSError):
    """The body cannot be read to its end. An OSError, which Django turns into UnreadablePostError."""


class StrictChunks(ChunkedReader):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's reader of chunks, which would wait for the end of a line that ended with a bare LF long ago."""

    def __init__(self, request: Request, unreader: Any) -> None:
        super().__init__(request, unreader)
        self.limit_chunk_size_line = CHUNK_LINE

    def read_into(self, unreader: Any, buf: bytearray) -> None:
        """More bytes for a line that has no end yet."""
        if buf.count(b"\n") != buf.count(b"\r\n"):
            raise parse_errors.InvalidChunkSize(b"bare LF")
        super().read_into(unreader, buf)


class WatchedBody(Body):  # type: ignore[misc]  # gunicorn has no types
    """`wsgi.input`: asks for the body with `100 Continue` when it is first read, bounds it in time, notes its fault."""

    grace_seconds = 20.0
    """From the first read, besides the time that BODY_MIN_RATE allows the bytes received."""

    def __init__(self, reader: Any, request: ApiRequest, sock: socket.socket) -> None:
        super().__init__(reader)
        self._request = request
        self._sock = sock
        self._length: int | None = getattr(reader, "length", None)
        self._received = 0
        self._started: float | None = None
        self._idle_timeout = sock.gettimeout()
        self.drain_until: float | None = None
        """Set by the worker when the view left a body behind: the monotonic time by which it must have come."""

    def _read_reader(self, size: int) -> bytes:
        request = self._request
        now = time.monotonic()
        if self._started is None:
            self._started = now
            if request.expects_continue and not request.continued and self._length != 0:
                request.continued = True
                self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        until = self._started + self.grace_seconds + self._received / BODY_MIN_RATE
        if self.drain_until is not None:
            until = min(until, self.drain_until)
        self._sock.settimeout(max(0.001, until - now))
        try:
            data: bytes = super()._read_reader(size)
        except TimeoutError as error:
            raise self._fault(Refusal("REQUEST_TIMEOUT", "the body came too slowly")) from error
        except parse_errors.ParseException as error:
            raise self._fault(Refusal("BAD_REQUEST", type(error).__name__)) from error
        except OSError as error:
            raise self._fault(Refusal("BAD_REQUEST", "the client left within the body")) from error
        finally:
            self._sock.settimeout(self._idle_timeout)
        self._received += len(data)
        if not data and size and self._length is not None and self._received < self._length:
            raise self._fault(Refusal("BAD_REQUEST", "the client left within the body"))
        return data

    def _fault(self, refusal: Refusal) -> BodyFault:
        self.failed = True
        self._request.fault = refusal
        return BodyFault(str(refusal))


class ApiRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request head read strictly, with its raw fields and target kept for the proxy views."""

    body: Any
    _expected_100_continue: bool

    def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.expects_continue = False
        self.continued = False
        self.fault: Refusal | None = None
        self.request_id = ""
        super().__init__(cfg, unreader, peer_addr, req_number)
        self._be_strict()
        # gunicorn would send `100 Continue` before the view was asked, even for a request that it refuses.
        self.expects_continue = bool(self._expected_100_continue)
        self._expected_100_continue = False
        reader: Any = self.body.reader
        if isinstance(reader, ChunkedReader):
            reader = StrictChunks(self, unreader)
        self.body = WatchedBody(reader, self, unreader.sock)

    @property
    def raw_target(self) -> bytes:
        """The request target as it came."""
        target: str = self.uri
        return target.encode("latin-1")

    @property
    def abandoned(self) -> bool:
        """The client still waits for `100 Continue`: whether its body follows is unknown, so the connection ends."""
        if not self.expects_continue or self.continued or not isinstance(self.body, WatchedBody):
            return False
        reader: Any = self.body.reader
        return isinstance(reader, ChunkedReader) or reader.length > 0

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        """gunicorn's reading, which checks; beside it the fields as they came."""
        fields: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
        if not from_trailer:
            for line in bytes(data).split(b"\r\n"):
                name, _, value = line.partition(b":")
                self.raw_headers.append((name, value.strip(b" \t")))
        return fields

    def should_close(self) -> bool:
        """As gunicorn, but `Connection` is a list, and may be repeated."""
        if self.must_close or self.method == "CONNECT":
            return True
        options: set[str] = set()
        for name, value in self.headers:
            if name == "CONNECTION":
                options.update(part.strip(" \t").lower() for part in value.split(","))
        if "close" in options:
            return True
        return bool(self.version <= (1, 0)) and "keep-alive" not in options

    def _be_strict(self) -> None:
        """What gunicorn lets pass, and another server behind or before us may read differently."""
        if self.version not in ((1, 0), (1, 1)):
            raise Refusal("BAD_REQUEST", "an unknown version of HTTP")
        if self.method == "CONNECT" or not (self.uri.startswith("/") or self.uri == "*"):
            raise Refusal("BAD_REQUEST", "the target is not in origin form")
        if "#" in self.uri:
            raise Refusal("BAD_REQUEST", "a fragment in the target")
        names = [name for name, _ in self.headers]
        if self.version == (1, 1) and "HOST" not in names:
            raise Refusal("BAD_REQUEST", "no Host field")
        codings = [value.lower() for name, value in self.headers if name == "TRANSFER-ENCODING"]
        if codings and codings != ["chunked"]:
            raise Refusal("BAD_REQUEST", "an unknown transfer coding")


class ApiResponse(Response):  # type: ignore[misc]  # gunicorn has no types
    """An answer with the app's own Server and Date, if any; a refusal stands in for it where the body failed."""

    headers: list[tuple[str, str]]
    loan: Any = None
    """The `Takeover` of the request, whose state decides whether anything may be written here."""
    worker: Any = None
    """The worker, whose `alive` is asked when the head goes out: one that stops announces the connection's end."""
    client_gone = False
    """The client took no more; set before the error goes on, to tell it from the app's own errors."""
    _replaced: bytes | None = None

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """As PEP 3333. After a fault of the request's body the app's word is replaced, unless it says the same."""
        fault: Refusal | None = self.req.fault
        if fault is not None:
            self.force_close()
            if not status.startswith(str(fault.status)):
                self._replaced = fault.body(self.req.request_id)
                status = f"{fault.status} {_REASONS[fault.status]}"
                headers = refusal_headers(self._replaced, self.req.request_id)
        super().start_response(status, headers, exc_info)
        return self.write

    def process_headers(self, headers: list[tuple[str, str]]) -> None:
        """As gunicorn, which however takes an app's `Server` and `Date` for its own business and drops them."""
        own = [(name, value.strip(" \t")) for name, value in headers if name.lower() in ("server", "date")]
        if not all(HEADER_VALUE_RE.fullmatch(value) for _, value in own):
            raise parse_errors.InvalidResponseHeader("Server or Date")
        super().process_headers(headers)
        self.headers = own + self.headers

    def write(self, arg: bytes) -> None:
        """Body bytes of the app, dropped where a refusal was put in their place."""
        if self._replaced is None:
            super().write(arg)

    def close(self) -> None:
        """The end of the answer."""
        if self._replaced is not None:
            body, self._replaced = self._replaced, None
            super().write(body)
        super().close()

    def can_sendfile(self) -> bool:
        """Not where the file is not what is answered."""
        return self._replaced is None and bool(super().can_sendfile())

    def send_headers(self) -> None:
        """Write the head, once, and never into a connection that a view took and did not give back."""
        if self.loan is not None and self.loan.open:
            self.loan.cut()
        try:
            super().send_headers()
        except OSError:
            self.client_gone = True
            raise

    def _emit_body(self, data: bytes) -> None:
        try:
            super()._emit_body(data)
        except OSError:
            self.client_gone = True
            raise

    def default_headers(self) -> list[str]:
        """No `Server` of ours (a box's own passes), and `Date` only where the app has none."""
        if not self.worker.alive:
            self.force_close()
        if self.upgrade:
            connection = "upgrade"
        elif self.should_close():
            connection = "close"
        else:
            connection = "keep-alive"
        lines = [f"HTTP/1.{self.req.version[1]} {self.status}\r\n", f"Connection: {connection}\r\n"]
        if not any(name.lower() == "date" for name, _ in self.headers):
            lines.append(f"Date: {http_date()}\r\n")
        if self.chunked:
            lines.append("Transfer-Encoding: chunked\r\n")
        return lines
