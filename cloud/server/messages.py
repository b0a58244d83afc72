"""What the API's worker class reads and writes differently from gunicorn: requests, their bodies, answers.

It waits for no socket but the one of a request's body, and does not know Django. `cloud.server.worker` drives it.
"""

from __future__ import annotations

import re
import socket
import time
from typing import Any, Final

from gunicorn.http import errors as parse_errors
from gunicorn.http.body import Body, ChunkedReader
from gunicorn.http.message import Request
from gunicorn.http.unreader import SocketUnreader
from gunicorn.http.wsgi import HEADER_VALUE_RE, Response
from gunicorn.util import http_date

from cloud.server.head import REASONS, Refusal, refusal_headers
from cloud.server.slots import Slots
from tunnel.contract.authority import is_utf8, origin_form, percent_encoded

CHUNK_LINE: Final = 1024
DRAIN_BYTES: Final = 64 * 1024
"""Of a body that the view left unread, read away at most so that the connection can be kept."""
ONE_PIECE: Final = 64 * 1024
"""A body up to this is copied once more to be sent with its head."""
UPLOADS: Final = "/storage/"
"""Paths under which a body is a file, as large as its signed URL says. Every other body that is read here is a handful
of fields: what goes to a box is not, the view takes the connection for it."""
UPLOAD_MIN_RATE: Final = 512
"""Bytes a second that an upload must come at, once its grace is over: a byte now and then holds no thread for ever."""

_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):([\t\x20-\x7e\x80-\xff]*)")
_SINGLE: Final = frozenset({"HOST", "CONTENT-TYPE", "CONTENT-LENGTH", "TRANSFER-ENCODING"})


class BodyFault(OSError):
    """The body cannot be read to its end. An OSError, which Django turns into UnreadablePostError."""


class StrictChunks(ChunkedReader):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's reader of chunks, but strict: a line that ends with a bare LF is a fault. gunicorn would wait on."""

    def __init__(self, request: Request, unreader: Any) -> None:
        super().__init__(request, unreader)
        self.limit_chunk_size_line = CHUNK_LINE

    def read_into(self, unreader: Any, buf: bytearray) -> None:
        """More bytes for a line that has no end yet."""
        if buf.count(b"\n") != buf.count(b"\r\n"):
            raise parse_errors.InvalidChunkSize(b"bare LF")
        super().read_into(unreader, buf)


class BodyUnreader(SocketUnreader):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's, which asks a body before each wait: gunicorn reads on until it has what it wants, however long."""

    body: WatchedBody | None = None
    """The one that is just read."""

    def chunk(self, size_hint: int | None = None) -> bytes:
        """What the socket has, at least a byte; empty at the end. Raises OSError."""
        if self.body is None:
            return bytes(super().chunk(size_hint))
        self.body.about_to_wait()
        data: bytes = super().chunk(size_hint)
        self.body.came += len(data)
        return data


