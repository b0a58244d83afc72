"""Answers that hold a file's bytes: whole, in part, in several parts, or none. At constant memory.

One span leaves by the server's sendfile (`wsgi.file_wrapper`), so that no byte passes through Python.
"""

from __future__ import annotations

import os
import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from typing import Final

from django.http import FileResponse, HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header, http_date, parse_http_date_safe

from apps.common.errors import DomainError
from apps.storage.api.conditions import evaluate
from apps.storage.api.ranges import Span, Unsatisfiable, spans_of
from apps.storage.base import CHUNK
from apps.storage.signing import Grant

TYPE: Final = "application/octet-stream"


class Window:
    """So many bytes of an open file, as the server's file wrapper wants them. Closes the file, and calls `done` once:

    at the latest when it is collected, as it is where an answer never reaches the server.
    """

    def __init__(self, file: FileIO, span: Span, done: Callable[[], None]) -> None:
        self._file = file
        self._done = weakref.finalize(self, done)
        self._left = span.length
        file.seek(span.start)

    def fileno(self) -> int:
        """For sendfile, which starts at the file's position and is bounded by Content-Length."""
        return self._file.fileno()

    def read(self, size: int = CHUNK) -> bytes:
        """The next piece, empty at the end. Raises OSError for a file that has become shorter."""
        if not self._left:
            return b""
        piece = self._file.read(min(size, self._left) if size > 0 else self._left)
        if not piece:
            raise OSError("the file is shorter than it was")
        self._left -= len(piece)
        return piece

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._done()


class Several:
    """The body of `multipart/byteranges` (RFC 9110 §14.6); `done` as with a Window."""

    def __init__(self, file: FileIO, spans: Sequence[Span], size: int, done: Callable[[], None]) -> None:
        self._file, self._spans = file, spans
        self._done = weakref.finalize(self, done)
        self.boundary = secrets.token_hex(16)
        self._heads = [
            f"\r\n--{self.boundary}\r\nContent-Type: {TYPE}\r\n"
            f"Content-Range: {span.content_range(size)}\r\n\r\n".encode()
            for span in spans
        ]
        self._tail = f"\r\n--{self.boundary}--\r\n".encode()

    @property
    def length(self) -> int:
        """Bytes in all."""
        return sum(map(len, self._heads)) + sum(span.length for span in self._spans) + len(self._tail)

    def __iter__(self) -> Iterator[bytes]:
        for head, span in zip(self._heads, self._spans, strict=True):
            yield head
            window = Window(self._file, span, _nothing)
            while piece := window.read():
                yield piece
        yield self._tail

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._done()


def _nothing() -> None:
    """A window within a larger answer leaves the end to it."""


def answer(request: HttpRequest, grant: Grant, file: FileIO, done: Callable[[], None]) -> HttpResponseBase:
    """The answer to a GET or HEAD; `file` and `done` are its business from here on.

    Raises DomainError RANGE_NOT_SATISFIABLE, PRECONDITION_FAILED, and then has not begun.
    """
    tag, modified = f'"{grant.sha256}"', int(_mtime(file))
    common = {
        "ETag": tag,
        "Last-Modified": http_date(modified),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Content-Disposition": content_disposition_header(as_attachment=True, filename=grant.filename) or "attachment",
    }
    verdict = evaluate(request.method or "", request.headers, tag, modified)
    if verdict == "failed":
        raise DomainError("PRECONDITION_FAILED")
    if verdict == "unchanged":
        # RFC 9110 §8.6: the length that a 200 would have, or none. Without this line Django would say 0.
        return _bare(304, {**common, "Content-Length": str(grant.size)}, file, done)
    spans = _wanted(request, grant.size, tag, modified)
    if spans is None:
        return _one(request, Span(0, grant.size), 200, common, file, done)
    if len(spans) == 1:
        common["Content-Range"] = spans[0].content_range(grant.size)
        return _one(request, spans[0], 206, common, file, done)
    return _several(spans, grant.size, common, file, done)


def _wanted(request: HttpRequest, size: int, tag: str, modified: int) -> Sequence[Span] | None:
    """The spans to send; None: the whole. Raises DomainError RANGE_NOT_SATISFIABLE."""
    asked, condition = request.headers.get("Range"), request.headers.get("If-Range")
    if asked is None or request.method != "GET":  # RFC 9110 §14.2: for GET alone
        return None
    if condition is not None and condition.strip() != tag and parse_http_date_safe(condition) != modified:
        return None
    try:
        return spans_of(asked, size)
    except Unsatisfiable:
        raise DomainError("RANGE_NOT_SATISFIABLE", headers={"Content-Range": f"bytes */{size}"}) from None


def _one(
    request: HttpRequest, span: Span, status: int, headers: Mapping[str, str], file: FileIO, done: Callable[[], None]
) -> HttpResponseBase:
    headers = {**headers, "Content-Length": str(span.length), "Content-Type": TYPE}
    if request.method == "HEAD":
        return _bare(status, headers, file, done)
    response = FileResponse(Window(file, span, done), status=status, headers=headers)
    response.block_size = CHUNK
    return response


def _several(
    spans: Sequence[Span], size: int, headers: Mapping[str, str], file: FileIO, done: Callable[[], None]
) -> HttpResponseBase:
    body = Several(file, spans, size, done)
    kind = f"multipart/byteranges; boundary={body.boundary}"
    headers = {**headers, "Content-Type": kind, "Content-Length": str(body.length)}
    return StreamingHttpResponse(body, status=206, headers=headers)


def _bare(status: int, headers: Mapping[str, str], file: FileIO, done: Callable[[], None]) -> HttpResponse:
    file.close()
    done()
    response = HttpResponse(status=status, headers=dict(headers))
    if "Content-Type" not in headers:
        del response["Content-Type"]
    return response


def _mtime(file: FileIO) -> float:
    return os.fstat(file.fileno()).st_mtime
