"""The answer of a box as a Django response: middleware adds its headers, then the exchange writes all of it itself.

It knows Django's response and `Forward`; the server sees an empty body, since what it would write is on the socket
already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from django.http import StreamingHttpResponse

from apps.tunnels.forwarder import AnswerHead, Field, Forward

_LIST: Final = "vary"  # middleware reads it to add to it, so the box's must not be there by name alone
_OPENER: Final = "cross-origin-opener-policy"
_SERVERS: Final = frozenset(
    {"content-length", "transfer-encoding", "connection", "x-request-id", "content-type", _LIST, _OPENER}
)
"""Not passed on from Django's answer: the exchange writes its own, and what is sandboxed has no opener policy."""


class BoxAnswer(StreamingHttpResponse):
    """Holds middleware's headers; the box's own are known by name only, so that nobody adds a second one."""

    def __init__(self, forward: Forward, head: AnswerHead, done: Callable[[], None]) -> None:
        self._taken: frozenset[str] = frozenset()
        super().__init__(self._relay(), status=head.status)
        del self.headers["Content-Type"]
        self._forward = forward
        self._done = done
        self._taken = frozenset(name.decode("latin-1").lower() for name, _ in head.fields) - {_LIST}

    def has_header(self, header: str) -> bool:
        """Whether the box or a middleware set it."""
        return header.lower() in self._taken or super().has_header(header)

    __contains__ = has_header

    def get(self, header: str, alternate: Any = None) -> Any:
        """A header of ours. One of the box's reads as empty, which is not None: middleware leaves it alone."""
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
        """Another answer takes this one's place: the server writes it on the connection, which is given back."""
        self._forward.refuse("INTERNAL_ERROR")
        self._let_go()

    def close(self) -> None:
        """Called by the server in any case."""
        super().close()
        self._let_go()

    def _let_go(self) -> None:
        self._forward.close()
        self._done()
