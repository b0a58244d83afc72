"""A multiplexed stream as Trio knows streams. Knows no frames: the core decides, this waits.

A task that waits is parked and woken by its connection's reader or writer, without an event object or a cancel scope
per call. Nothing awaits between a decision and its effect, so that a cancelled call leaves whole frames only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio
from trio.lowlevel import (
    Abort,
    Task,
    cancel_shielded_checkpoint,
    checkpoint,
    checkpoint_if_cancelled,
    current_task,
    reschedule,
    wait_task_rescheduled,
)

from tunnel.mux.errors import stream_error
from tunnel.protocol.errors import Fault
from tunnel.protocol.inbound import Bytes
from tunnel.protocol.session import Session
from tunnel.protocol.stream import MuxStream

_BEHIND_THE_END: Final = (None, Fault.PEER_RESET)
"""The peer had ended its side before: its reset says that it takes no more, not that something is missing."""


class Multiplexer(Protocol):
    """The connection that a stream belongs to."""

    @property
    def name(self) -> str:
        """For the log."""

    @property
    def session(self) -> Session:
        """The sans-IO session."""

    def kick(self) -> None:
        """Have the writer look: there may be something to send."""


class Stream(trio.abc.HalfCloseableStream):
    """One stream of a `Connection`; made by `open_stream` and `accept_stream` only.

    One task may send while another receives; two that do the same raise trio.BusyResourceError. What broke the stream
    is raised as a TunnelError (`mux_errors`), which is a trio.BrokenResourceError: a reset or a lost session is never
    an end of stream.
    """

    notifies: Final = True
    """`listener` is called."""
    __slots__ = ("_closed", "_connection", "_core", "_receiver", "_receiving", "_sender", "_sending", "listener")

    def __init__(self, connection: Multiplexer, core: MuxStream) -> None:
        self._connection = connection
        self._core = core
        self._closed = False
        self._sending = False
        self._receiving = False
        self._sender: Task | None = None  # parked until the buffer has room or the ACK came
        self._receiver: Task | None = None  # parked until there is something to receive
        self.listener: Callable[[], None] | None = None
        """Called, instead of waking a task, when there may be something to receive, an end or a fault: on the tunnel's
        own time, so it must neither wait nor raise."""
        core.context = self

    @property
    def stream_id(self) -> int:
        """The id on the wire; odd if the yamux client opened it."""
        return self._core.stream_id

    @property
    def acknowledged(self) -> bool:
        """True once the peer has accepted the stream."""
        return self._core.acked

    @property
    def last_progress(self) -> float:
        """When bytes or credit last moved, on Trio's clock: for a watchdog that looks now and then."""
        return self._core.last_progress

    # Sending

    @property
    def broken(self) -> bool:
        """Whether it was reset, or its session is lost: what a call would raise."""
        return self._core.fault is not None

    async def send_all(self, data: Bytes) -> None:
        """Hand over `data`; returns when all of it is in the stream's bounded buffer (128 KiB), not when it is sent.

        Cancelled, an unknown part of `data` has been queued, in whole frames: other streams are unharmed.
        Raises TunnelError, trio.ClosedResourceError after `aclose`, `reset` or `send_eof`.
        """
        self._enter_send()
        try:
            await checkpoint_if_cancelled()
            sent = self._send(data)
            if sent == len(data):
                await cancel_shielded_checkpoint()
                return
            with memoryview(data) as view:
                while sent < len(view):
                    await self._park_sender()
                    sent += self._send(view[sent:])
        finally:
            self._sending = False

    def send_nowait(self, data: Bytes) -> int:
        """Queue what the buffer takes, without a checkpoint: how many bytes that was. For pumps that await elsewhere.

        Raises as `send_all` does.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        return self._send(data)

    async def wait_send_all_might_not_block(self) -> None:
        """Return when the buffer has room; also when the stream is broken, so that sending tells."""
        self._enter_send()
        try:
            self._check_sendable()
            if self._connection.session.wants_room(self._core):
                await self._park_sender()
                self._check_open()
            else:
                await checkpoint()
        finally:
            self._sending = False

    async def send_eof(self) -> None:
        """Half-close: the peer sees the end after all that was sent. Idempotent. Raises as `send_all` does."""
        self._enter_send()
        try:
            await checkpoint_if_cancelled()
            self._check_open()
            if self._core.fault is not None:
                raise self._error()
            self._connection.session.half_close(self._core)
            self._connection.kick()
            await cancel_shielded_checkpoint()
        finally:
            self._sending = False

    # Receiving

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes, at most `max_bytes`; b"" after the peer's end. Taking them is what lets the peer send more.

        Raises TunnelError if the stream broke, once what came before the peer's reset has been taken, and
        ValueError, TypeError for a bad `max_bytes`.
        """
        if max_bytes is not None:
            if not isinstance(max_bytes, int):
                raise TypeError("max_bytes must be an integer or None")
            if max_bytes < 1:
                raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        self._receiving = True
        try:
            await checkpoint_if_cancelled()
            data = self._receive(max_bytes)
            if data is not None:
                await cancel_shielded_checkpoint()
                return data
            while data is None:
                await self._park_receiver()
                data = self._receive(max_bytes)
            return data
        finally:
            self._receiving = False

    def receive_nowait(self, max_bytes: int | None = None) -> bytes | None:
        """What is here, without a checkpoint; None if nothing is, b"" at the end. Raises as `receive_some` does."""
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving")
        return self._receive(max_bytes)

    # Ending

    async def aclose(self) -> None:
        """Be done with the stream, both ways. Idempotent; done even if cancelled.

        Clean if nothing is unread: what was sent goes out, then the end. Unread bytes, and such as still come, reset
        the stream, since they would stall the peer. To break off on purpose, use `reset`.
        """
        self.close_nowait()
        await checkpoint()

    def close_nowait(self) -> None:
        """`aclose` without its checkpoint."""
        if not self._closed:
            self._forget()
            self._connection.session.close(self._core)
            self._connection.kick()

    def reset(self) -> None:
        """Break the stream off at once: the peer sees a reset, never an end. Idempotent, does not wait."""
        if not self._closed:
            self._forget()
        self._connection.session.reset(self._core)
        self._connection.kick()

    def reset_when_flushed(self) -> None:
        """Pass on a reset that came behind what was sent: the peer gets that first. Idempotent; does not wait."""
        if not self._closed:
            self._forget()
        self._connection.session.reset_when_flushed(self._core)
        self._connection.kick()

    # For the connection

    def wake(self) -> None:
        """The core says that something changed: wake whom it may concern. They look for themselves."""
        core = self._core
        task = self._receiver
        if task is not None and (core.received or core.read_eof or core.fault is not None or self._closed):
            self._receiver = None
            reschedule(task)
        task = self._sender
        if task is not None and (not core.send_blocked or core.fault is not None):
            self._sender = None
            reschedule(task)
        if self.listener is not None and not self._closed:
            self.listener()

    async def wait_acknowledged(self) -> None:
        """Return when the peer accepted the stream. Raises TunnelError (OpenTimeout, StreamRefused …) if it did not."""
        self._enter_send()
        try:
            core = self._core
            while not core.acked and core.fault is None:
                await self._park_sender()
            self._check_open()
            if core.fault is not None:
                raise self._error()
        finally:
            self._sending = False

    # Inside

    def _enter_send(self) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        self._sending = True

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this stream was closed here")

    def _check_sendable(self) -> None:
        self._check_open()
        if self._core.fault is not None:
            raise self._error()
        if not self._core.writable:
            raise trio.ClosedResourceError("this stream was half-closed here")

    def _error(self) -> Exception:
        return stream_error(self._core, self._connection.session.ending)

    def _send(self, data: Bytes) -> int:
        self._check_sendable()
        sent = self._connection.session.send(self._core, data)
        self._connection.kick()
        return sent

    def _receive(self, max_bytes: int | None) -> bytes | None:
        self._check_open()
        core = self._core
        if core.received:
            data = self._connection.session.read(core, max_bytes)
            self._connection.kick()
            return data
        if core.read_eof and core.fault in _BEHIND_THE_END:
            return b""
        if core.fault is not None:
            raise self._error()
        return None

    def _forget(self) -> None:
        self._closed = True
        self._core.context = None
        self._core.send_blocked = False
        self.wake()

    async def _park_sender(self) -> None:
        def abort(_: object) -> Abort:
            self._sender = None
            return Abort.SUCCEEDED

        self._sender = current_task()
        await wait_task_rescheduled(abort)

    async def _park_receiver(self) -> None:
        def abort(_: object) -> Abort:
            self._receiver = None
            return Abort.SUCCEEDED

        self._receiver = current_task()
        await wait_task_rescheduled(abort)

    def __repr__(self) -> str:
        return f"<Stream {'closed ' if self._closed else ''}of {self._connection.name or 'a tunnel'}: {self._core!r}>"
