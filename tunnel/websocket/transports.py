"""WebSocket transports: the hot path on a non-blocking socket, and one on any Trio stream.

The socket is read into one buffer of 256 KiB that all transports of a Trio run share: what is read is decoded before
the next await, so that an idle tunnel holds no buffer. How much is read at once follows what it cost last time
(`turn`): whoever receives has handled what it was given when it asks for more, and others run in between. There is no
task, no lock and no cancel scope per message.
Who closes: the owner of the transport calls `aclose`, once, whatever ended it.
"""

from __future__ import annotations

import contextlib
import socket
from time import thread_time
from typing import Final

import trio

from tunnel.mux.transport import Payload, TransportProtocolError
from tunnel.net.sockets import Socket, acknowledged, descriptor, shared_buffer, unsent
from tunnel.net.turn import Turn
from tunnel.websocket.codec import WebSocketCodec

CLOSE_SECONDS: Final = 1.0
"""How long `aclose` may take: flush, close frame, the peer's answer."""
_WORTH: Final = 4096  # bytes at least whose cost is looked at: fewer cannot cost much
_COPY_BELOW: Final = 2048  # below it one concatenation costs less than a gather write
_MAX_CONTROL: Final = 4096  # bytes of pongs that wait, beside those of one read
_CONTROL_SECONDS: Final = 30.0  # a pong that cannot be written for so long means a dead connection


