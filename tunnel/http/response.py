"""The response side: bytes from the box in, a filtered head and body bytes out, and where the answer honestly ends.

It does not know how the request was built, sockets or clocks. What a box says is not trusted: heads are bounded and
read strictly, interim answers are counted, lengths are checked against what comes.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from tunnel.http.body import BodyReader, Buffer, ChunkedReader, FramingError, LengthReader, UntilCloseReader
from tunnel.http.errors import AnswerCut, MisuseError, ProxyError
from tunnel.http.fields import (
    ANSWER_RULES,
    CONNECTION,
    CONTENT_LENGTH,
    DROP,
    LOCATION,
    NOT_NOMINABLE,
    PASS,
    TRANSFER_ENCODING,
    UPGRADE,
    Field,
    HeadSink,
    list_members,
    match_value,
    without,
)
from tunnel.http.limits import LIMITS, Limits

NO_LENGTH: Final = -1
"""`AnswerHead.length` where no length is known: the answer is chunked, or ends with its connection."""

_SANDBOX: Final = (b"Content-Security-Policy", b"sandbox")
_NOSNIFF: Final = (b"X-Content-Type-Options", b"nosniff")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_BODYLESS: Final = frozenset({204, 304})

_STATUS_LINES: Final[dict[bytes, tuple[int, bytes, bool]]] = {
    b"HTTP/1.1 200 OK": (200, b"OK", True),
    b"HTTP/1.1 204 No Content": (204, b"No Content", True),
    b"HTTP/1.1 206 Partial Content": (206, b"Partial Content", True),
    b"HTTP/1.1 304 Not Modified": (304, b"Not Modified", True),
    b"HTTP/1.1 404 Not Found": (404, b"Not Found", True),
}


class AnswerHead:
    """The box's answer as the client may see it.

    `fields` holds neither framing nor `Connection` nor `X-Request-ID`: `client_head` adds those, or whoever writes
    the answer does. Date and Server are the box's own and pass; none is made up where it sent none.
    """

    __slots__ = ("bodyless", "fields", "keep_alive", "length", "reason", "status", "upgrade")

    def __init__(self, status: int, reason: bytes, fields: list[Field]) -> None:
        self.status = status
        self.reason = reason
        """As sent; may be empty."""
        self.fields = fields
        self.length = NO_LENGTH
        """The `Content-Length` to pass on (also for HEAD and 304), NO_LENGTH without one."""
        self.bodyless = False
        """No body follows whatever the fields say: HEAD, 204, 304, 101."""
        self.keep_alive = False
        """The box leaves its connection open after this answer."""
        self.upgrade = b""
        """The protocol switched to (101), as sent."""

    def __repr__(self) -> str:
        return f"<AnswerHead {self.status} {self.reason.decode('latin-1')} length={self.length}>"


class ResponseReader:
    """Reads one answer of a box. `method` is the request's; `mount` the raw prefix that `Location` gets.

    `upgrade` says that a switch of protocols (101) was asked for. After it `receive` hands bytes on as they are.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_fresh",
        "_interim",
        "_limits",
        "_method",
        "_mount",
        "_upgrade",
        "answered",
        "head",
    )

    def __init__(self, method: bytes, *, mount: bytes = b"", upgrade: bool = False, limits: Limits = LIMITS) -> None:
        self._method = method
        self._mount = mount
        self._upgrade = upgrade
        self._limits = limits
        self._buffer = b""
        self._interim = 0
        self._fresh = True
        self._body: BodyReader | None = None
        self.answered = False
        """Whether a single byte came, be it of an interim answer."""
        self.head: AnswerHead | None = None

    @property
    def complete(self) -> bool:
        """The whole answer was received; never true for a body cut short, nor after a switch of protocols."""
        return self._body is not None and self._body.done

    @property
    def extra(self) -> bool:
        """Bytes came behind the answer's end: the connection must not be used again."""
        return self._body is not None and len(self._body.rest) > 0

    def receive(self, data: bytes) -> list[Buffer]:
        """Take bytes from the box; the body bytes among them, as views of `data`.

        `data` must not change later (`bytes`, not a buffer that is reused). Raises ProxyError AGENT_BAD_RESPONSE
        while no head is known, AnswerCut after it.
        """
        if not data:
            raise MisuseError("the end of the stream is told by receive_end()")
        self.answered = True
        if self._body is not None:
            return self._receive_body(self._body, data, 0)
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        return self._receive_first(data, self._receive_head(data))

    def _receive_first(self, data: bytes, start: int) -> list[Buffer]:
        """What came with the end of the head. A method: a compiler takes `_body` for known across calls."""
        return [] if self._body is None else self._receive_body(self._body, data, start)

    @staticmethod
    def _receive_body(body: BodyReader, data: bytes, start: int) -> list[Buffer]:
        try:
            return body.feed(data, start) if start < len(data) else []
        except FramingError as error:
            raise AnswerCut("AGENT_BAD_RESPONSE", str(error)) from error

    def receive_end(self) -> None:
        """The stream from the box ended cleanly (half-close). Raises unless the answer is complete by that.

        ProxyError AGENT_UNREACHABLE when not one byte came, AGENT_BAD_RESPONSE within a head; AnswerCut in a body.
        """
        if self._body is None:
            if not self.answered:
                raise ProxyError("AGENT_UNREACHABLE", "the stream ended without one byte")
            raise ProxyError("AGENT_BAD_RESPONSE", "the stream ended within the head")
        if not self._body.end():
            raise AnswerCut("AGENT_BAD_RESPONSE", "the stream ended within the body")

    def _receive_head(self, data: bytes) -> int:
        """Read heads until the final one; where its body starts in `data`."""
        start = 0
        while True:
            end = data.find(b"\r\n\r\n", start, start + self._limits.head_bytes)
            if end < 0:
                self._keep(data[start:] if start else data)
                return 0
            end += 4
            if self._take_head(data[start:end]):
                return end
            start = end
            if start == len(data):
                return 0

    def _keep(self, part: bytes) -> None:
        """Wait for more, unless no head can come of it: not HTTP, a bare LF, more than the limit."""
        if not b"HTTP/1.".startswith(part[:7]):
            raise _bad("no HTTP")
        if len(part) >= self._limits.head_bytes:
            raise _bad("a head over the limit")
        newline = part.find(b"\n")
        if newline > 0 and (part[newline - 1] != 13 or b"\n\n" in part):
            raise _bad("a bare LF in the head")
        self._buffer = part

    def _take_head(self, raw: bytes) -> bool:
        """Read one whole head; whether it is the final one."""
        status, reason, http11 = _status_line(raw[: raw.index(b"\r\n")])
        fields = _parse_fields(raw, status)
        if len(fields) > self._limits.head_fields:
            raise _bad(f"a head of {len(fields)} fields")
        if status < 200 and status != 101:
            self._interim += 1
            if self._interim > self._limits.interim_responses:
                raise _bad("too many interim answers")
            return False
        draft = _Draft(self._mount)
        head = AnswerHead(status, reason, draft.filter(fields))
        head.keep_alive = b"close" not in draft.options if http11 else b"keep-alive" in draft.options
        if status == 101:
            self._body = self._switch(head, draft)
        else:
            self._body = self._framing(head, draft, http11=http11)
        head.fields += draft.added
        self.head = head
        return True

    def _switch(self, head: AnswerHead, draft: _Draft) -> BodyReader:
        if not self._upgrade or not draft.upgrade:
            raise _bad("a switch of protocols that nobody asked for")
        head.bodyless = True
        head.keep_alive = False
        head.upgrade = b", ".join(draft.upgrade)
        return _Switched()

    def _framing(self, head: AnswerHead, draft: _Draft, *, http11: bool) -> BodyReader:
        """Where the body ends (RFC 9112 §6.3), with every doubt refused."""
        if draft.coding is not None:
            if draft.length is not None:
                raise _bad("both Content-Length and Transfer-Encoding")
            if draft.coding != b"chunked" or not http11:
                raise _bad("an unknown transfer coding")
        elif draft.length is not None:
            if _DIGITS.match(draft.length) is None:
                raise _bad("a bad Content-Length")
            head.length = int(draft.length)
        if self._method == b"HEAD" or head.status in _BODYLESS:
            head.bodyless = True
            if head.status == 204:
                head.length = NO_LENGTH
            return LengthReader(0)
        if draft.coding is not None:
            return ChunkedReader(self._limits.chunk_line, self._limits.trailer_bytes)
        if head.length != NO_LENGTH:
            return LengthReader(head.length)
        head.keep_alive = False
        return UntilCloseReader()


