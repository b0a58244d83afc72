"""The request target: raw path and raw query, what of them is ours and what may go to the box.

It does not know heads or bodies. The path is never decoded for the box: it passes byte for byte or is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from tunnel.contract.authority import is_utf8
from tunnel.http.errors import ProxyError, bad_request
from tunnel.http.fields import Field

_ORIGIN_FORM = re.compile(rb"/[\x21\x22\x24-\x7e\x80-\xff]*\Z")
_UUID = re.compile(rb"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
_CREDENTIAL = re.compile(rb"\s*vA[a-z]_")
_MAYBE_OURS = re.compile(rb"device_id|ticket|access_token|[%+]")
_MAYBE_DOTS = re.compile(rb"\.\.|%2[eE]|%25")
_SEPARATORS = re.compile(rb"[/\\]")
_DECODE_ROUNDS: Final = 3


class OwnParams(NamedTuple):
    """The parameters of the query that are meant for us, decoded; None where absent.

    `device_id` is the first value that is a UUID, lower-cased; other values belong to the box.
    """

    device_id: str | None
    ticket: str | None


NO_PARAMS: Final = OwnParams(None, None)


def is_device_id(value: bytes) -> bool:
    """Whether a `device_id` or `X-Device-Id` value selects a device: a UUID in the 8-4-4-4-12 form, any case."""
    return _UUID.match(value) is not None


def split_target(target: bytes, limit: int) -> tuple[bytes, bytes | None]:
    """Raw path and raw query (None without `?`) of a target in origin form.

    Raises 414 over `limit` bytes; 400 for absolute form, authority form, `*`, a fragment, a space, a control byte, or
    bytes over 0x7f that are no UTF-8 (RFC 3986 §2 wants all of those percent-encoded; raw UTF-8 is sent all the same).
    """
    if len(target) > limit:
        raise ProxyError("URI_TOO_LONG", f"a target of {len(target)} bytes")
    if _ORIGIN_FORM.match(target) is None or not (target.isascii() or is_utf8(target)):
        raise bad_request("the target is not in origin form")
    path, mark, query = target.partition(b"?")
    return path, (query if mark else None)


def box_path(path: bytes, mount: bytes) -> bytes:
    """The path that the box sees: `path` without `mount`, byte for byte; never empty.

    `mount` is the raw prefix under which the box is shown (`/d/<id>`, `/api/devices/<id>/proxy`), empty where paths
    pass as they are. Refused with 400, because no box agrees with the next on what they mean and one of the meanings
    leaves the prefix: a path that starts with two slashes where there is no mount (an authority to some), one that
    starts with `/\\`, and every segment that is `..` once decoded up to three times, with `\\` and `%2F` taken for
    separators and `;` for the start of parameters. Doubled slashes behind a mount, a single dot and `%2F` pass raw:
    they cannot climb.
    """
    if mount:
        if not path.startswith(mount) or path[len(mount) : len(mount) + 1] not in (b"/", b""):
            raise bad_request("the path is not under its mount")
        path = path[len(mount) :] or b"/"
    if path[1:2] == b"\\" or (path[1:2] == b"/" and not mount):
        raise bad_request("the path starts with two slashes")
    if _MAYBE_DOTS.search(path) is not None and _climbs(path):
        raise bad_request("the path holds a '..' segment")
    return path


def _climbs(path: bytes) -> bool:
    for _ in range(_DECODE_ROUNDS + 1):
        if any(segment.partition(b";")[0] == b".." for segment in _SEPARATORS.split(path)):
            return True
        decoded = unquote_to_bytes(path)
        if decoded == path:
            return False
        path = decoded
    return False


def split_query(query: bytes | None, fields: Iterable[Field] = ()) -> tuple[bytes | None, OwnParams]:
    """The query for the box and what of it was ours.

    Taken out: `ticket`, `device_id` where its value is a UUID, and `access_token` where it is a credential of ours: one
    by its form, or the bearer among the request's `fields`. Other values are the box's (Home Assistant has its own).
    The rest stays byte for byte in its order; a query that held nothing else becomes None. Names are compared decoded,
    as Django would read them.
    """
    if not query or _MAYBE_OURS.search(query) is None:
        return query, NO_PARAMS
    kept: list[bytes] = []
    device_id: str | None = None
    ticket: str | None = None
    taken = False
    for pair in query.split(b"&"):
        raw_name, _, raw_value = pair.partition(b"=")
        name = unquote_to_bytes(raw_name.replace(b"+", b" "))
        if name not in (b"device_id", b"ticket", b"access_token"):
            kept.append(pair)
            continue
        value = unquote_to_bytes(raw_value.replace(b"+", b" "))
        if name == b"device_id":
            if not is_device_id(value):
                kept.append(pair)
                continue
            device_id = device_id or value.decode("ascii").lower()
        elif name == b"ticket":
            ticket = ticket or value.decode("latin-1")
        elif _CREDENTIAL.match(value) is None and value != _bearer(fields):
            kept.append(pair)
            continue
        taken = True
    if not taken:
        return query, NO_PARAMS
    return (b"&".join(kept) or None), OwnParams(device_id, ticket)


def _bearer(fields: Iterable[Field]) -> bytes | None:
    for name, value in fields:
        if name.lower() == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip(b" \t") or None
    return None


def own_params(target: bytes) -> OwnParams:
    """Our own parameters of a raw target, before the device is known and a head can be built. Never raises."""
    return split_query(target.partition(b"?")[2])[1]