class _WireTransport:
    """What both hot transports share; the subclass knows how to read and write."""

    def __init__(self, wire: WebSocketCodec, initial: bytes) -> None:
        self._wire = wire
        self._initial = initial
        self._pending = b""  # control frames that still have to be written
        self._sending = False
        self._answering = False  # what is being sent is the reader's answer to a control frame
        self._receiving = False
        self._torn = False  # a message was left half written: nothing may follow it
        self._begun = b""  # … but this, its end
        self._broken = False
        self._closing = False
        self._ended = False  # the peer's end was seen
        self._changed = trio.Event()
        self._turn = Turn()
        self._taken = 0  # bytes of the last read, if what they cost is still to be looked at
        self._taken_at = 0.0  # … on this thread's own clock
        self.bytes_in = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._wire!r} {self._turn!r}>"

    @property
    def close_code(self) -> int | None:
        return self._wire.close_code

    @property
    def close_reason(self) -> str:
        return self._wire.close_reason

    async def receive_some(self) -> Payload:
        """Payload bytes as they arrive; b"" once the peer closed or ended the connection.

        Raises trio.BrokenResourceError (reset), trio.ClosedResourceError (closed by us), TransportProtocolError.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            while not self._ended:
                if self._taken:
                    self._turn.spent(self._taken, thread_time() - self._taken_at)
                    self._taken = 0
                data = await self._read()
                if len(data) >= _WORTH:
                    self._taken, self._taken_at = len(data), thread_time()
                payloads = self._decode(data)
                if self._pending or not self._wire.open:
                    await self._flush_control()
                if payloads:
                    return payloads[0] if len(payloads) == 1 else b"".join(payloads)
            await trio.lowlevel.checkpoint()
            return b""
        except OSError as error:
            self._lost()
            raise trio.BrokenResourceError(str(error)) from error
        except trio.BrokenResourceError:
            self._lost()
            raise
        except TransportProtocolError:
            await self._flush_control()
            raise
        finally:
            self._receiving = False
            self._changed.set()

    def _decode(self, data: Payload) -> list[Payload]:
        self.bytes_in += len(data)
        if len(data) == 0:
            self._ended = True
            self._wire.receive_eof()
            return []
        try:
            payloads = self._wire.receive(data)
        finally:
            control = self._wire.control_to_send()
            # Of pings that flood in from a peer that does not read, the first are answered. Whole frames or none.
            if len(self._pending) < _MAX_CONTROL or not self._wire.open:
                self._pending += control
        if self._wire.close_code is not None:
            self._ended = True
        return payloads

    def _lost(self) -> None:
        self._ended = self._broken = True
        if self._wire.close_code is None:
            self._wire.lost()

    async def send_all(self, data: Payload) -> None:
        """Write one binary message. If this is cancelled half way, nothing more can be sent."""
        while self._sending:
            if not self._answering:
                raise trio.BusyResourceError("another task is sending")
            await self._change()
        prefix, body = self._message(data)
        await self._write_marked(prefix, body)

    def _message(self, data: Payload) -> tuple[bytes, Payload]:
        """What is to be written now: (control frames and header, body), or the end of the message that was begun."""
        if self._closing:
            raise trio.ClosedResourceError("this transport was closed")
        if (self._torn and not self._begun) or not self._wire.open:
            raise trio.BrokenResourceError("the peer has closed the connection")
        if self._begun:
            begun, self._begun = self._begun, b""
            return begun, b""
        header, body = self._wire.message(data)
        prefix, self._pending = self._pending + header, b""
        return prefix, body

    def try_send(self, data: Payload) -> bool:  # noqa: ARG002 - the interface's; not every transport can
        """As `send_all` if that need not wait; False: `send_all` of the same message must be the next."""
        return False

    def unsent(self) -> int | None:
        """Not known of any transport but a socket."""
        return None

    def kernel_socket(self) -> Socket | None:
        """None is known."""
        return None

    async def _write_marked(self, prefix: bytes, body: Payload) -> None:
        self._sending = self._torn = True
        try:
            await self._write(prefix, body)
            self._torn = False
        except OSError as error:
            self._broken = True
            raise trio.BrokenResourceError(str(error)) from error
        except trio.BrokenResourceError:
            self._broken = True
            raise
        finally:
            self._sending = False
            self._changed.set()

    async def _change(self) -> None:
        """Return when a task has done what it was at. Several may wait."""
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()

    async def aclose(self, code: int = 1000, reason: str = "") -> None:
        """Close frame, the peer's answer, then the socket; at most a second in all. Idempotent."""
        if self._closing:
            return
        self._closing = True
        try:
            with trio.CancelScope(deadline=trio.current_time() + CLOSE_SECONDS, shield=True):
                await self._say_goodbye(code, reason)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, TransportProtocolError):
            self._broken = True  # the peer was faster; there is nobody left to tell
        finally:
            await self._release()
            if self._wire.close_code is None:
                self._wire.lost()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        while self._sending:
            await self._change()
        if self._torn or self._broken:
            return
        self._wire.close(code, reason)
        self._pending += self._wire.control_to_send()
        if self._pending:
            out, self._pending = self._pending, b""
            await self._write_marked(out, b"")
        self._finish_writing()
        # Bytes left unread when a socket is closed make the kernel reset it, and a reset destroys the close frame
        # before the peer reads it. So the rest is read until the peer ends.
        while not self._over():
            if self._receiving:
                await self._change()
                if self._ended:
                    return
            else:
                data = await self._read()
                if len(data) == 0:
                    return
                with contextlib.suppress(TransportProtocolError):  # it is being closed already
                    self._decode(data)

    def _over(self) -> bool:
        """Whether the peer has nothing more to say, so that its end need not be awaited."""
        return self._broken

    async def _read(self) -> Payload:
        raise NotImplementedError

    async def _write(self, prefix: bytes, body: Payload) -> None:
        raise NotImplementedError

    async def _flush_control(self) -> None:
        raise NotImplementedError

    def _finish_writing(self) -> None:
        """Tell the peer that nothing follows, where the transport can."""

    async def _release(self) -> None:
        raise NotImplementedError


