"""Socket buffers of a size that was asked for."""

import socket
from typing import Final, Protocol

_SEGMENT: Final = 1448  # bytes, as on Ethernet


class _Sock(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def bound_buffers(sock: _Sock, size: int) -> None:
    """Let the kernel hold `size` bytes each way (it counts double for its own needs); 0: as many as it likes.

    For a socket that is neither connected nor listening yet: its segments are bounded too. Loopback's of 64 KiB do not
    fit into such a buffer, and TCP would wait for its timers instead of sending.
    """
    if size:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
