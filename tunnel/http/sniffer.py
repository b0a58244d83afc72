"""What a byte switch sees of the requests that pass through it: that one begins, and its X-Request-ID. For logs only.

No parser: nothing is decided by it, nothing is refused, and what does not look like the head of a request is let be.
A head is looked for in the first bytes, and in the first after the other side has spoken; of requests that are
pipelined only the first is seen. It does not know sockets, nor who logs what.
"""

from __future__ import annotations

import re
from typing import Final

LIMIT: Final = 16 * 1024
"""Bytes of a head that are looked at: the longest target and what our own heads have before the id."""
_BEGINS: Final = re.compile(rb"[A-Z]{1,24}(?: |\Z)")
_FIELD: Final = b"\r\nx-request-id:"
_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestIdSniffer:
    """One direction, towards the box. Feed it only while `looking`; call `turned` when bytes came the other way."""

    __slots__ = ("_held", "looking")

    def __init__(self) -> None:
        self.looking = True
        self._held = b""

    def __repr__(self) -> str:
        return f"<RequestIdSniffer looking={self.looking} held={len(self._held)}>"

    @property
    def halfway(self) -> bool:
        """Whether the beginning of a head was fed, and its id is still to come."""
        return bool(self._held)

    def turned(self) -> None:
        """The other side has spoken: what comes next may be a head."""
        self.looking = True
        self._held = b""

    def feed(self, chunk: bytes | bytearray | memoryview) -> str | None:
        """The id of the request that has begun, "" if it names none; None: there is no request, or no id so far.

        A head may come in any pieces. An id that is none of ours (`tunnel.contract.request_id_from`) is none.
        """
        head = self._held + bytes(chunk[: LIMIT - len(self._held)])
        line = head.find(b"\r\n")
        if _BEGINS.match(head) is None or (line >= 0 and head[line - 9 : line - 1] != b" HTTP/1."):
            self.looking, self._held = False, b""
            return None
        end = head.find(b"\r\n\r\n")
        field = (head[:end] if end >= 0 else head).lower().find(_FIELD)
        stop = head.find(b"\r\n", field + 2) if field >= 0 else end
        if stop < 0 and len(head) < LIMIT:
            self._held = head
            return None
        self.looking, self._held = False, b""
        if field < 0 or stop < 0:
            return ""
        value = head[field + len(_FIELD) : stop].strip()
        return value.decode("ascii") if _ID.fullmatch(value) else ""
