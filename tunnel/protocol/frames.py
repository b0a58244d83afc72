"""The 12-byte header and its numbers (yamux v0). Knows nothing of streams, states or windows."""

from struct import Struct
from typing import Final

# Version and type are read as one 16-bit number: with version 0 it is the type alone, and one comparison rejects both
# a wrong version and an unknown type.
HEADER: Final = Struct(">HHII")
HEADER_SIZE: Final = 12

DATA: Final = 0
WINDOW_UPDATE: Final = 1
PING: Final = 2
GO_AWAY: Final = 3

SYN: Final = 1
ACK: Final = 2
FIN: Final = 4
RST: Final = 8
KNOWN_FLAGS: Final = SYN | ACK | FIN | RST

INITIAL_WINDOW: Final = 262_144  # bytes, each direction of each stream (yamux specification)
MAX_WINDOW: Final = 0xFFFF_FFFF

# hashicorp/yamux refuses to open at 0xFFFFFFFE and above; ids are never used again within a session.
LAST_STREAM_ID: Final = 0xFFFF_FFFD
RECONNECT_FROM_ID: Final = 0xF000_0000


def encode_header(frame_type: int, flags: int, stream_id: int, length: int) -> bytes:
    """One header: `length` is payload bytes (Data), credit (WindowUpdate), an opaque number (Ping) or a code."""
    return HEADER.pack(frame_type, flags, stream_id, length)
