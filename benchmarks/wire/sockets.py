"""Socket buffers of a size that was asked for."""

import socket
from typing import Protocol


class _Sock(Protocol):
    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...


def bound_buffers(sock: _Sock, size: int) -> None:
    """Let the kernel hold `size` bytes each way (it counts double for its own needs); 0: as many as it likes."""
    if size:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, size)