class SocketTransport(_WireTransport):
    """The hot path: a connected, non-blocking stdlib socket that this object owns from now on.

    `initial` are bytes that were read behind the handshake.
    """

    def __init__(self, sock: socket.socket, wire: WebSocketCodec, initial: bytes = b"") -> None:
        super().__init__(wire, initial)
        self._sock = sock
        self._buffer = shared_buffer()
        self._full = False  # the last read filled the buffer: there is more, so do not ask epoll
        self._runs = 0  # writes in a row that did not have to wait
        self._rest = 0  # bytes of the message under way that the kernel has not taken

    async def _read(self) -> Payload:
        if self._initial:
            data, self._initial = self._initial, b""
            return data
        sock, buffer = self._sock, self._buffer
        if sock.fileno() < 0:
            raise trio.ClosedResourceError("this transport was closed")
        if self._full:
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.wait_readable(descriptor(sock))
        limit = self._turn.size
        while True:
            try:
                size = sock.recv_into(buffer, limit)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(descriptor(sock))
                continue
            self._full = size == limit
            return buffer[:size]

    async def _write(self, prefix: bytes, body: Payload) -> None:
        sock = self._sock
        if sock.fileno() < 0:
            raise trio.ClosedResourceError("this transport was closed")
        rest: Payload
        try:
            if len(body) < _COPY_BELOW:
                rest = prefix + bytes(body) if body else prefix
                rest = rest[sock.send(rest) :]
            else:
                sent = sock.sendmsg((prefix, body))
                rest = prefix[sent:] + bytes(body) if sent < len(prefix) else memoryview(body)[sent - len(prefix) :]
        except BlockingIOError:
            rest = prefix + bytes(body)
        if not rest:
            self._runs += 1
            if self._runs >= 8:
                self._runs = 0
                await trio.lowlevel.checkpoint()
            return
        self._runs = 0
        rest = memoryview(rest)
        while rest:
            self._rest = len(rest)
            await trio.lowlevel.wait_writable(descriptor(sock))
            try:
                rest = rest[sock.send(rest) :]
            except BlockingIOError:
                continue
        self._rest = 0

    def unsent(self) -> int | None:
        """What the kernel holds, and what it has not taken of the message that is being written."""
        held = unsent(self._sock)
        return None if held is None else held + self._rest

    def kernel_socket(self) -> Socket | None:
        """The socket, until it is closed."""
        return self._sock if self._sock.fileno() >= 0 else None

    def try_send(self, data: Payload) -> bool:
        """As `send_all` if the socket takes it at once. False: `send_all` of the same message must be the next."""
        if self._sending:
            return False
        prefix, body = self._message(data)
        whole = prefix + bytes(body)
        try:
            sent = self._sock.send(whole)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._torn = self._broken = True
            raise trio.BrokenResourceError(str(error)) from error
        self._begun = whole[sent:]
        self._torn = bool(self._begun)
        return not self._torn

    async def _flush_control(self) -> None:
        """Never waits: the reader must not depend on the peer's reading. What does not fit goes with the next one."""
        if self._pending and not self._sending and not self._torn:
            try:
                self._pending = self._pending[self._sock.send(self._pending) :]
            except BlockingIOError:
                pass  # what does not fit waits, within _MAX_CONTROL
            except OSError:
                self._broken = True

    def _finish_writing(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._broken = True

    async def _release(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()


class StreamTransport(_WireTransport):
    """The same over any Trio stream: TLS, a stream in memory. The stream is owned from now on."""

    def __init__(self, stream: trio.abc.Stream, wire: WebSocketCodec, initial: bytes = b"") -> None:
        super().__init__(wire, initial)
        self._stream = stream
        self._given = 0

    async def _read(self) -> Payload:
        if self._initial:
            data, self._initial = self._initial, b""
            return data
        return await self._stream.receive_some(self._turn.size)

    async def _write(self, prefix: bytes, body: Payload) -> None:
        # One copy: two writes would be two TLS records and two system calls, which cost more (benchmarks/NOTES.md).
        self._given += len(prefix) + len(body)
        await self._stream.send_all(b"".join((prefix, body)))

    def unsent(self) -> int | None:
        """What was given to the stream, less what the peer's system has acknowledged of the socket below TLS.

        What TLS adds is not known, so it tells nothing but its fall. The bytes that the kernel holds would not: they
        are as many again at once while TLS has more for it. None where there is no such socket.
        """
        sock = self.kernel_socket()
        taken = None if sock is None else acknowledged(sock)
        return None if taken is None else self._given - taken

    def kernel_socket(self) -> Socket | None:
        """The one below TLS."""
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        return stream.socket if isinstance(stream, trio.SocketStream) and stream.socket.fileno() >= 0 else None

    def _over(self) -> bool:
        # TLS cannot half-close, and a front that ends it passes none on: then each end waits for the other's. Behind
        # the peer's close frame nothing comes that could be lost (RFC 6455 §5.5.1).
        return self._broken or self._wire.close_code is not None

    async def _flush_control(self) -> None:
        if self._pending and not self._sending and not self._torn:
            out, self._pending = self._pending, b""
            self._answering = True
            try:
                # A stream cannot be written without waiting, so this wait is bounded instead.
                with trio.move_on_after(_CONTROL_SECONDS):
                    await self._write_marked(out, b"")
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._broken = True
            finally:
                self._answering = False

    async def _release(self) -> None:
        await trio.aclose_forcefully(self._stream)