class _Switched(UntilCloseReader):
    """After 101: bytes of another protocol, which ends when it ends. Never `done`, so never reusable."""

    __slots__ = ()

    def end(self) -> bool:
        """A clean end, but of no HTTP answer."""
        return True


class _Draft:
    """What one pass over an answer's fields finds."""

    __slots__ = ("added", "coding", "length", "mount", "options", "upgrade")

    def __init__(self, mount: bytes) -> None:
        self.mount = mount
        self.length: bytes | None = None
        self.coding: bytes | None = None
        self.upgrade: list[bytes] = []
        self.options: list[bytes] = []
        self.added: tuple[Field, ...] = (_NOSNIFF, _SANDBOX)

    def filter(self, fields: list[Field]) -> list[Field]:
        """The fields that pass, in their order."""
        passed: list[Field] = []
        find = ANSWER_RULES.find
        for field in fields:
            name = field[0]
            rule = find(name)
            if rule is None:
                rule = ANSWER_RULES.learn(name)
            if rule == PASS:
                passed.append(field)
            elif rule != DROP:
                self._take(rule, field, passed)
        if self.options:
            nominated = set(self.options) - NOT_NOMINABLE
            if nominated:
                passed = without(passed, nominated)
        return passed

    def _take(self, rule: int, field: Field, passed: list[Field]) -> None:
        name, value = field
        if rule == CONTENT_LENGTH:
            if self.length is not None:
                raise _bad("two Content-Length fields")
            self.length = value.rstrip(b" \t")
        elif rule == TRANSFER_ENCODING:
            if self.coding is not None:
                raise _bad("two Transfer-Encoding fields")
            self.coding = value.rstrip(b" \t").lower()
        elif rule == CONNECTION:
            self.options += list_members((value,))
        elif rule == UPGRADE:
            self.upgrade.append(value)
        elif rule == LOCATION:
            # Root-relative alone: `//host/` names another authority, and `/\` is read as one by browsers, so the
            # first passes as the box meant it and the second is harmless behind the mount.
            rooted = value.startswith(b"/") and not value.startswith(b"//")
            passed.append((name, self.mount + value) if rooted and self.mount else field)
        else:
            # The box's own policy stays: browsers enforce all of them, so ours can only narrow it.
            passed.append(field)
            if value.strip(b" \t").lower() == b"sandbox":
                self.added = (_NOSNIFF,)


