"""The WebSocket of a tunnel without any I/O: bytes from the socket in, binary payloads and bytes to write out.

Data frames are decoded here, in one pass over what was read: a payload is handed on as it comes, never held back until
its frame or message ends (a gorilla client cuts 256 KiB into fragments of its buffer's size, and 12 bytes of header go
in a message of their own). Frames without payload cost as much as others and bring nothing: they are rated, pings and
pongs too, and of the pings of one read the last is answered (RFC 6455 §5.5.3). What is answered, and whatever ends the
connection, is left to the sans-IO protocol of `websockets`. Outbound binary messages are one frame whose header is made
here, so that a payload is not copied on its way to the socket.
It does not know: Trio, sockets, yamux, who the peer is.
"""

from __future__ import annotations

import logging
import secrets
import struct
import time
from collections.abc import Callable
from typing import Final, NoReturn

from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

from tunnel.mux.transport import Payload, TransportProtocolError
from tunnel.protocol.limits import Rate, TokenBucket

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part
    from websockets.utils import apply_mask

MAX_FRAME: Final = 1024 * 1024 + 4096
"""Largest inbound frame in bytes: the largest receive window ever granted (1 MiB) and its yamux headers."""
IDLE_FRAMES: Final = Rate(10, 32)
"""Pings, pongs and empty frames that a peer may send: as many as pings of yamux (yamux.md §12)."""
ABUSE: Final = 4429
"""The close code for more."""

_silent = logging.getLogger("tunnel.wire")
_silent.setLevel(logging.ERROR)
_LEN16: Final = struct.Struct("!BBH")
_LEN64: Final = struct.Struct("!BBQ")
_SIZE16: Final = struct.Struct("!H")
_SIZE64: Final = struct.Struct("!Q")
_FIN: Final = 0x80
_RESERVED: Final = 0x70
_MASKED: Final = 0x80
_CONT: Final = 0
_TEXT: Final = 1
_BINARY: Final = 2
_CLOSE: Final = 8
_PING: Final = 9
_PONG: Final = 10
_MAX_CONTROL: Final = 125
_SIZES: Final = {126: 2, 127: 8}  # bytes of the longer forms of a length
_KEYS: Final = 4096  # bytes of randomness drawn at once: a system call for a thousand messages


