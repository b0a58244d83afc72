"""Where a box may lead whoever asked for it, on our origin nowhere but to the box itself; and the way back.

A client that follows a redirect sends its method, body and credential along while the origin stays the same, so what a
box says in `Location` must not reach other routes of ours. URLs are read here as browsers read them (WHATWG, "URL"),
which take more for a host or a `..` than RFC 3986 does; what could be either counts as ours. No sockets, no heads.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv6Address
from typing import Final, NamedTuple

from tunnel.contract.authority import same_host
from tunnel.http.target import box_path, split_query

_TRIMMED: Final = bytes(range(0x21))
_SCHEME = re.compile(rb"([A-Za-z][A-Za-z0-9+.\-]*):")
_AUTHORITY_END = re.compile(rb"[/\\?#]")
_PATH_END = re.compile(rb"[?#]")
_SEPARATOR = re.compile(rb"[/\\]")
_DOUBLE_DOT = re.compile(rb"(?:\.|%2e){2}(?:;.*)?\Z", re.IGNORECASE | re.DOTALL)  # Python's urljoin takes off the `;`
_SINGLE_DOT = re.compile(rb"(?:\.|%2e)\Z", re.IGNORECASE)
_HOST = re.compile(rb"([A-Za-z0-9._~\-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{0,9}))?\Z")
_ENDS_IN_NUMBER = re.compile(rb"(?:.*\.)?(?:[0-9]+|0x[0-9a-f]*)\.?\Z", re.IGNORECASE)
_IPV4 = re.compile(rb"(?:0|[1-9][0-9]{0,2})(?:\.(?:0|[1-9][0-9]{0,2})){3}\Z")
_SAID = re.compile(rb"(?:(?:(https?):)?//([^/?#]+))?(/.*)?\Z", re.IGNORECASE | re.DOTALL)
_PATH_FOR_PATH: Final = ((b"api", b"cameras"), (b"api", b"inference"), (b"ws",))
"""What is a box's where there is no mount: the first segments of its paths."""


class Shown(NamedTuple):
    """How a box is shown to whoever asked."""

    mount: bytes
    """The raw prefix that the box does not see; empty: path for path."""
    home: bytes
    """Where there is no mount: a prefix below which all of the box's paths are shown."""
    hosts: tuple[bytes, ...]
    """The names by which the box may call us."""
    path: bytes
    """The raw path that was asked for, as the box saw it."""


def place(url: bytes, shown: Shown) -> bytes:
    """A URL that a box said, as its client has to ask for it: byte for byte where it leads to another origin or stays
    with the box by itself, else rooted below the box's prefix (the client knows by which scheme and name it came, and
    the box may not)."""
    cleaned = url.strip(_TRIMMED).translate(None, b"\t")  # browsers drop them
    scheme = b""
    match = _SCHEME.match(cleaned)
    if match is not None:
        scheme = match.group(1).lower()
        if scheme not in (b"http", b"https"):
            return url
        cleaned = cleaned[match.end() :]
    second = cleaned[1:2] in (b"/", b"\\") if scheme else cleaned[1:2] == b"/"
    if second and cleaned[:1] in (b"/", b"\\"):
        named = cleaned.lstrip(b"/\\")
        authority, rest = _cut(named, _AUTHORITY_END)
        if _may_be_ours(scheme, authority, shown.hosts):
            cleaned = rest
        elif cleaned[:2] == b"//" and len(cleaned) - len(named) == 2:
            return url
        else:  # to a browser it is another host, to RFC 3986 a path of ours
            cleaned = named
        if cleaned[:1] not in (b"/", b"\\"):
            cleaned = b"/" + cleaned
    return _placed(url, cleaned, shown)


def destination(url: bytes, *, mount: bytes, home: bytes, hosts: tuple[bytes, ...]) -> bytes:
    """A URL that a client says (`Destination`, RFC 4918 section 10.3), as the box knows it: the way back of `place`.

    What names another host passes as it is: the box says what it thinks of that. Raises ProxyError 400 for what lies on
    our host and is not this box's.
    """
    match = _SAID.match(url)
    if match is None or not url:
        return url
    scheme, authority, rest = match.groups()
    if authority is not None and not any(same_host(scheme or b"", authority, host) for host in hosts if host):
        return url
    path, behind = _cut(rest or b"/", _PATH_END)
    if not mount and home and _is_below(path, home):
        mount = home
    return box_path(path, mount) + behind


