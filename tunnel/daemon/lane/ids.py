"""Request ids and trace contexts of the public lane's exchanges. Pure."""

from __future__ import annotations

import re
import secrets
from typing import Final

_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_TRACEPARENT: Final = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
_POOL: Final = 4096


def is_request_id(value: bytes) -> bool:
    """Whether an inbound `X-Request-ID` is one that is kept."""
    return _REQUEST_ID.match(value) is not None


class Ids:
    """Random ids, cut from blocks of randomness: a system call a request would cost more than the id."""

    def __init__(self) -> None:
        self._hex = ""
        self._raw = b""
        self._at = 0

    def take(self, digits: int) -> str:
        """That many random hex digits."""
        at = self._at
        if at + digits > len(self._hex):
            at = self._more()
        self._at = at + digits
        return self._hex[at : at + digits]

    def _more(self) -> int:
        self._hex = secrets.token_hex(_POOL)
        self._raw = self._hex.encode()
        return 0

    def pair(self) -> tuple[bytes, bytes]:
        """A request id and a `traceparent` for a request that came with neither."""
        at = self._at
        if at + 68 > len(self._raw):
            at = self._more()
        self._at = at + 68
        raw = self._raw
        return b"req_" + raw[at : at + 20], b"00-%b-%b-00" % (raw[at + 20 : at + 52], raw[at + 52 : at + 68])

    def request_id(self, inbound: bytes) -> str:
        """The inbound `X-Request-ID` if it is well formed, else a new one."""
        if inbound and is_request_id(inbound):
            return inbound.decode("ascii")
        return "req_" + self.take(20)

    def traceparent(self, inbound: bytes) -> str:
        """Of our own call (W3C Trace Context §3.2): within the caller's trace if it sent one, else a new one."""
        match = _TRACEPARENT.match(inbound) if inbound else None
        if match and match.group(1) != b"0" * 32 and match.group(2) != b"0" * 16:
            return f"00-{match.group(1).decode()}-{self.take(16)}-{match.group(3).decode()}"
        return f"00-{self.take(32)}-{self.take(16)}-00"
