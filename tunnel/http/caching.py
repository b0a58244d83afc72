"""What a box's answer may say of caching: never that somebody else than who asked may be given it.

It was asked for with a credential, so it is `private` at least, and `Vary` names what it depends on besides its URL.
"""

from __future__ import annotations

import re
from typing import Final

from tunnel.http.fields import Field, list_members

NAME: Final = b"Cache-Control"
PRIVATE: Final[Field] = (NAME, b"private")
VARY: Final[Field] = (b"Vary", b"Authorization, Origin")
"""`Origin`, because the CORS fields that a lane adds depend on it."""

_DIRECTIVE: Final = re.compile(
    rb"[ \t]*(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)(?:=(\"(?:[^\"\\]|\\.)*\"|[^\s\",;]*))?[ \t]*)?(?:,|\Z)", re.DOTALL
)
# What lets a cache that many share keep an answer to a request with a credential (RFC 9111 section 3.5).
_SHARED: Final = frozenset({b"public", b"s-maxage", b"must-revalidate", b"proxy-revalidate"})
_REMEMBERED: Final = 256
_LONGEST: Final = 128  # bytes of a value that is remembered
_known: Final[dict[bytes, Field]] = {}


def cache_control(values: list[bytes]) -> Field:
    """The field for an answer that said `values` (at least one)."""
    said = values[0] if len(values) == 1 else b", ".join(values)
    field = _known.get(said)
    if field is None:
        field = (NAME, _as_private(said))
        if len(_known) < _REMEMBERED and len(said) <= _LONGEST:
            _known[said] = field
    return field


def _as_private(said: bytes) -> bytes:
    """What is no list of directives is not passed on: some cache might read another thing in it than we do."""
    kept: list[bytes] = []
    private = False
    at = 0
    while at < len(said):
        match = _DIRECTIVE.match(said, at)
        if match is None:
            return b"no-store" if b"no-store" in said.lower() else b"private"
        at = match.end()
        name: bytes | None = match.group(1)
        argument: bytes | None = match.group(2)
        if name is None:
            continue
        lower = name.lower()
        if lower in _SHARED or (lower == b"private" and argument is not None):
            continue  # `private="field"` hides a field and shares the rest
        private = private or (argument is None and lower in (b"private", b"no-store"))
        kept.append(name if argument is None else name + b"=" + argument)
    if not private:
        kept.append(b"private")
    return b", ".join(kept)


def vary(values: list[bytes]) -> Field:
    """The field for an answer that said `values` (at least one)."""
    members = list_members(values)
    said = [value for value in values if value.strip(b" \t")]
    said += [name for name in (b"Authorization", b"Origin") if name.lower() not in members]
    return (b"Vary", b", ".join(said))