def _placed(url: bytes, reference: bytes, shown: Shown) -> bytes:
    """`reference` is what of `url` is no scheme and no authority."""
    path, rest = _cut(reference, _PATH_END)
    as_said = reference == url and not _climbs(path)
    if not shown.mount:
        return _path_for_path(url if as_said else None, path, rest, shown)
    if path[:1] in (b"/", b"\\"):
        path = b"/" + path[1:]
        if path == shown.mount:
            path = b""
        elif _is_below(path, shown.mount):
            path = b"/" + path[len(shown.mount) + 1 :]
        return shown.mount + (_resolved([], path[1:]) if _climbs(path) else path) + rest
    if as_said and (shown.path != b"/" or not path):
        return url
    return shown.mount + (_resolved(_folder(shown.path), path) if path else shown.path) + rest


def _path_for_path(url: bytes | None, path: bytes, rest: bytes, shown: Shown) -> bytes:
    """`url` as it was said, if it can stay so; None: it cannot."""
    if path[:1] in (b"/", b"\\"):
        resolved = _resolved([], path[1:])
    else:
        resolved = _resolved(_folder(shown.path), path) if path else shown.path
    segments = tuple(resolved[1:].split(b"/"))
    own = any(segments[: len(first)] == first for first in _PATH_FOR_PATH)
    query = rest.partition(b"#")[0].removeprefix(b"?")
    if own and split_query(query)[1].device_id is None:  # else it is another box's
        return resolved + rest if url is None else url
    if _is_below(resolved, shown.home):
        return resolved + rest
    return shown.home + resolved + rest


def _cut(text: bytes, end: re.Pattern[bytes]) -> tuple[bytes, bytes]:
    """What is in front of the first match, and the rest."""
    match = end.search(text)
    return (text, b"") if match is None else (text[: match.start()], text[match.start() :])


def _is_below(path: bytes, prefix: bytes) -> bool:
    return path.startswith(prefix) and path[len(prefix) : len(prefix) + 1] in (b"", b"/", b"\\")


def _climbs(path: bytes) -> bool:
    return any(_DOUBLE_DOT.match(segment) is not None for segment in _SEPARATOR.split(path))


def _folder(path: bytes) -> list[bytes]:
    """The segments before the last one of a raw path, on which a relative reference stands."""
    return [segment for segment in path.split(b"/")[1:-1] if _SINGLE_DOT.match(segment) is None]


def _resolved(base: list[bytes], path: bytes) -> bytes:
    """`path`, relative to `base`, without dot segments (WHATWG, "path state"): above the root there is nothing."""
    segments = list(base)
    ends_open = False
    for segment in _SEPARATOR.split(path):
        double = _DOUBLE_DOT.match(segment) is not None
        ends_open = double or _SINGLE_DOT.match(segment) is not None
        if double and segments:
            segments.pop()
        elif not ends_open:
            segments.append(segment)
    if ends_open:
        segments.append(b"")
    return b"/" + b"/".join(segments)


def _may_be_ours(scheme: bytes, authority: bytes, hosts: tuple[bytes, ...]) -> bool:
    """Whether an authority names one of `hosts`, or is spelled so that it cannot be told (a name with `%` or beyond
    ASCII, an IPv4 address as a number): nobody who leads elsewhere in earnest writes those."""
    named = _canonical(authority.rpartition(b"@")[2])
    if named is None:
        return True
    return any(host and same_host(scheme, named, _canonical(host) or host) for host in hosts)


def _canonical(authority: bytes) -> bytes | None:
    """Host and port in one spelling; None: it cannot be told which host that is."""
    match = _HOST.match(authority)
    if match is None:
        return None
    host: bytes = match.group(1).lower()
    port: bytes = (match.group(2) or b"").lstrip(b"0")
    if host[:1] == b"[":
        try:
            host = b"[%b]" % IPv6Address(host[1:-1].decode("ascii")).compressed.encode("ascii")
        except AddressValueError:
            return None
    elif _ENDS_IN_NUMBER.match(host) is not None and _IPV4.match(host) is None:
        return None
    return host + b":" + port if port else host
