"""The response side: bytes from the box in, a filtered head and body bytes out, and where the answer honestly ends.

It does not know how the request was built, sockets or clocks. What a box says is not trusted: heads are bounded and
read strictly, interim answers are counted, lengths are checked against what comes.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from tunnel.http import caching
from tunnel.http.body import BodyReader, Buffer, ChunkedReader, FramingError, LengthReader, UntilCloseReader
from tunnel.http.errors import AnswerCut, MisuseError, ProxyError
from tunnel.http.fields import (
    ANSWER_RULES,
    CACHE_CONTROL,
    CONNECTION,
    CONTENT_LENGTH,
    DROP,
    LOCATION,
    NOT_NOMINABLE,
    PASS,
    REFRESH,
    SEC_WEBSOCKET,
    TRANSFER_ENCODING,
    UPGRADE,
    VARY,
    Field,
    HeadSink,
    list_members,
    match_value,
    without,
)
from tunnel.http.limits import LIMITS, Limits
from tunnel.http.location import Shown, place

NO_LENGTH: Final = -1
"""`AnswerHead.length` where no length is known: the answer is chunked, or ends with its connection."""

_OURS: Final[tuple[Field, ...]] = (
    (b"X-Content-Type-Options", b"nosniff"),
    (b"X-Frame-Options", b"DENY"),
    (b"Referrer-Policy", b"same-origin"),
    (b"Content-Security-Policy", b"sandbox"),
)
"""Added last, always, when all that a box said has been judged: nothing that it says takes them off.

