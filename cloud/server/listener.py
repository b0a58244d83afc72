"""The API's listening socket: bound as the master starts, listening once a worker can answer, closed with nobody in it.

gunicorn listens before its workers have loaded the app, so that callers wait for seconds where they should be refused;
and its workers leave what the kernel has accepted for them when they stop. Here the port is taken (an address in use is
told at once), each worker listens when it can answer, and at the end the kernel is told to begin no more connections,
those under way are taken, and only then is the socket closed. It knows neither requests nor the worker's loop.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import sys
import time
from typing import Any, Final

from gunicorn import util
from gunicorn.sock import TCP6Socket, TCPSocket

_TRIES: Final = 5  # seconds apart, as gunicorn's own: a predecessor may be closing the port
_SO_ATTACH_FILTER: Final = 26  # linux/asm-generic/socket.h; Python has no name for it
_ENDING: Final = mmap.mmap(-1, 1)
"""Shared with the workers, who are forked later: not 0 once the whole server ends. A worker that is told to end may be
one that others replace (a reload), for whom the port stays open."""


def server_ends() -> bool:
    """Whether the master closes the port for good."""
    return _ENDING[0] != 0


class _Bound:
    """Mixin of gunicorn's sockets: bound, but not listening; `close` in the master tells that the whole server ends."""

    server: Any = None
    pid = 0

    @staticmethod
    def _is_listening(_sock: socket.socket) -> bool:
        return True  # what gunicorn asks before it would listen

    def close(self) -> None:
        """In the master this is the first step of a stop, before any worker is told."""
        alone = self.server is not None and not self.server.reexec_pid  # no newer master has the same port (SIGUSR2)
        if alone and os.getpid() == self.pid:
            _ENDING[0] = 1
        super().close()  # type: ignore[misc]  # of the class it is mixed into


class BoundSocket(_Bound, TCPSocket):  # type: ignore[misc]  # gunicorn has no types
    """IPv4."""


class BoundSocket6(_Bound, TCP6Socket):  # type: ignore[misc]  # gunicorn has no types
    """IPv6."""


def bind(server: Any) -> None:
    """Give gunicorn's master its sockets, unless it inherits them (SIGUSR2, systemd). Ends the process if it cannot."""
    inherits = server.master_pid or os.environ.get("LISTEN_PID") == str(os.getpid())
    if not inherits:
        server.LISTENERS = [_bound(server, address) for address in server.cfg.address]


def _bound(server: Any, address: tuple[str, int]) -> BoundSocket | BoundSocket6:
    kind = BoundSocket6 if util.is_ipv6(address[0]) else BoundSocket
    for left in reversed(range(_TRIES)):
        try:
            made = kind(address, server.cfg, server.log)
        except OSError as error:
            server.log.error("%s:%s cannot be bound: %s", *address, error.strerror)  # noqa: TRY400 - one line
            if left:
                time.sleep(1.0)
        else:
            made.server, made.pid = server, os.getpid()
            return made
    sys.exit(1)


def begin_no_more(listener: Any) -> None:
    """Let the kernel drop every new SYN; handshakes under way end well, and what is accepted stays.

    A caller whose SYN is dropped tries again after a second, and is refused if nobody listens by then. Without this,
    who comes between the last accept and the close would be reset with a request on its way. The connections that are
    still made inherit the filter, which drops nothing of theirs. Where the system has no such filter nothing is done.
    """
    drop, take = 0, 0xFFFFFFFF
    program = (
        (0x30, 0, 0, 13),  # load the flags' byte of the TCP header, which is where a filter begins here
        (0x54, 0, 0, 0x12),  # of these SYN and ACK
        (0x15, 0, 1, 0x02),  # SYN alone?
        (0x06, 0, 0, drop),
        (0x06, 0, 0, take),
    )
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    if sys.platform == "linux":
        try:
            fprog = struct.pack("HP", len(program), ctypes.addressof(code))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)
        except OSError:
            return