class WatchedBody(Body):  # type: ignore[misc]  # gunicorn has no types
    """`wsgi.input`: asks for the body with `100 Continue` when it is first read, bounds it in time, notes its fault."""

    grace_seconds = 20.0
    """From the first read, for the whole body; to an upload UPLOAD_MIN_RATE adds time for the bytes that came."""
    slots = Slots(16, shared=True)
    """For threads that wait for a body: a share of all (set by the worker), so that slow bodies never hold them all."""
    upload_slots = Slots(16, shared=False)
    """Of uploads, which nobody sends whom the view has not let in: those of strangers take none of them."""

    def __init__(self, reader: Any, request: ApiRequest, sock: socket.socket) -> None:
        super().__init__(reader)
        self._request = request
        self._sock = sock
        self._length: int | None = getattr(reader, "length", None)
        self._received = 0
        self._begun = False
        self._started = 0.0
        self._slots: Slots | None = None
        """The pool in which this read holds a slot; None: no slot, and the socket's timeout is as it was."""
        self._address = str(request.peer_addr[0]) if isinstance(request.peer_addr, tuple) else ""
        self._idle_timeout = sock.gettimeout()
        self.came = 0
        """Bytes from the client, those of the chunks' lines included."""
        self.drain_until: float | None = None
        """Set by the worker when the view left a body behind: the monotonic time by which it must have come."""

    def read(self, size: int | None = None) -> bytes:
        """As a file. Most requests have no body at all."""
        return b"" if self._length == 0 else bytes(super().read(size))

    def about_to_wait(self) -> None:
        """Take a slot and set the socket's timeout; called before each recv, which most bodies do not need, since they
        came with their head. Raises BodyFault if no slot comes free, TimeoutError if the body's time is over."""
        if self._slots is None:
            asked = time.monotonic()
            wanted = self.upload_slots if self._is_upload() else self.slots
            if not wanted.enter(self._address):
                raise self._fault(Refusal("OVERLOADED", "too many bodies are waited for"))
            self._slots = wanted
            self._started += time.monotonic() - asked  # that wait was not the client's doing
        left = self._until() - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._sock.settimeout(left)

    def _until(self) -> float:
        until = self._started + self.grace_seconds
        if self._is_upload():
            until += self.came / UPLOAD_MIN_RATE
        return until if self.drain_until is None else min(until, self.drain_until)

    def _is_upload(self) -> bool:
        """Whether the body is an upload that the view reads (and not the rest of one that it left unread)."""
        return self.drain_until is None and bool(self._request.path.startswith(UPLOADS))

    def _read_reader(self, size: int) -> bytes:
        unreader = self._request.unreader
        if not self._begun:
            self._begin()
        unreader.body = self
        try:
            data: bytes = super()._read_reader(size)
        except BodyFault:
            raise
        except TimeoutError as error:
            raise self._fault(Refusal("REQUEST_TIMEOUT", "the body came too slowly")) from error
        except parse_errors.ParseException as error:
            raise self._fault(Refusal("BAD_REQUEST", type(error).__name__)) from error
        except OSError as error:
            raise self._fault(Refusal("BAD_REQUEST", "the client left within the body")) from error
        finally:
            unreader.body = None
            if self._slots is not None:
                self._slots.leave(self._address)
                self._slots = None
                self._sock.settimeout(self._idle_timeout)
        self._received += len(data)
        if not data and size and self._length is not None and self._received < self._length:
            raise self._fault(Refusal("BAD_REQUEST", "the client left within the body"))
        return data

    def _begin(self) -> None:
        request = self._request
        self._begun, self._started = True, time.monotonic()
        self.came = request.unreader.buf.getbuffer().nbytes  # with the head
        if request.expects_continue and not request.continued and self._length != 0:
            request.continued = True
            self._sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _fault(self, refusal: Refusal) -> BodyFault:
        self.failed = True
        self._request.fault = refusal
        return BodyFault(str(refusal))


