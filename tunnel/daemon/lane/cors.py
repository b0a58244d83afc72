"""CORS on the public lane: the fields of answers, and preflights.

The same answers as the API gives by its middleware (`apps/proxy/cors.py`): what is said is `tunnel.contract`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

from tunnel.contract import EXPOSED, SECURITY_FIELDS, Origins, preflight_fields
from tunnel.http import Field

_EXPOSED: Final = (b"Access-Control-Expose-Headers", ", ".join(EXPOSED).encode("ascii"))
_ORIGINS: Final = 256
_VARY: Final = b"Vary: Origin, Accept-Language\r\n"
_SECURITY: Final = tuple((name.encode("ascii"), value.encode("ascii")) for name, value in SECURITY_FIELDS)


class Cors:
    """The fields that let pages of the allowed origins read an answer; with them go those that `always` names."""

    def __init__(self, origins: Origins, always: Sequence[Field] = ()) -> None:
        self._origins = origins
        self._none: list[Field] = [*always]
        self._known: dict[bytes, list[Field]] = {}

    def fields(self, origin: bytes) -> list[Field]:
        """For a box's answer to a page of `origin` (empty: none told), which names `Vary` by itself, and what of it may
        be read."""
        if not origin:
            return self._none
        found = self._known.get(origin)
        return self._learn(origin) if found is None else found

    def _learn(self, origin: bytes) -> list[Field]:
        if not self._origins.allow(origin.decode("latin-1")):
            return self._none
        fields = [(b"Access-Control-Allow-Origin", origin), *self._none]
        if len(self._known) < _ORIGINS:
            self._known[origin] = fields
        return fields

    def lines(self, origin: bytes) -> bytes:
        """For an answer of our own, as header lines, each with its CRLF."""
        fields = self.fields(origin)
        if fields is not self._none:
            fields = [*fields, _EXPOSED]
        return _VARY + b"".join(b"%b: %b\r\n" % field for field in fields)

    def preflight(self, origin: bytes, method: bytes, names: bytes, request_id: str, *, keep_alive: bool) -> bytes:
        """The whole answer to a preflight, which needs no credential and never reaches a box."""
        fields = [(b"Vary", b"Origin"), (b"Content-Length", b"0"), (b"Cache-Control", b"no-store"), *_SECURITY]
        fields += [(b"Date", formatdate(usegmt=True).encode("ascii")), *self._none]
        if self._origins.allow(origin.decode("latin-1")):
            asked = (each.decode("latin-1") for each in (origin, method, names))
            told = preflight_fields(*asked, of_box=True)
            fields += [(name.encode("ascii"), value.encode("ascii")) for name, value in told]
        fields += [
            (b"X-Request-ID", request_id.encode("latin-1")),
            (b"Connection", b"keep-alive" if keep_alive else b"close"),
        ]
        return b"HTTP/1.1 200 OK\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
