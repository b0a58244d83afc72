"""What can go wrong in a proxied exchange, each with the code that the client is told (api.md, "Error codes").

It does not know heads, bodies, sockets or clocks. Remote faults (the client's or the box's) are `ExchangeError`s and
nothing else ever leaves this package for bytes that came from outside; `MisuseError` is a bug of the driver.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

import orjson

from tunnel.contract import ERROR_STATUS, SECURITY_FIELDS, error_envelope

Language = Literal["en", "zh-hant"]
_SECURITY: Final = tuple(f"{name}: {value}".encode("ascii") for name, value in SECURITY_FIELDS)

_MESSAGES: Final[Mapping[str, tuple[str, str]]] = {
    "BAD_REQUEST": ("The request is malformed.", "請求格式不正確。"),
    "UNAUTHENTICATED": ("A valid credential is required.", "需要有效的憑證。"),
    "FORBIDDEN": ("This is not allowed.", "不允許此操作。"),
    "NOT_FOUND": ("There is nothing here.", "找不到此資源。"),
    "METHOD_NOT_ALLOWED": ("This method is not allowed here.", "此處不允許使用這個方法。"),
    "REQUEST_TIMEOUT": ("The request did not arrive in time.", "請求未能及時送達。"),
    "PAYLOAD_TOO_LARGE": ("The request body is too large.", "請求內容過大。"),
    "URI_TOO_LONG": ("The request target is too long.", "請求網址過長。"),
    "UPGRADE_REQUIRED": ("This route needs a protocol upgrade.", "此路徑需要升級通訊協定。"),
    "RATE_LIMITED": ("Too many requests; try again later.", "請求過於頻繁。請稍後再試。"),
    "HEADERS_TOO_LARGE": ("The request head is too large.", "請求標頭過大。"),
    "INTERNAL_ERROR": ("Something went wrong on our side.", "伺服器發生錯誤。"),
    "AGENT_UNREACHABLE": ("The local server on the device cannot be reached.", "無法連線到裝置上的本機伺服器。"),
    "AGENT_BAD_RESPONSE": ("The device gave an answer that is not HTTP.", "裝置的回應不是有效的 HTTP。"),
    "TUNNEL_DISCONNECTED": ("The device is not connected.", "裝置未連線。"),
    "TUNNEL_UNAVAILABLE": ("The tunnel service is not available.", "通道服務目前無法使用。"),
    "OVERLOADED": ("Too much is going on; try again shortly.", "系統忙碌中。請稍後再試。"),
    "TUNNEL_TIMEOUT": ("The device did not answer in time.", "裝置未能及時回應。"),
}

RETRY_AFTER: Final[Mapping[str, int]] = {
    "TUNNEL_DISCONNECTED": 5,
    "TUNNEL_UNAVAILABLE": 2,
    "OVERLOADED": 1,
    "RATE_LIMITED": 1,
}
"""Seconds told in `Retry-After` unless the error says otherwise: api.md asks for the header on every 503 and 429."""

REASONS: Final[Mapping[int, bytes]] = {
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Content Too Large",
    414: b"URI Too Long",
    426: b"Upgrade Required",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class ExchangeError(Exception):
    """A remote fault. `code` is one of the public API's codes; `str(error)` says for the log what was seen."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail)
        self.code = code

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.code}: {self}>"


class ProxyError(ExchangeError):
    """A fault before the answer began: the client can still be told, in the envelope.

    `detail` is for logs; the client sees the code's own message. `details` goes into the envelope (AMBIGUOUS_DEVICE).
    """

    def __init__(
        self, code: str, detail: str, *, retry_after: int | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(code, detail)
        self.status = ERROR_STATUS[code]
        self.retry_after = RETRY_AFTER.get(code) if retry_after is None else retry_after
        self.details = details


class AnswerCut(ExchangeError):
    """A fault after the answer's head: nothing can be said any more.

    The driver must reset the client's connection (RST, or at least no last chunk and no clean end): an HTTP/1.0
    client, or one that reads until the end, would take a clean close for a complete answer.
    """


class MisuseError(RuntimeError):
    """The driver called in the wrong order: a bug of ours, never caused by bytes from outside."""


def bad_request(detail: str) -> ProxyError:
    """400 `BAD_REQUEST`."""
    return ProxyError("BAD_REQUEST", detail)


def too_large(limit: int, detail: str) -> ProxyError:
    """413 `PAYLOAD_TOO_LARGE` of a request body over `limit` bytes, which names the limit and its setting."""
    told = f"At most {limit} bytes (VISIONA_PROXY_BODY_MAX_BYTES)."
    return ProxyError("PAYLOAD_TOO_LARGE", detail, details={"body": [told]})


def error_body(error: ProxyError, request_id: str, language: Language = "en", message: str | None = None) -> bytes:
    """The JSON envelope of `error` as bytes; with the code's own message unless one is given."""
    if message is None:
        english, chinese = _MESSAGES.get(error.code, _MESSAGES["INTERNAL_ERROR"])
        message = chinese if language == "zh-hant" else english
    return orjson.dumps(error_envelope(error.code, message, request_id, error.details))


def error_response(
    error: ProxyError,
    request_id: str,
    *,
    language: Language = "en",
    keep_alive: bool = False,
    head_only: bool = False,
    extra: bytes = b"",
    message: str | None = None,
) -> bytes:
    """A whole HTTP/1.1 answer for a driver that writes to the client's socket itself.

    `head_only` leaves the body out (the request was HEAD); `extra` are more header lines, each ended by CRLF (CORS).
    `message` replaces the code's own.
    """
    body = error_body(error, request_id, language, message)
    lines = [
        b"HTTP/1.1 %d %b" % (error.status, REASONS.get(error.status, b"Error")),
        b"Content-Type: application/json",
        b"Content-Length: %d" % len(body),
        b"X-Request-ID: " + request_id.encode("latin-1"),
        *_SECURITY,
        b"Cache-Control: no-store",
        b"Connection: keep-alive" if keep_alive else b"Connection: close",
    ]
    if error.retry_after is not None:
        lines.append(b"Retry-After: %d" % error.retry_after)
    head = b"\r\n".join(lines) + b"\r\n" + extra + b"\r\n"
    return head if head_only else head + body