No `Cross-Origin-Opener-Policy`: browsers must not show a page that has one and is sandboxed (HTML, "creating navigation
params by fetching").
"""
_OURS_ALONE: Final[tuple[Field, ...]] = (caching.PRIVATE, caching.VARY, *_OURS)
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_BLANKS = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+([ \t]+):")
_REFRESH = re.compile(
    rb"([ \t]*[0-9.]*[ \t]*[;, \t]?[ \t]*(?:url[ \t]*=[ \t]*)?)([\"']?)(.*)\Z", re.IGNORECASE | re.DOTALL
)
_BODYLESS: Final = frozenset({204, 304})

_STATUS_LINES: Final[dict[bytes, tuple[int, bytes, bool]]] = {
    b"HTTP/1.1 200 OK": (200, b"OK", True),
    b"HTTP/1.1 204 No Content": (204, b"No Content", True),
    b"HTTP/1.1 206 Partial Content": (206, b"Partial Content", True),
    b"HTTP/1.1 304 Not Modified": (304, b"Not Modified", True),
    b"HTTP/1.1 404 Not Found": (404, b"Not Found", True),
}


_ENDLESS: Final = (b"multipart/x-mixed-replace", b"text/event-stream")


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

    @property
    def endless(self) -> bool:
        """Whether it is one without an end, by its type."""
        return self.length == NO_LENGTH and any(
            name.lower() == b"content-type" and value.lower().lstrip().startswith(_ENDLESS)
            for name, value in self.fields
        )


class ResponseReader:
    """Reads one answer of a box. `method` is the request's.

    `mount`, `hosts` and `home` are those of `Shown`, which say where a `Location` may lead; `sent` is the head that the
    box was sent. `upgrade` says that a switch of protocols (101) was asked for. After it `receive` hands bytes on as
    they are.
    """

    __slots__ = (
        "_body",
        "_held",
        "_home",
        "_hosts",
        "_limits",
        "_looked",
        "_method",
        "_mount",
        "_sent",
        "_upgrade",
        "answered",
        "head",
        "interim",
    )

    def __init__(
        self,
        method: bytes,
        *,
        mount: bytes = b"",
        hosts: tuple[bytes, ...] = (),
        home: bytes = b"",
        sent: bytes = b"",
        upgrade: bool = False,
        limits: Limits = LIMITS,
    ) -> None:
        self._method = method
        self._mount = mount
        self._hosts = hosts
        self._home = home
        self._sent = sent
        self._upgrade = upgrade
        self._limits = limits
        self._held: bytearray | None = None
        self._looked = 0  # of what is held, in vain
        self.interim = 0
        """How many interim answers came."""
        self._body: BodyReader | None = None
        self.answered = False
        """Whether a single byte came, be it of an interim answer."""
        self.head: AnswerHead | None = None

    def placed(self, url: bytes) -> bytes:
        """A URL that the box says, as the client has to ask for it."""
        words = self._sent.split(b" ", 2)
        path = words[1].partition(b"?")[0] if len(words) == 3 else b"/"
        return place(url, Shown(self._mount, self._home, self._hosts, path))

    @property
    def places(self) -> bool:
        """Whether it is known as what the box is shown, so that URLs may have to be changed."""
        return bool(self._mount or self._home)

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
        if self._held is not None:
            whole = self._hold(self._held, data)
            if whole is None:
                return []
            data = whole
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
        most = self.interim + self._limits.interim_at_once
        while True:
            end = head_end(data, start, start + self._limits.answer_head_bytes)
            if end < 0:
                self._held = bytearray(data[start:] if start else data)
                self._still_a_head(self._held)
                return 0
            if self._take_head(data[start:end]):
                return end
            if self.interim > most:
                raise _bad("too many interim answers at once")
            start = end
            if start == len(data):
                return 0

    def _hold(self, held: bytearray, data: bytes) -> bytes | None:
        """Add `data` to the beginning of a head; all of it once the head is whole. Looks at no byte twice."""
        held += data
        if head_end(held, max(0, self._looked - 2), self._limits.answer_head_bytes) < 0:
            self._still_a_head(held)
            return None
        self._held = None
        return bytes(held)

    def _still_a_head(self, held: bytearray) -> None:
        """Wait for more, unless no head can come of it: not HTTP, more than the limit."""
        self._looked = len(held)
        if not b"HTTP/1.".startswith(held[:7]):
            raise _bad("no HTTP")
        if len(held) >= self._limits.answer_head_bytes:
            raise _bad("a head over the limit")

    def _take_head(self, raw: bytes) -> bool:
        """Read one whole head; whether it is the final one."""
        line = raw[: raw.index(b"\n")]
        status, reason, http11 = _status_line(line[:-1] if line.endswith(b"\r") else line)
        if status < 200 and status != 101:  # its fields are nobody's, so that nobody reads them
            self.interim += 1
            if self.interim > self._limits.interim_responses:
                raise _bad("too many interim answers")
            return False
        fields = _parse_fields(raw, status)
        if len(fields) > self._limits.answer_head_fields:
            raise _bad(f"a head of {len(fields)} fields")
        draft = _Draft(self, status)
        head = AnswerHead(status, reason, draft.filter(fields))
        head.keep_alive = b"close" not in draft.options if http11 else b"keep-alive" in draft.options
        if status == 101:
            self._body = self._switch(head, draft)
        else:
            self._body = self._framing(head, draft, http11=http11)
        head.fields += draft.ours()
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

    __slots__ = ("cache", "coding", "length", "options", "reader", "status", "upgrade", "vary")

    def __init__(self, reader: ResponseReader, status: int) -> None:
        self.reader = reader
        self.status = status
        self.length: bytes | None = None
        self.coding: bytes | None = None
        self.upgrade: list[bytes] = []
        self.options: list[bytes] = []
        self.cache: list[bytes] | None = None
        self.vary: list[bytes] | None = None

    def filter(self, fields: list[Field]) -> list[Field]:
        """The fields that pass, in their order; without those that `ours` tells."""
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

    def ours(self) -> tuple[Field, ...]:
        """What follows the box's own fields. No `Connection` of a box's takes any of it off."""
        if self.cache is None and self.vary is None:
            return _OURS_ALONE
        return (
            caching.PRIVATE if self.cache is None else caching.cache_control(self.cache),
            caching.VARY if self.vary is None else caching.vary(self.vary),
            *_OURS,
        )

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
        elif rule == CACHE_CONTROL:
            self.cache = [value] if self.cache is None else [*self.cache, value]
        elif rule == VARY:
            self.vary = [value] if self.vary is None else [*self.vary, value]
        elif rule == LOCATION:
            passed.append((name, self.reader.placed(value)) if self.reader.places else field)
        elif rule == REFRESH:
            passed.append((name, self._refreshed(value)))
        elif rule == SEC_WEBSOCKET and self.status == 101:
            passed.append(field)

    def _refreshed(self, value: bytes) -> bytes:
        """`Refresh` (HTML, "shared declarative refresh steps"): seconds, and a URL that may stand in quotes."""
        match = _REFRESH.match(value) if self.reader.places else None
        if match is None:
            return value
        before: bytes = match.group(1)
        quote: bytes = match.group(2)
        url: bytes = match.group(3)
        if not quote:
            return before + self.reader.placed(url) if url else value
        return before + quote + self.reader.placed(url.partition(quote)[0]) + quote


def head_end(data: bytes | bytearray, start: int, stop: int) -> int:
    """Where a head that begins at `start` ends: behind its first empty line, whatever ends its lines; -1: not yet.

    The boxes of this market end lines with a bare LF, all of them or some. Who takes that must take it everywhere: a
    head that went on behind an empty line would make head of what others take for the body.
    """
    end = data.find(b"\n\r\n", start, stop)
    bare = data.find(b"\n\n", start, stop if end < 0 else end + 1)
    if bare >= 0:
        return bare + 2
    return -1 if end < 0 else end + 3


def final_head(raw: bytes | bytearray) -> int:
    """Where the first head that is not interim begins in `raw`, or what came of it; each in front of it is whole."""
    start = 0
    while raw[start + 9 : start + 10] == b"1" and raw[start + 9 : start + 12] != b"101":
        end = head_end(raw, start, start + LIMITS.answer_head_bytes)
        if end < 0:
            break
        start = end
    return start


def _mended(raw: bytes) -> bytes:
    """A head as it should have been sent: no blanks in front of a colon (RFC 9112 §5.1), CRLF for a bare LF.

    A folded line begins with a blank and is left as it is: it stays refused, as a bare CR does.
    """
    lines = [line[:-1] if line.endswith(b"\r") else line for line in raw.split(b"\n")]
    for number in range(1, len(lines)):
        match = _BLANKS.match(lines[number])
        if match is not None:
            lines[number] = lines[number][: match.start(1)] + lines[number][match.end(1) :]
    return b"\r\n".join(lines)


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
    """The fields of one whole head. What llhttp, which is strict, does not take may be one that can be mended."""
    sink = HeadSink()
    try:
        httptools.HttpResponseParser(sink).feed_data(raw)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        # llhttp stops with an error behind a 101 without `Upgrade`; the fields are whole by then.
        if status != 101 or not sink.complete:
            mended = _mended(raw)
            if mended == raw:
                raise _bad(f"head: {error}") from error
            return _parse_fields(mended, status)  # which cannot be mended further
    if not sink.complete:
        raise _bad("not one whole head")
    return sink.fields


def _bad(detail: str) -> ProxyError:
    return ProxyError("AGENT_BAD_RESPONSE", detail)


_ALLOW_ORIGIN: Final = b"access-control-allow-origin"
_READABLE: Final = frozenset(
    b"cache-control content-language content-length content-type expires last-modified pragma vary"
    b" x-content-type-options x-frame-options referrer-policy content-security-policy strict-transport-security"
    b" access-control-allow-origin".split()
)
"""What needs no leave to be read (Fetch, "CORS-safelisted response-header name"), or says nothing to a page."""


def exposed(head: AnswerHead, ours: list[Field] | None = None) -> bytes:
    """The value of `Access-Control-Expose-Headers` for a box's answer to a page that may read it: all that it says.

    `*` would be less to whoever sends a credential, and is not known to all browsers.
    """
    names = {b"x-request-id": b"X-Request-ID"}
    for name, _ in (*head.fields, *(ours or ())):
        names.setdefault(name.lower(), name)
    return b", ".join([name for lower, name in names.items() if lower not in _READABLE])


def client_head(
    head: AnswerHead, *, request_id: str, http11: bool, keep_alive: bool, extra: list[Field] | None = None
) -> tuple[bytes, bool]:
    """The head for the client as bytes, and whether body bytes go out as chunks (`encode_chunk`).

    For drivers that write to the client's socket themselves. `keep_alive` is whether the connection may stay open;
    without a length an HTTP/1.0 client's never does. `extra` are fields of ours, which must be well formed; where they
    let a page read the answer, they are told with what of it.
    """
    if extra and any(name.lower() == _ALLOW_ORIGIN for name, _ in extra):
        extra = [*extra, (b"Access-Control-Expose-Headers", exposed(head, extra))]
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
