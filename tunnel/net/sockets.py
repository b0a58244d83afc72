"""Sockets as the daemon uses them: options, the shared read buffer, a small byte stream without Trio's wrapping.

Trio's own socket object runs a checkpoint with every call; the switch reads and writes thousands of times a second,
so it drives plain non-blocking sockets and waits only when the kernel says that it must.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
import termios
from typing import Final

import trio

READ_SIZE: Final = 256 * 1024
"""Bytes read at once: bulk through one stream needs as many (quality.md)."""
_SMALL_READ: Final = 64 * 1024
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 15, 10, 3
_NOTSENT_LOWAT: Final = 128 * 1024  # so that a pong waits behind little (yamux.md §7)
_ACKED_AT: Final = 120  # of `struct tcp_info`: 8 bytes, 24 words, two rates before it
FLUSH_SECONDS: Final = 30.0
"""What goes before a reset that is passed on may stand still for so long, no longer."""
_LEAST_RTT_AT: Final = 148
_FLUSH_LOOK: Final = 0.01
Socket = socket.socket | trio.socket.SocketType
_shared: trio.lowlevel.RunVar[memoryview] = trio.lowlevel.RunVar("tunnel_read_buffer")


def descriptor(sock: Socket) -> int:
    """What trio is asked to wait for. Raises trio.ClosedResourceError for a socket that is closed.

    Trio itself would take its -1 for a descriptor, fail in the midst, and break down at the next such.
    """
    number = sock.fileno()
    if number < 0:
        raise trio.ClosedResourceError("this socket was closed")
    return number


def shared_buffer() -> memoryview:
    """The one read buffer of this Trio run. What stands in it is valid until the next await only."""
    try:
        return _shared.get()
    except LookupError:
        buffer = memoryview(bytearray(READ_SIZE))
        _shared.set(buffer)
        return buffer


def tune(sock: socket.socket) -> None:
    """Non-blocking, no Nagle, keepalive (dead after 45 s), little unsent data in the kernel."""
    sock.setblocking(False)
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _KEEPALIVE_IDLE),
        ("TCP_KEEPALIVE", _KEEPALIVE_IDLE),  # macOS's name for it
        ("TCP_KEEPINTVL", _KEEPALIVE_INTERVAL),
        ("TCP_KEEPCNT", _KEEPALIVE_COUNT),
        ("TCP_NOTSENT_LOWAT", _NOTSENT_LOWAT),
    ):
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)


def unsent(sock: Socket) -> int | None:
    """Bytes that were written and that the peer's kernel has not acknowledged; None where the system does not tell."""
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    except (OSError, ValueError):  # not a TCP socket, closed, or no Linux
        return None


def acknowledged(sock: Socket) -> int | None:
    """Bytes that the peer's kernel has acknowledged since the connection was made (`tcpi_bytes_acked`, Linux 4.1).

    None where the system does not tell; another's structure of that name looks different.
    """
    if sys.platform != "linux":
        return None
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _ACKED_AT + 8)
    except OSError:  # not a TCP socket, or closed
        return None
    return int.from_bytes(told[_ACKED_AT:], sys.byteorder) if len(told) == _ACKED_AT + 8 else None


def least_round_trip(sock: Socket) -> float:
    """The shortest round trip in seconds that the kernel has seen lately (`tcpi_min_rtt`, Linux 4.6); 0.0: unknown."""
    if sys.platform != "linux":
        return 0.0
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LEAST_RTT_AT + 4)
    except OSError:
        return 0.0
    return int.from_bytes(told[_LEAST_RTT_AT:], sys.byteorder) / 1e6 if len(told) == _LEAST_RTT_AT + 4 else 0.0


def bound_buffers(sock: socket.socket, size: int) -> None:
    """Ask for kernel buffers of `size` bytes in each direction (Linux doubles it), instead of such as grow."""
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            return  # it is gone


def listen(host: str, port: int, backlog: int = 4096) -> socket.socket:
    """A non-blocking listening TCP socket. Raises OSError (port in use, no such address)."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(backlog)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


async def accept(listener: socket.socket) -> tuple[socket.socket, str]:
    """The next connection, tuned, and its peer's IP address. Raises OSError as accept(2) does."""
    while True:
        await trio.lowlevel.wait_readable(descriptor(listener))
        taken = accept_nowait(listener)
        if taken is not None:
            return taken


def accept_nowait(listener: socket.socket) -> tuple[socket.socket, str] | None:
    """As `accept`, of what has come already; None: nothing, or nothing that lives still."""
    try:
        sock, address = listener.accept()
    except (BlockingIOError, ConnectionAbortedError):
        return None
    try:
        tune(sock)
    except OSError:
        sock.close()  # reset before we got to it; some systems say so only now
        return None
    return sock, str(address[0])


def stop_listening(listener: socket.socket) -> None:
    """Take no connections on this port any more, nor does any other process that has the same socket (Linux).

    Such a process may `listen` on it again. Whoever waits for it gets trio.ClosedResourceError. Idempotent.
    """
    if listener.fileno() < 0:
        return
    trio.lowlevel.notify_closing(listener)
    try:
        listener.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # elsewhere than on Linux a listening socket can't be shut down; closing it is all there is
    listener.close()


class ByteStream:
    """A connected non-blocking socket as a stream of bytes. One task reads, one writes.

    A reset by the peer raises trio.BrokenResourceError and is never taken for the end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._size = _SMALL_READ

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What has arrived, b"" at the end. Raises trio.BrokenResourceError, ClosedResourceError."""
        size = self._size if max_bytes is None else max_bytes
        while True:
            await trio.lowlevel.wait_readable(descriptor(self.sock))
            try:
                data = self.sock.recv(size)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
            if max_bytes is None:
                self._size = READ_SIZE if len(data) == size else _SMALL_READ
            return data

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the kernel takes at once: how many bytes that was. Raises trio.BrokenResourceError."""
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data`. Raises trio.BrokenResourceError, ClosedResourceError."""
        sent = self.send_nowait(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            await trio.lowlevel.wait_writable(descriptor(self.sock))
            try:
                rest = rest[self.sock.send(rest) :]
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    def send_eof(self) -> None:
        """Half-close. Raises trio.BrokenResourceError."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    def broken(self) -> bool:
        """Whether the kernel knows of a reset that no read has told yet."""
        return self.sock.fileno() < 0 or self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def reset(self) -> None:
        """Close with RST, so that the peer cannot take this for a clean end."""
        if self.sock.fileno() >= 0:
            try:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            except OSError:
                self.close()  # the peer is gone already
            else:
                self.close()

    async def reset_when_flushed(self) -> None:
        """Close with RST once the peer's kernel has what was written: a reset drops what was not acknowledged yet.

        A peer that takes nothing for `FLUSH_SECONDS` is reset all the same, as is this if it is cancelled.
        """
        try:
            with trio.CancelScope(deadline=trio.current_time() + FLUSH_SECONDS) as scope:
                held = unsent(self.sock)
                # Of a peer that has left, the bytes count as unsent for ever.
                while held and not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    await trio.sleep(_FLUSH_LOOK)
                    left = unsent(self.sock)
                    if left is not None and left < held:
                        scope.deadline = trio.current_time() + FLUSH_SECONDS
                    held = left
        finally:
            self.reset()

    def close(self) -> None:
        """Close at once; what the kernel still holds is delivered. Idempotent."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)
            self.sock.close()
