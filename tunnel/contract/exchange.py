"""`POST /internal/exchange`: proxied exchanges as length-prefixed records, one after another on a kept connection.

What the records are, and how they are read from bytes; what an exchange is, nobody knows here. Standard library only,
no I/O. What each record means is told in docs/internal-api.md.

A record is four bytes, its kind and the length of what follows (24 bits, big endian), and that many bytes. A caller
sends `BEGIN`, then `DATA` (the client's raw bytes behind its head), `EOF` (the client ended its side) or `ABORT` (it is
gone, or may no longer; what follows is a code of ours, or nothing). The daemon sends `ACCEPTED` before the first byte
goes to a box, `DATA` (raw bytes for the client), `EOF` (the box half-closed an upgraded connection), and at last one
`END`. `ACCEPTED` is left out where a request is idempotent and has no body: such a one may be made again in any case.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict

UPGRADE_EXCHANGE: Final = "visiona-exchange"
"""What a call of `POST /internal/exchange` asks to be upgraded to."""

BEGIN: Final = 1
DATA: Final = 2
EOF: Final = 3
ABORT: Final = 4
ACCEPTED: Final = 5
END: Final = 6
_KINDS: Final = frozenset({BEGIN, DATA, EOF, ABORT, ACCEPTED, END})

RECORD_MAX: Final = 256 * 1024
"""Bytes of a record that has to be whole: all but `DATA`, which is passed on as it comes."""
_HEADER: Final = 4
_LENGTH: Final = (1 << 24) - 1


class ExchangeCall(TypedDict):
    """The grant of one exchange, the JSON of a `BEGIN`. Text of raw bytes is latin-1."""

    device_id: str
    epoch: int
    session: str  # as the registry has it; "" while the device is between two daemons
    node_url: str  # of the daemon that holds it
    moving: bool  # that daemon drains: there will soon be another session
    user_id: str
    login: str  # names the login session; "" for the static development user
    body_max: int  # bytes of a request's body
    peer: str  # the address of whoever opened the client's connection to the caller
    address: str  # the client's, as far as it is believed
    scheme: Literal["http", "https"]
    trusted: bool  # the peer is a trusted proxy
    mount: str  # the prefix that the box does not see
    home: str  # without a mount: below what the box's paths are shown
    upgrade: bool  # it is to become a WebSocket
    request_id: str
    traceparent: str
    fields: list[tuple[str, str]]  # what the site adds to the answer
    names_device: bool  # the answer names the device that gave it (`X-VisionA-Device-Id`)


class ExchangeEnd(TypedDict):
    """How an exchange ended, the JSON of an `END`."""

    outcome: Literal["ok", "refused", "cut", "client_left"]  # refused: no head went to the client, `code` says why
    code: str  # of ours; "" if all went well
    problem: str  # for the log
    details: NotRequired[Mapping[str, Any]]
    message: NotRequired[str]  # Django's own words, where it was Django who refused
    retry_after: NotRequired[int]
    sent: bool  # a box may have seen something of it
    repeatable: bool  # it may be made again elsewhere, by whoever has its body still
    keep: bool  # the client's connection may carry another request
    status: int | None
    session: str
    attempts: int
    reused: bool
    bytes_up: int
    bytes_down: int
    head_ms: float | None


class RecordError(ValueError):
    """What came is no record, or a longer one than is taken."""


def record_header(kind: int, length: int) -> bytes:
    """The four bytes before `length` bytes of payload. Raises RecordError."""
    if not 0 <= length <= _LENGTH:
        raise RecordError(f"a record of {length} bytes")
    return (kind << 24 | length).to_bytes(_HEADER, "big")


def record(kind: int, payload: bytes = b"") -> bytes:
    """A whole record. Raises RecordError."""
    return record_header(kind, len(payload)) + payload


def begin_record(call: bytes, head: bytes) -> bytes:
    """A `BEGIN` of `call`, the JSON of an `ExchangeCall`, and the client's raw head. Raises RecordError."""
    size = _HEADER + len(call) + len(head)
    if size > RECORD_MAX:
        raise RecordError(f"a call of {size} bytes")
    return b"".join((record_header(BEGIN, size), len(call).to_bytes(_HEADER, "big"), call, head))


def split_begin(payload: bytes) -> tuple[bytes, bytes]:
    """The JSON and the client's raw head of a `BEGIN`. Raises RecordError."""
    size = int.from_bytes(payload[:_HEADER], "big")
    if len(payload) < _HEADER + size:
        raise RecordError("a call that is cut short")
    return payload[_HEADER : _HEADER + size], payload[_HEADER + size :]


class RecordReader:
    """Takes records out of a stream of bytes."""

    __slots__ = ("_held", "_left", "_wanted")

    def __init__(self) -> None:
        self._held = bytearray()  # of a record that is not whole
        self._left = 0  # bytes of a `DATA` that are still to come
        self._wanted = 0  # bytes of the record that is held, as far as they are known

    def __repr__(self) -> str:
        return f"<RecordReader held={len(self._held)} left={self._left}>"

    def feed(self, data: bytes) -> list[tuple[int, bytes]]:
        """What `data` completes, in order. `DATA` comes in as many parts as it arrives in, none of them empty.

        Raises RecordError; nothing can be read from this stream after it.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._wanted:
                return []
            data = bytes(self._held)
            self._held.clear()
        found: list[tuple[int, bytes]] = []
        at, size = 0, len(data)
        while at < size:
            if self._left:
                part = data[at : at + self._left]
                self._left -= len(part)
                at += len(part)
                found.append((DATA, part))
                continue
            if size - at < _HEADER:
                self._wanted = _HEADER
                break
            word = int.from_bytes(data[at : at + _HEADER], "big")
            kind, length = word >> 24, word & _LENGTH
            if kind == DATA:
                at += _HEADER
                self._left = length
                continue
            if kind not in _KINDS or length > RECORD_MAX:
                raise RecordError(f"kind {kind}, {length} bytes")
            end = at + _HEADER + length
            if end > size:
                self._wanted = end - at
                break
            found.append((kind, data[at + _HEADER : end]))
            at = end
        if at < size:
            self._held += data[at:]
        return found
