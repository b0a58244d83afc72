"""What the public lane tells a client whom it refuses. Pure, but for the clock that `Date` is by."""

from __future__ import annotations

from email.utils import formatdate

from tunnel.daemon.lane.authorizer import Denied
from tunnel.http import Language, ProxyError, error_response


class _OnlyGet(ProxyError):
    """`/ws/*` by another method."""


def no_upgrade(method: bytes) -> ProxyError:
    """Why `/ws/*` is refused to who may have it: the method first, as on all routes."""
    if method != b"GET":
        return _OnlyGet("METHOD_NOT_ALLOWED", "a WebSocket is asked for by GET")
    return ProxyError("UPGRADE_REQUIRED", "no upgrade was asked for")


def told(
    error: ProxyError, request_id: str, *, language: str, keep_alive: bool, head_only: bool, extra: bytes
) -> bytes:
    """The whole answer that tells a refusal; Django's own ones with Django's words, which it says in English here."""
    if error.status == 426:
        extra += b"Upgrade: websocket\r\n"
    elif isinstance(error, _OnlyGet):
        extra += b"Allow: GET\r\n"
    elif error.status == 401:
        extra += b'WWW-Authenticate: Bearer realm="visiona"\r\n'
    spoken: Language = "zh-hant" if language == "zh-hant" else "en"
    extra += b"Content-Language: %b\r\nDate: %b\r\n" % (spoken.encode(), formatdate(usegmt=True).encode())
    message = None
    if isinstance(error, Denied):
        message, extra = error.message if language == "en" else None, extra + error.headers
    return error_response(
        error,
        request_id,
        language=spoken,
        keep_alive=keep_alive,
        head_only=head_only,
        extra=extra,
        message=message,
    )