class ApiRequest(Request):  # type: ignore[misc]  # gunicorn has no types
    """A request head read strictly, with its raw fields and target kept for the proxy views."""

    body: Any
    path: Any

    def __init__(self, cfg: Any, unreader: Any, peer_addr: Any, req_number: int = 1) -> None:
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.expects_continue = False
        self.continued = False
        self.fault: Refusal | None = None
        self.request_id = ""
        super().__init__(cfg, unreader, peer_addr, req_number)
        self._be_strict()
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
    def body_to_come(self) -> bool:
        """Whether anything of the body may be left to be read, or its reading failed."""
        return self.body.failed or getattr(self.body.reader, "length", None) != 0

    @property
    def body_in_the_way(self) -> bool:
        """What is left of the body rules the connection out for another request.

        The client still waits for `100 Continue`, so that nobody knows whether its body follows; or more is to come
        than is worth reading away.
        """
        body = self.body
        if self.fault is not None:
            return True
        if not isinstance(body, WatchedBody):  # a view took the connection and answers for it
            return False
        waits = self.expects_continue and not self.continued
        if isinstance(body.reader, ChunkedReader):
            return waits
        return bool(body.reader.length > (0 if waits else DRAIN_BYTES))

    def parse_headers(self, data: bytes, from_trailer: bool = False) -> list[tuple[str, str]]:
        """The fields of a head for the environ; beside them all as they came.

        In the place of gunicorn's reading, which costs as much as the rest of a small request. Trailers, which nobody
        sees, stay gunicorn's. Names with `_` come raw alone: the environ could not tell them from those with `-`.
        """
        if from_trailer:
            trailers: list[tuple[str, str]] = super().parse_headers(data, from_trailer)
            return trailers
        fields: list[tuple[str, str]] = []
        single: set[str] = set()
        for line in bytes(data).split(b"\r\n"):
            match = _FIELD.fullmatch(line)
            if match is None:
                raise Refusal("BAD_REQUEST", "a malformed field")
            raw_name, raw_value = match.groups()
            raw_value = raw_value.strip(b" \t")
            self.raw_headers.append((raw_name, raw_value))
            name = raw_name.decode("ascii").upper()
            if name in _SINGLE:
                if name in single:
                    raise Refusal("BAD_REQUEST", "a field that may stand once only")
                single.add(name)
            if b"_" not in raw_name:
                fields.append((name, raw_value.decode("latin-1")))
        return fields

    def parse_request_line(self, line_bytes: bytes) -> None:
        """As gunicorn, which wants targets percent-encoded: raw UTF-8 is read so, and the proxy gets the raw bytes."""
        bits = line_bytes.split(b" ", 2)
        if line_bytes.isascii() or len(bits) != 3 or not is_utf8(bits[1]):
            super().parse_request_line(line_bytes)
            return
        raw = bits[1]
        bits[1] = percent_encoded(raw)
        super().parse_request_line(b" ".join(bits))
        self.uri = raw.decode("latin-1")

    def _names_own_host(self) -> bool:
        """Take the absolute form of a target (RFC 9112 section 3.2.2) if it names the host of the Host field."""
        hosts = [value for name, value in self.headers if name == "HOST"]
        own = origin_form(self.uri.encode("latin-1"), hosts[0].encode("latin-1")) if len(hosts) == 1 else None
        if own is None:
            return False
        self.uri = own.decode("latin-1")
        self.path = self.path or "/"
        return True

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
        if "#" in self.uri:
            raise Refusal("BAD_REQUEST", "a fragment in the target")
        if self.method == "CONNECT" or not (self.uri.startswith("/") or self.uri == "*" or self._names_own_host()):
            raise Refusal("BAD_REQUEST", "the target is not in origin form")
        names = [name for name, _ in self.headers]
        if self.version == (1, 1) and "HOST" not in names:
            raise Refusal("BAD_REQUEST", "no Host field")
        codings = [value.lower() for name, value in self.headers if name == "TRANSFER-ENCODING"]
        if codings and codings != ["chunked"]:
            raise Refusal("BAD_REQUEST", "an unknown transfer coding")
        expectations = [value.lower() for name, value in self.headers if name == "EXPECT"]
        if expectations and expectations != ["100-continue"]:
            raise Refusal("BAD_REQUEST", "an unknown expectation")
        self.expects_continue = bool(expectations) and self.version == (1, 1)  # HTTP/1.0 knows none (RFC 9110 §10.1.1)


class ApiResponse(Response):  # type: ignore[misc]  # gunicorn has no types
    """An answer with the app's own Server and Date, if any; a refusal stands in for it where the body failed."""

    headers: list[tuple[str, str]]
    headers_sent: bool
    loan: Any = None
    """The `Takeover` of the request, whose state decides whether anything may be written here."""
    worker: Any = None
    """The worker, whose `alive` is asked when the head goes out: one that stops announces the connection's end."""
    client_gone = False
    """The client took no more; set before the error goes on, to tell it from the app's own errors."""
    _replaced: bytes | None = None
    _body: bytes | None = None
    """The whole body, to go out with the head: one call to the kernel and one segment less."""

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """As PEP 3333. After a fault of the request's body the app's word is replaced, unless it says the same."""
        fault: Refusal | None = self.req.fault
        if fault is not None:
            self.force_close()
            if not status.startswith(str(fault.status)):
                self._replaced = fault.body(self.req.request_id)
                status = f"{fault.status} {REASONS[fault.status]}"
                headers = refusal_headers(fault, self._replaced, self.req.request_id)
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
            self._body = arg if not self.headers_sent and self._is_whole(arg) else None
            super().write(arg)

    def _is_whole(self, data: bytes) -> bool:
        """Whether `data` is the body, and small enough to go out in one piece with the head."""
        return len(data) == self.response_length and len(data) <= ONE_PIECE and not self._omits_body

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
        if self.headers_sent:
            return
        lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
        head = "".join(lines).encode("latin-1")
        try:
            self.sock.sendall(head + self._body if self._body else head)
        except OSError:
            self.client_gone = True
            raise
        self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        if self._body is not None:  # it went out with the head
            self._body = None
            return
        try:
            super()._emit_body(data)
        except OSError:
            self.client_gone = True
            raise

    def default_headers(self) -> list[str]:
        """No `Server` of ours (a box's own passes), and `Date` only where the app has none."""
        if self.worker.stopping or not self.worker.alive or self.req.body_in_the_way:
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