class WebSocketCodec:
    """One side of an open WebSocket connection (the handshake is over).

    `close_code` is what the peer sent: None while open, 1005 for a close frame without a code, 1006 if the peer
    vanished without one.
    """

    def __init__(
        self, *, client: bool, max_frame: int = MAX_FRAME, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._mask = _MASKED if client else 0
        self._max_frame = max_frame
        self._protocol = Protocol(CLIENT if client else SERVER, state=OPEN, max_size=(None, max_frame), logger=_silent)
        self._partial = b""  # the beginning of a header, or of a control frame
        self._left = 0  # bytes of a payload that are still to come
        self._key = b""  # its mask, turned to where it goes on
        self._fragmented = False  # a message has begun and not ended
        self._filled = False  # … and had some payload
        self._ping: bytes | None = None  # to be answered
        self._clock = clock
        self._idle = TokenBucket(IDLE_FRAMES, clock())
        self._deaf = False  # the peer closed or broke the protocol: what still comes counts for nothing
        self._speaking = False  # the protocol may have bytes to write
        self._keys = b""
        self._next_key = 0
        self.close_code: int | None = None
        self.close_reason = ""

    def __repr__(self) -> str:
        side = "client" if self._client else "server"
        return f"<WebSocketCodec {side} {self._protocol.state.name.lower()} close_code={self.close_code}>"

    @property
    def open(self) -> bool:
        """Whether messages may still be sent."""
        return self._protocol.state is OPEN

    def receive(self, data: Payload) -> list[Payload]:
        """The payload bytes in `data`, piece by piece, empty ones left out: views of `data` where nothing is masked.

        `control_to_send` may have bytes afterwards. Raises TransportProtocolError once a close frame that says so has
        been queued.
        """
        payloads: list[Payload] = []
        pos = 0
        if self._partial:
            data = self._partial + bytes(data)
            self._partial = b""
        end = len(data)
        while pos < end and not self._deaf:
            if self._left:
                pos = self._take(data, pos, end, payloads)
                continue
            begun = self._begin(data, pos, end)
            if begun < 0:
                self._partial = bytes(data[pos:])
                break
            pos = begun
        if self._ping is not None:
            self._answer_ping()
        return payloads

    def _begin(self, data: Payload, pos: int, end: int) -> int:
        """Read a frame's header, or a whole control frame; the position behind it, -1 if it is not all here yet.

        Raises TransportProtocolError.
        """
        if end - pos < 2:
            return -1
        second = data[pos + 1]
        size = second & 0x7F
        if second & _MASKED == self._mask:
            self._fail(1002, "a frame that is masked" if self._client else "a frame that is not masked")
        body = pos + 2 + _SIZES.get(size, 0) + (0 if self._client else 4)
        if body > end:
            return -1
        if size > _MAX_CONTROL:
            size, least = (
                (_SIZE16.unpack_from(data, pos + 2)[0], 126)
                if size == 126
                else (_SIZE64.unpack_from(data, pos + 2)[0], 65536)
            )
            if size < least or size >> 63:
                self._fail(1002, "a length that is not minimal")
        first = data[pos]
        if first & 0x08:
            return self._control(data, pos, body, size, end)
        self._check(first, size)
        if size:
            self._filled = True
        else:
            self._take_empty(first)
        self._fragmented = not first & _FIN
        self._left = size
        if not self._client:
            self._key = bytes(data[body - 4 : body])
        return body

    def _take_empty(self, first: int) -> None:
        """A frame without payload; it is of use only as the end of a message (a gorilla server sends such).

        Raises TransportProtocolError.
        """
        if not (first == _FIN | _CONT and self._filled):
            self._rate("empty frames")
        self._filled = False

    def _rate(self, what: str) -> None:
        if not self._idle.take(self._clock()):
            self._fail(ABUSE, f"too many {what}")

    def _answer_ping(self) -> None:
        ping, self._ping = self._ping, None
        if ping is not None and self.open:
            self._protocol.send_pong(ping)
            self._speaking = True

    def _take(self, data: Payload, pos: int, end: int, payloads: list[Payload]) -> int:
        """Hand on what is here of the current payload; the position behind it."""
        stop = pos + self._left
        if stop > end:
            stop = end
        piece = data[pos:stop]
        if self._client:
            payloads.append(piece)
        else:
            payloads.append(apply_mask(piece, self._key))
            if turn := (stop - pos) & 3:
                self._key = self._key[turn:] + self._key[:turn]
        self._left -= stop - pos
        return stop

    def _check(self, first: int, size: int) -> None:
        """The rules for a data frame. Raises TransportProtocolError."""
        opcode = first & 0x0F
        if first & _RESERVED:
            self._fail(1002, "a reserved bit")
        if opcode > _BINARY:
            self._fail(1002, f"opcode {opcode}")
        if (opcode == _CONT) is not self._fragmented:
            self._fail(1002, "a continuation of nothing" if opcode == _CONT else "a message within a message")
        if opcode == _TEXT:
            self._fail(1003, "binary messages only")
        if size > self._max_frame:
            self._fail(1009, f"a frame of {size} bytes")

    def _control(self, data: Payload, pos: int, body: int, size: int, end: int) -> int:
        """Take a control frame; the position behind it, -1 if it is not whole yet.

        Raises TransportProtocolError.
        """
        first = data[pos]
        if first & _RESERVED or not first & _FIN or size > _MAX_CONTROL or not _CLOSE <= first & 0x0F <= _PONG:
            self._fail(1002, "a control frame that is none")
        if body + size > end:
            return -1
        if first & 0x0F == _CLOSE:
            self._answer_ping()
            self._close(bytes(data[pos : body + size]))
            return body + size
        self._rate("pings and pongs")
        if first & 0x0F == _PING:
            ping = bytes(data[body : body + size])
            self._ping = ping if self._client else bytes(apply_mask(ping, bytes(data[body - 4 : body])))
        return body + size

    def _close(self, frame: bytes) -> None:
        """Let the protocol answer the peer's close frame. Raises TransportProtocolError if it is a bad one."""
        protocol = self._protocol
        protocol.receive_data(frame)
        protocol.events_received()
        self._speaking = True
        if protocol.state is not OPEN:
            self._note_close()

    def _note_close(self) -> None:
        received, error = self._protocol.close_rcvd, self._protocol.parser_exc
        if received is not None:
            self._deaf = True
            self.close_code, self.close_reason = int(received.code), received.reason
        elif error is not None:
            self._deaf = True
            sent = self._protocol.close_sent
            raise TransportProtocolError(int(sent.code) if sent else 1002, str(error))

    def _fail(self, code: int, reason: str) -> NoReturn:
        """Answer a broken rule with a close frame. Always raises TransportProtocolError."""
        self._deaf = self._speaking = True
        self._protocol.fail(code, reason)
        raise TransportProtocolError(code, reason)

    def receive_eof(self) -> None:
        """The transport ended: without a close frame before, that is code 1006."""
        self._speaking = True
        self._protocol.receive_eof()
        if self.close_code is None:
            self.close_code = 1006

    def lost(self) -> None:
        """The transport broke: as `receive_eof`."""
        self.receive_eof()

    def close(self, code: int, reason: str = "") -> None:
        """Queue a close frame; nothing if one was sent already. `reason` is cut to the 123 bytes that fit.

        Codes that never travel (RFC 6455 §7.4.1) go out as 1011.
        """
        if self.open:
            code = 1011 if code in (1005, 1006, 1015) else code
            self._speaking = True
            self._protocol.send_close(code, reason.encode()[:123].decode(errors="ignore"))

    def control_to_send(self) -> bytes:
        """Pongs and close frames to write before the next message, b"" for none."""
        if not self._speaking:
            return b""
        self._speaking = False
        return b"".join(self._protocol.data_to_send())

    def message(self, data: Payload) -> tuple[bytes, Payload]:
        """One binary message as (header, payload as it goes on the wire). The client's payload is masked."""
        size = len(data)
        first = _FIN | _BINARY
        if size < 126:
            header = bytes((first, self._mask | size))
        elif size < 65536:
            header = _LEN16.pack(first, self._mask | 126, size)
        else:
            header = _LEN64.pack(first, self._mask | 127, size)
        if not self._client:
            return header, data
        start = self._next_key
        if start == len(self._keys):
            self._keys, start = secrets.token_bytes(_KEYS), 0
        self._next_key = start + 4
        key = self._keys[start : start + 4]  # RFC 6455 §5.3: unpredictable
        return header + key, apply_mask(data, key)
