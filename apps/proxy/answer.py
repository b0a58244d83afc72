"""The answer of a box as a Django response: middleware adds its headers, then the exchange writes all of it itself.

It knows Django's response and `Forward`; the server sees an empty body, since what it would write is on the socket
already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from django.http import StreamingHttpResponse

from apps.tunnels.forwarder import AnswerHead, Field, Forward

_LIST: Final = "vary"  # middleware reads its value to add to it, so the box's value must be there too
_OPENER: Final = "cross-origin-opener-policy"
_EXPOSED: Final = "access-control-expose-headers"
_SERVERS: Final = frozenset(
    {"content-length", "transfer-encoding", "connection", "x-request-id", "content-type", _LIST, _OPENER, _EXPOSED}
)
"""Not passed on from Django's answer: the exchange writes its own, and what is sandboxed has no opener policy."""


class BoxAnswer(StreamingHttpResponse):
    """The response that holds middleware's headers. It knows the box's fields by name only, so that none is doubled."""

    def __init__(self, forward: Forward, head: AnswerHead, done: Callable[[], None]) -> None:
        self._taken: frozenset[str] = frozenset()
        super().__init__(self._relay(), status=head.status)
        del self.headers["Content-Type"]
        self._forward = forward
        self._done = done
        self._taken = frozenset(name.decode("latin-1").lower() for name, _ in head.fields) - {_LIST}

    def has_header(self, header: str) -> bool:
        """Whether the box or a middleware set the header."""
        return header.lower() in self._taken or super().has_header(header)

    __contains__ = has_header

    def get(self, header: str, alternate: Any = None) -> Any:
        """The value of a header that middleware set. A field of the box reads as "", not None: middleware leaves it."""
        if header.lower() in self._taken and not super().has_header(header):
            return ""
        return super().get(header, alternate)

    def _relay(self) -> Iterator[bytes]:
        """Runs the exchange to its end when the server iterates the body; gives the server nothing to write."""
        extra: list[Field] = []
        for name, value in self.items():
            lower = name.lower()
            if lower not in _SERVERS and lower not in self._taken:
                extra.append((name.encode("latin-1"), value.encode("latin-1")))
        self._forward.to_end(extra)
        yield from ()

    def abandon(self) -> None:
        """Give this answer up, since another one takes its place: the connection goes back to the server for that."""
        self._forward.refuse("INTERNAL_ERROR")
        self._let_go()

    def close(self) -> None:
        """End the exchange; called by the server in any case."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._forward.close()
        self._done()
