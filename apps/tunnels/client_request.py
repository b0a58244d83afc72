"""A client's request as the API hands it to a daemon: its head in bytes again, and where its body ends.

With `carriage` the only place of the control plane that imports `tunnel.http`; `apps.proxy` takes it from here.
"""

from __future__ import annotations

from tunnel.http import ExchangeError as ExchangeError
from tunnel.http import Language as Language
from tunnel.http import Limits as Limits
from tunnel.http import ProxyError as ProxyError
from tunnel.http import ProxyRequest as ProxyRequest
from tunnel.http import RequestHead as RequestHead
from tunnel.http import ResponseReader as AnswerReader
from tunnel.http import Via as Via
from tunnel.http import error_response as error_response
from tunnel.http import own_params as own_params
from tunnel.http import prepare as prepare

__all__ = ["AnswerReader"]


def head_bytes(head: RequestHead) -> bytes:
    """The head as another server would have read it: strictly read, and written so again."""
    version = b"HTTP/1.1" if head.http11 else b"HTTP/1.0"
    lines = [b"%b %b %b" % (head.method, head.target, version)]
    lines += [name + b": " + value for name, value in head.fields]
    return b"\r\n".join(lines) + b"\r\n\r\n"
