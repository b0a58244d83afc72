"""Who a URL names: whether two spellings are one host, and the path of a target that names its own host.

Both programs read request lines, each with a parser of its own; what they make of a target must be the same.
"""

import re
from typing import Final

_NO_ASCII: Final = re.compile(rb"[\x80-\xff]")
_ABSOLUTE: Final = re.compile(rb"(https?)://([^/?#]+)([\x21\x22\x24-\x7e\x80-\xff]*)\Z", re.IGNORECASE)


def same_host(scheme: bytes, one: bytes, other: bytes) -> bool:
    """Whether two authorities, as of URLs of `scheme` (b"http", b"https"; empty: either), name one host and port."""
    return _without_default_port(scheme, one) == _without_default_port(scheme, other)


def _without_default_port(scheme: bytes, authority: bytes) -> bytes:
    authority = authority.lower()
    if scheme.lower() != b"https":
        authority = authority.removesuffix(b":80")
    if scheme.lower() != b"http":
        authority = authority.removesuffix(b":443")
    return authority


def origin_form(target: bytes, host: bytes) -> bytes | None:
    """The path and query of a target in absolute form (RFC 9112 section 3.2.2) that names `host`, the Host field.

    None for any other: a request whose line and field name different hosts is two requests to two servers.
    """
    match = _ABSOLUTE.match(target)
    if match is None or not same_host(match.group(1), match.group(2), host.strip(b" \t")):
        return None
    rest: bytes = match.group(3)
    return rest if rest.startswith(b"/") else b"/" + rest


def percent_encoded(target: bytes) -> bytes:
    """A target whose bytes over 0x7f are percent-encoded, as all of them should be (RFC 3986 section 2)."""
    return _NO_ASCII.sub(lambda match: b"%%%02X" % match.group()[0], target)


def is_utf8(target: bytes) -> bool:
    """Whether the bytes of a target that are no ASCII are UTF-8: raw, as some clients send what they should encode."""
    try:
        target.decode()
    except UnicodeDecodeError:
        return False
    return True