def _status_line(line: bytes) -> tuple[int, bytes, bool]:
    """Status, reason, whether HTTP/1.1."""
    known = _STATUS_LINES.get(line)
    if known is not None:
        return known
    match = _STATUS_LINE.match(line)
    if match is None:
        raise _bad("no HTTP status line")
    return int(match.group(2)), match.group(3) or b"", match.group(1) == b"1"


def _parse_fields(raw: bytes, status: int) -> list[Field]:
    sink = HeadSink()
    parser = httptools.HttpResponseParser(sink)
    try:
        parser.feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        # llhttp stops with an error behind a 101 without `Upgrade`; the fields are whole by then.
        if status != 101 or not sink.complete:
            raise _bad(f"head: {error}") from error
    if not sink.complete:
        raise _bad("not one whole head")
    return sink.fields


def _bad(detail: str) -> ProxyError:
    return ProxyError("AGENT_BAD_RESPONSE", detail)


def client_head(
    head: AnswerHead, *, request_id: str, http11: bool, keep_alive: bool, extra: list[Field] | None = None
) -> tuple[bytes, bool]:
    """The head for the client as bytes, and whether body bytes go out as chunks (`encode_chunk`).

    For drivers that write to the client's socket themselves. `keep_alive` is whether the connection may stay open;
    without a length an HTTP/1.0 client's never does. `extra` are fields of ours (CORS), which must be well formed.
    """
    before, after, chunked = head_parts(head, http11=http11, keep_alive=keep_alive)
    return b"".join((before, request_id.encode("latin-1"), field_lines(extra) if extra else b"", after)), chunked


def field_lines(fields: list[Field]) -> bytes:
    """Fields of ours as lines that follow another, each with its CRLF in front. Raises MisuseError."""
    if any(match_value(value) is None for _, value in fields):
        raise MisuseError("a field of ours with a forbidden byte")
    return b"".join([b"\r\n" + name + b": " + value for name, value in fields])


def head_parts(head: AnswerHead, *, http11: bool, keep_alive: bool) -> tuple[bytes, bytes, bool]:
    """The head for the client up to the request's id, what follows it, and whether the body goes out as chunks."""
    lines = [b"HTTP/1.1 %d %b" % (head.status, head.reason)]
    lines += [name + b": " + value for name, value in head.fields]
    lines.append(b"X-Request-ID: ")
    chunked = False
    last = [b""]
    if head.upgrade:
        last.append(b"Connection: Upgrade\r\nUpgrade: " + head.upgrade)
    else:
        if head.length != NO_LENGTH:
            last.append(b"Content-Length: %d" % head.length)
        elif not head.bodyless:
            chunked = http11
            keep_alive = keep_alive and http11
            if chunked:
                last.append(b"Transfer-Encoding: chunked")
        if not keep_alive:
            last.append(b"Connection: close")
        elif not http11:
            last.append(b"Connection: keep-alive")
    last.append(b"\r\n")
    return b"\r\n".join(lines), b"\r\n".join(last), chunked
