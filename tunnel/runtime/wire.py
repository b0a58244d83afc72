"""The WebSocket of a tunnel without any I/O: bytes from the socket in, binary payloads and bytes to write out.

Inbound frames are decoded by the sans-IO protocol of `websockets`; a fragment is handed on when its frame is whole,
never held back until the message ends (a gorilla client cuts 256 KiB into 64 fragments of 4 KiB). Outbound binary
messages are one frame whose header is made here, so that a payload is not copied on its way to the socket.
It does not know: Trio, sockets, yamux, who the peer is.
"""

from __future__ import annotations

import logging
import secrets
import struct
from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, SERVER, Protocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # a platform without the compiled part
    from websockets.utils import apply_mask

MAX_FRAME: Final = 1024 * 1024 + 4096
"""Largest inbound frame in bytes: the largest receive window ever granted (1 MiB) and its yamux headers."""

Payload = bytes | bytearray | memoryview

_silent = logging.getLogger("tunnel.wire")
_silent.setLevel(logging.ERROR)
_LEN16 = struct.Struct("!BBH")
_LEN64 = struct.Struct("!BBQ")
_FIN_BINARY = 0x82
_MASKED = 0x80
_BINARY, _CONT, _TEXT = Opcode.BINARY, Opcode.CONT, Opcode.TEXT


class TransportProtocolError(Exception):
    """The peer broke RFC 6455 or sent text; it has been answered with a close frame of `code`."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code} {reason}")
        self.code = code
        self.reason = reason


class Wire:
    """One side of an open WebSocket connection (the handshake is over).

    `close_code` is what the peer sent: None while open, 1005 for a close frame without a code, 1006 if the peer
    vanished without one.
    """

    def __init__(self, *, client: bool, max_frame: int = MAX_FRAME) -> None:
        self._client = client
        self._mask = _MASKED if client else 0
        self._protocol = Protocol(CLIENT if client else SERVER, state=OPEN, max_size=(None, max_frame), logger=_silent)
        self.close_code: int | None = None
        self.close_reason = ""

    def __repr__(self) -> str:
        side = "client" if self._client else "server"
        return f"<Wire {side} {self._protocol.state.name.lower()} close_code={self.close_code}>"

    @property
    def open(self) -> bool:
        """Whether messages may still be sent."""
        return self._protocol.state is OPEN

    def receive(self, data: Payload) -> list[Payload]:
        """The payloads that `data` completes, empty ones left out. `control_to_send` may have bytes afterwards.

        Raises TransportProtocolError once a close frame that says so has been queued.
        """
        protocol = self._protocol
        protocol.receive_data(data)  # type: ignore[arg-type]  # it is appended to a bytearray: any buffer will do
        payloads: list[Payload] = []
        for frame in protocol.events_received():
            if not isinstance(frame, Frame):
                continue  # requests and responses belong to the handshake
            opcode = frame.opcode
            if opcode is _BINARY or opcode is _CONT:
                if frame.data:
                    payloads.append(frame.data)
            elif opcode is _TEXT:
                protocol.fail(1003, "binary messages only")
                raise TransportProtocolError(1003, "text message")
        if protocol.state is not OPEN:
            self._note_close()
        return payloads

    def _note_close(self) -> None:
        received, error = self._protocol.close_rcvd, self._protocol.parser_exc
        if received is not None:
            self.close_code, self.close_reason = int(received.code), received.reason
        elif error is not None:
            sent = self._protocol.close_sent
            raise TransportProtocolError(int(sent.code) if sent else 1002, str(error))

    def receive_eof(self) -> None:
        """The transport ended: without a close frame before, that is code 1006."""
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
            self._protocol.send_close(code, reason.encode()[:123].decode(errors="ignore"))

    def control_to_send(self) -> bytes:
        """Pongs and close frames to write before the next message, b"" for none."""
        return b"".join(self._protocol.data_to_send())

    def message(self, data: Payload) -> tuple[bytes, Payload]:
        """One binary message as (header, payload as it goes on the wire). The client's payload is masked."""
        size = len(data)
        if size < 126:
            header = bytes((_FIN_BINARY, self._mask | size))
        elif size < 65536:
            header = _LEN16.pack(_FIN_BINARY, self._mask | 126, size)
        else:
            header = _LEN64.pack(_FIN_BINARY, self._mask | 127, size)
        if not self._client:
            return header, data
        key = secrets.token_bytes(4)  # RFC 6455 §5.3: unpredictable
        return header + key, apply_mask(data, key)
